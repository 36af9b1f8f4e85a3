"""Norms in every form of writing them, and parameters that look like a norm's and are none."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import lntune_jax as lnt
from lntune_jax.errors import TraceWarning
from tests.support import traced
from tests.support.traced import (
    LAYER_NORMS,
    RMS_NORMS,
    between,
    deviation,
    make_params,
    mean,
    shape,
)

X = shape(4, 8)


def find(norm, *leaves, x=X, **changes):
    """Each leaf found, with its role and kind."""
    found = lnt.discover_norms(between(norm), make_params(*leaves) | changes, x)
    assert not found.ambiguous
    assert not found.opaque
    return {leaf.path: (leaf.role, leaf.kind) for leaf in found.norms}


LAYER = {"a": ("scale", "layer"), "b": ("bias", "layer")}


@pytest.mark.parametrize("norm", LAYER_NORMS, ids=lambda norm: norm.__name__)
def test_layer_norms(norm):
    assert find(norm, "a", "b") == LAYER


@pytest.mark.parametrize("norm", RMS_NORMS, ids=lambda norm: norm.__name__)
def test_rms_norms(norm):
    assert find(norm, "a") == {"a": ("scale", "rms")}


def test_of_bfloat16():
    for norm in (traced.gemma, traced.t5):
        found = lnt.discover_norms(
            between(norm), make_params("a", dtype="bfloat16"), shape(4, 8, dtype="bfloat16")
        )
        assert list(found) == ["a"]


def test_where_and_how_a_leaf_is_stored():
    (gemma,) = lnt.discover_norms(between(traced.gemma), make_params("a"), X).norms
    assert (gemma.offset, gemma.axes, gemma.layer_axes, gemma.shape) == (1.0, (-1,), (), (8,))
    first, _ = lnt.discover_norms(between(traced.along_the_first_axis), make_params(*"ab"), X).norms
    assert first.axes == (-2,)


def test_a_scale_or_a_bias_alone():
    assert find(lambda p, x: jax.nn.standardize(x) * p["a"], "a") == {"a": LAYER["a"]}
    assert find(lambda p, x: jax.nn.standardize(x) + p["b"], "b") == {"b": LAYER["b"]}


BEFORE = {
    "a mean over positions": lambda p, x: x.reshape(4, 3, 8).mean(1),
    "a sum over positions": lambda p, x: x.reshape(4, 3, 8).sum(1),
    "the greatest": lambda p, x: x.reshape(4, 3, 8).max(1),
    "a square": lambda p, x: x[:4] ** 2,
    "a product with a parameter": lambda p, x: x[:4] * p["n"],
    "another norm": lambda p, x: jax.nn.standardize(x[:4]),
    "a BatchNorm": lambda p, x: x[:4] - x[:4].mean(0),
    "a root": lambda p, x: jnp.sqrt((x[:4] ** 2 + x[4:8] ** 2).sum(0)) + x[:4],
}


@pytest.mark.parametrize("norm", [*LAYER_NORMS, *RMS_NORMS], ids=lambda norm: norm.__name__)
def test_of_whatever_was_computed_before(norm):
    def apply(p, x):
        x = jnp.tanh(x @ p["k"] + p["l"])
        return {name: norm(p[name], before(p, x)) for name, before in BEFORE.items()}

    leaves = ("a", "b") if norm in LAYER_NORMS else ("a",)
    params = make_params() | dict.fromkeys(BEFORE, dict.fromkeys(leaves, shape(8)))
    found = lnt.discover_norms(apply, params, shape(12, 8))
    assert set(found) == {f"{name}.{leaf}" for name in BEFORE for leaf in leaves}


def test_query_and_key_norms_over_heads():
    def norm(p, x):
        heads = x.reshape(4, 2, 4)
        query = traced.plain({"a": p["a"]}, heads)
        # Cohere's: a scale for each head.
        key = jax.nn.standardize(jnp.swapaxes(heads, 0, 1)) * p["b"][:, None]
        return (query + jnp.swapaxes(key, 0, 1)).reshape(4, 8)

    found = find(norm, a=shape(4), b=shape(2, 4))
    assert found == {"a": ("scale", "rms"), "b": ("scale", "layer")}


def test_over_several_axes():
    def apply(p, x):
        centred = x - x.mean((1, 2), keepdims=True)
        return centred * lax.rsqrt(jnp.var(x, (1, 2), keepdims=True)) * p["a"] + p["b"]

    found = lnt.discover_norms(apply, {"a": shape(3, 8), "b": shape(3, 8)}, shape(4, 3, 8))
    assert list(found) == ["a", "b"]
    assert found.norms[0].axes == (-2, -1)


def test_group_and_batch_norms_are_told_apart_by_their_axes():
    def normalize(x, axes):
        average = x.mean(axes, keepdims=True)
        return (x - average) * lax.rsqrt(jnp.var(x, axes, keepdims=True) + 1e-6)

    images, channel = shape(2, 5, 5, 8), shape(8)

    def kind(compute):
        found = lnt.discover_norms(
            lambda p, x: compute(x, p["a"]) + p["b"], {"a": channel, "b": channel}, images
        )
        assert {leaf.path for leaf in found.norms} == {"a", "b"}
        (kind,) = {leaf.kind for leaf in found.norms}
        assert list(found) == (["a", "b"] if kind == "layer" else [])
        return kind

    def in_groups(x, a, axes):
        return normalize(x.reshape(2, 5, 5, 2, 4), axes).reshape(x.shape) * a

    assert kind(lambda x, a: normalize(x, -1) * a) == "layer"
    assert kind(lambda x, a: normalize(x, (0, 1, 2)) * a) == "batch"
    assert kind(lambda x, a: normalize(x, (1, 2)) * a) == "group"  # an InstanceNorm
    assert kind(lambda x, a: normalize(x, (1, 2, 3)) * a) == "group"  # all channels, and positions
    assert kind(lambda x, a: in_groups(x, a, (1, 2, 4))) == "group"
    assert kind(lambda x, a: in_groups(x, a, -1)) == "group"


def test_running_statistics_make_a_batch_norm():
    def apply(p, x):
        return (x - p["m"]) / jnp.sqrt(p["v"] + 1e-5) * p["a"] + p["b"]

    found = lnt.discover_norms(apply, {name: shape(8) for name in "abmv"}, X)
    assert {leaf.path: leaf.kind for leaf in found.norms} == {"a": "batch", "b": "batch"}
    assert not list(found)


def length(x):
    """Of each channel, over positions."""
    return jnp.sqrt((x * x).sum(0, keepdims=True))


NOTHING = {
    "LayerScale": lambda p, x: x + p["a"] * jnp.tanh(x),
    "LayerScale after a norm and a kernel": lambda p, x: p["a"] * (jax.nn.standardize(x) @ p["m"]),
    "a gate of activations": lambda p, x: x * jax.nn.sigmoid(x * p["a"]),
    "a softmax with temperatures": lambda p, x: jax.nn.softmax(x * p["a"]),
    "over the greatest": lambda p, x: x / jnp.abs(x).max(-1, keepdims=True) * p["a"],
    "over the sum": lambda p, x: x / x.sum(-1, keepdims=True) * p["a"],
    "an AdaLN": lambda p, x: (
        jax.nn.standardize(x) * (1 + x @ p["k"] + p["a"]) + (x @ p["m"] + p["b"])
    ),
    "the bias after a kernel": lambda p, x: jax.nn.standardize(x) @ p["m"] + p["a"],
    "a weight norm": lambda p, x: (
        x @ (p["k"] * lax.rsqrt((p["k"] ** 2).sum(0, keepdims=True) + 1e-6) * p["a"])
    ),
    "a weight norm by the other axis": lambda p, x: (
        x @ (p["k"] / jnp.linalg.norm(p["k"], axis=1, keepdims=True) * p["a"][:, None])
    ),
    "a weight standardisation": lambda p, x: (
        x @ ((p["k"] - p["k"].mean(0)) / jnp.sqrt(p["k"].var(0) + 1e-6) * p["a"])
    ),
    "a positional embedding": lambda p, x: jax.nn.standardize(x) + p["k"][: x.shape[0]],
    "an outer product": lambda p, x: (
        jnp.einsum("bk,d->bdk", jax.nn.standardize(x), p["a"]).sum(1) + jnp.outer(x[:, 0], p["b"])
    ),
    "a GRN": lambda p, x: (
        x * (length(x) / (length(x).mean(-1, keepdims=True) + 1e-6)) * p["a"] + p["b"] + x
    ),
    "the inverse square": lambda p, x: x / (mean(x * x) + 1e-6) * p["a"],
}


DOUBTS = {
    "deviations of another array": lambda p, x: x / deviation(jnp.tanh(x)) * p["a"],
    "the root of a mean, without squares": lambda p, x: x / jnp.sqrt(mean(x)) * p["a"],
}


@pytest.mark.parametrize("name", DOUBTS)
def test_a_division_by_another_root_is_named(name):
    with pytest.warns(TraceWarning, match="'a' may be a norm's and is not selected"):
        assert find(DOUBTS[name], "a", "b") == {}


@pytest.mark.parametrize("name", NOTHING)
def test_what_is_no_norm(name):
    assert find(NOTHING[name], "a", "b") == {}


def test_what_comes_after_a_norm_is_not_of_it():
    def norm(p, x):
        return p["c"] * traced.standardized(p, x) + p["d"] + p["k"][: x.shape[0]]

    assert find(norm, *"abcd") == LAYER
    # A table of positions, after a norm without a bias.
    found = find(lambda p, x: traced.plain(p, x) + p["d"][: x.shape[0]], "a", d=shape(6, 8))
    assert found == {"a": ("scale", "rms")}


def test_factors_of_cosine_attention():
    def apply(p, x):
        heads = x.reshape(4, 2, 4)
        heads = heads / jnp.linalg.norm(heads, axis=-1, keepdims=True)
        return heads * p["by head"] * p["of all"]

    params = {"by head": shape(2, 1), "of all": shape()}
    assert not lnt.discover_norms(apply, params, X).norms
    # One for each entry is an RMSNorm's scale, but for a constant factor.
    assert list(lnt.discover_norms(apply, params | {"by head": shape(4)}, X)) == ["by head"]


def test_latents_are_normalised_too():
    """Parameters go through a LayerNorm like activations; only kernels by their length do not."""

    def apply(p, x):
        return x @ traced.standardized(p, p["latents"]).T

    params = {"a": shape(8), "b": shape(8), "latents": shape(3, 8)}
    assert list(lnt.discover_norms(apply, params, X)) == ["a", "b"]
