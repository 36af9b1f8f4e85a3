"""Norms in trees of any shape, naming and order, and with any steps between."""

import string
import warnings

import jax
import jax.numpy as jnp
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import lntune_jax as lnt
from lntune_jax.paths import flatten
from tests.support.traced import LAYER_NORMS, RMS_NORMS, mean, shape

CONFIG = lnt.LNTuningConfig()
X = shape(4, 8)

names = st.text(string.ascii_lowercase, min_size=1, max_size=3)


@st.composite
def scrambled_trees(draw):
    """The leaves of several norms and dense layers, each at a random place of a random tree."""
    norms = draw(st.lists(st.sampled_from((*LAYER_NORMS, *RMS_NORMS)), min_size=1, max_size=3))
    width = {"a": shape(8), "b": shape(8), "k": shape(8, 8), "l": shape(8)}
    leaves = [
        (number, letter)
        for number, norm in enumerate(norms)
        for letter in ("abkl" if norm in LAYER_NORMS else "akl")
    ]
    order = draw(st.permutations(leaves))
    places = {}
    for number, leaf in enumerate(order):
        path = (*draw(st.lists(names, max_size=3)), f"{draw(names)}{number}")
        places[leaf] = path
    flat = {"/".join(path): width[letter] for (_, letter), path in places.items()}
    return norms, places, draw(st.sampled_from([flat, nest(places, width), tuple_of(flat)]))


def nest(places, width):
    tree = {}
    for (_, letter), path in places.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = width[letter]
    return tree


def tuple_of(flat):
    return tuple({key: leaf} for key, leaf in flat.items())


@given(scrambled_trees())
@settings(max_examples=25)
def test_names_nesting_and_order_play_no_part(drawn):
    norms, places, tree = drawn
    flat = {leaf.path[-1]: leaf.path for leaf in flatten(tree)[0]}
    at = {leaf: ".".join(flat[path[-1]]) for leaf, path in places.items()}

    def call(tree, x):
        values = {".".join(leaf.path): leaf.value for leaf in flatten(tree)[0]}
        for number, norm in enumerate(norms):
            own = {letter: values[name] for (i, letter), name in at.items() if i == number}
            x = jnp.tanh(norm(own, x @ own["k"] + own["l"]))
        return x

    found = lnt.discover_norms(call, tree, X)
    expected = {name for (_, letter), name in at.items() if letter in "ab"}
    assert set(found) == expected
    assert {leaf.path for leaf in found.norms if leaf.role == "bias"} == {
        name for (_, letter), name in at.items() if letter == "b"
    }
    trainable, frozen = lnt.partition_params(tree, CONFIG, norms=found)
    assert set(trainable) == expected
    assert jax.tree.structure(lnt.merge_params(trainable, frozen)) == jax.tree.structure(tree)


BEFORE = (
    lambda p, x: x + p["r"],
    lambda p, x: x + jnp.tanh(x @ p["k"]),
    lambda p, x: x * jax.nn.silu(x @ p["k"]),
    lambda p, x: jnp.where(x > 0, x, x * p["v"]),
    lambda p, x: x * lax.rsqrt(mean(x * x)) * p["v"],
    lambda p, x: lax.cond(x.sum() > 0, jnp.tanh, jnp.sin, x),
)
MEANS = (
    lambda x: mean(x * x),
    lambda x: mean(jnp.abs(x) ** 2),
    lambda x: (x * x) @ jnp.ones((8, 1)) / 8,
    lambda x: lax.map(lambda row: mean(row * row), x),
    lambda x: jnp.exp(jax.nn.logsumexp(jnp.log(x * x), -1, keepdims=True)) / 8,
    lambda x: lax.fori_loop(0, 8, lambda i, a: a + x[..., i] ** 2, jnp.zeros(4))[:, None] / 8,
)
DIVISIONS = (
    lambda x, v: x * lax.rsqrt(v),
    lambda x, v: x / jnp.sqrt(v + 1e-6),
    lambda x, v: -x * jnp.exp(-0.5 * jnp.log(v)),
    lambda x, v: x * jnp.broadcast_to((v + 1e-6) ** -0.5, x.shape),
)
BETWEEN = (
    lambda p, y: y,
    lambda p, y: y * jax.nn.silu(y @ p["k"]),
    lambda p, y: y[1:],
    lambda p, y: jnp.concatenate([y, y]),
    lambda p, y: jnp.clip(y, -5, 5) + jnp.tanh(y @ p["k"]),
    lambda p, y: lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, s[1] / 2), (0, y))[1],
    lambda p, y: lax.cond(y.sum() > 0, lambda y: y, jnp.sin, y),
    lambda p, y: y.mean(0, keepdims=True),
)
SCALES = (
    lambda p: p["w"],
    lambda p: 1 + jnp.clip(p["w"], -1, 1),
    lambda p: jnp.exp(p["w"]),
    lambda p: p["w"] + p["v"],
    lambda p: p["w"] / jnp.linalg.norm(p["w"]),
    lambda p: jnp.tile(p["w"], 2)[:8],
    lambda p: lax.scan(lambda c, s: (c + s, None), p["w"], p["s"])[0],
    lambda p: jnp.where(jnp.arange(8) < 4, p["w"], 1),
)
PRODUCTS = (
    lambda y, w: y * w,
    lambda y, w: jnp.einsum("bd,d->bd", y, w),
    lambda y, w: y / w,
    lambda y, w: y + y * w,
    lambda y, w: y @ (w[:, None] * jnp.ones((8, 8))),
    lambda y, w: lax.map(lambda row: row * w, y),
)
steps = map(st.sampled_from, (BEFORE, MEANS, DIVISIONS, BETWEEN, SCALES, PRODUCTS))


@given(st.tuples(*steps))
@settings(max_examples=60, deadline=None)
def test_a_scale_is_found_or_named_whatever_stands_between(drawn):
    before, average, divide, between, scale, multiply = drawn

    def call(p, x):
        x = before(p, jnp.tanh(x @ p["k"]))
        y = between(p, divide(x, average(x)))
        return jnp.tanh(multiply(y, scale(p)) @ p["k"])

    params = dict.fromkeys("wvr", shape(8)) | {"k": shape(8, 8), "s": shape(3, 8)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lnt.errors.TraceWarning)
        found = lnt.discover_norms(call, params, X)
    assert "w" in {*found, *found.uncertain, *found.ambiguous}
    assert not {"k", "r"} & {*found, *found.uncertain}
