"""Which trees are Linen's variables, in which form, and what odd keys and leaves do."""

import collections
import enum

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax.traverse_util import flatten_dict

import lntune_jax as lnt
from lntune_jax.errors import SelectionError, TreeError
from lntune_jax.paths import flatten, join


def paths(tree):
    return [join(leaf.path) for leaf in flatten(tree)[0]]


def select(tree, **given):
    return set(lnt.partition_params(tree, lnt.LNTuningConfig(), **given)[0])


def norm(width=4):
    return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}


class Called(nnx.Module):
    """Attributes called as Linen's collections are."""

    def __init__(self, rngs):
        for name in ("norm", "params", "cache", "batch_stats", "intermediates"):
            setattr(self, name, nnx.LayerNorm(4, rngs=rngs))


CALLED = {
    f"{name}.{leaf}"
    for name in ("norm", "params", "cache", "batch_stats", "intermediates")
    for leaf in ("scale", "bias")
}


def test_attributes_may_be_called_as_collections_are():
    model = Called(nnx.Rngs(0))
    assert select(model) == CALLED
    norms = lnt.norm_modules(model)
    assert select(nnx.state(model), norms=norms) == CALLED
    assert select(model, norms=["params", "cache"]) == {
        p for p in CALLED if p.startswith(("params", "cache"))
    }


def test_the_trainable_half_is_not_taken_for_linen_variables():
    model = Called(nnx.Rngs(0))
    trainable, frozen = lnt.partition_params(model, lnt.LNTuningConfig())
    leaves, _ = flatten(trainable)
    assert {join(leaf.path) for leaf in leaves} == CALLED
    assert all(leaf.is_parameter for leaf in leaves)
    merged = lnt.merge_params(trainable, frozen)
    assert isinstance(merged, Called)


def test_a_module_called_params_inside_a_list_or_a_tuple_stays():
    assert paths([{"params": norm()}]) == ["0.params.bias", "0.params.scale"]
    assert paths(({"params": {"ln": norm()}, "cache": {"a": 1.0}},))[0] == "0.cache.a"
    assert paths({"params": jnp.ones(3), "cache": {"ln": norm()}})[0] == "cache.ln.bias"


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i in range(2):
            x = nn.Dense(4, name=f"fc{i}")(x)
            x = nn.BatchNorm(use_running_average=True, name=f"norm{i}")(x)
            x = nn.LayerNorm(name=f"ln_{i}")(x)
        return nn.BatchNorm(use_running_average=True, name="final_norm")(x)


LINEN = {f"ln_{i}.{leaf}" for i in range(2) for leaf in ("scale", "bias")}
FORMS = {
    "nested": lambda v: v,
    "frozen": flax.core.freeze,
    "ordered": collections.OrderedDict,
    "joined by slashes": lambda v: flatten_dict(v, sep="/"),
    "tuples": flatten_dict,
    "tuples, frozen": lambda v: flax.core.freeze(flatten_dict(v)),
}


@pytest.mark.parametrize("form", FORMS)
def test_linen_variables_are_one_tree_in_every_form(form):
    variables = Net().init(jax.random.key(0), jnp.ones((1, 4)))
    tree = FORMS[form](variables)
    assert set(paths(tree)) == set(paths(variables))
    assert {join(x.path) for x in flatten(tree)[0] if not x.is_parameter} == {
        f"batch_stats.{name}.{leaf}"
        for name in ("norm0", "norm1", "final_norm")
        for leaf in ("mean", "var")
    }
    assert select(tree) == LINEN
    assert select(tree, norms=["ln_0"]) == {p for p in LINEN if p.startswith("ln_0")}
    assert select(tree, norms=["params/ln_0"]) == select(tree, norms=["params.ln_0"])
    assert select(tree, norms=[("params", "ln_0")]) == select(tree, norms=["ln_0"])
    trainable, frozen = lnt.partition_params(tree, lnt.LNTuningConfig())
    merged = lnt.merge_params(trainable, frozen)
    assert jax.tree.structure(merged) == jax.tree.structure(tree)


def test_linen_variables_joined_by_dots_keep_params_and_train_no_batch_norm():
    variables = Net().init(jax.random.key(0), jnp.ones((1, 4)))
    assert select(flatten_dict(variables, sep=".")) == {f"params.{path}" for path in LINEN}


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    "key",
    [0, -1, 10**30, 1.5, None, True, Colour.RED, (1, "a"), (), ((1, 2), 3), "", ".", "/", "..",
     "é/ß", "\U0001f600", "a\nb", "x" * 300, "a." * 200, b"bytes", frozenset({1})],
)  # fmt: skip
def test_any_key_is_a_path(key):
    tree = {
        key: {"ln_1": norm()},
        **({} if not isinstance(key, str) else {"other": {"kernel": jnp.ones((4, 4))}}),
    }
    trainable, frozen = lnt.partition_params(tree, lnt.LNTuningConfig())
    assert len(trainable) == 2
    assert all(path.endswith(("ln_1.scale", "ln_1.bias")) for path in trainable)
    merged = lnt.merge_params(trainable, frozen)
    assert jax.tree.structure(merged) == jax.tree.structure(tree)
    label = lnt.label_params({key: {"ln_1": norm()}}, lnt.LNTuningConfig())
    assert len(jax.tree.leaves(label)) == 2
    assert lnt.report_params(tree, lnt.LNTuningConfig()).trainable == 8


def test_an_empty_key_below_a_module():
    assert set(paths({"a": {"": 1.0, "b": 2.0}})) == {"a.", "a.b"}
    with pytest.raises(SelectionError, match="nothing trains"):
        select({"": jnp.ones(3)})


@pytest.mark.parametrize("keys", [("a", 1), (("a",), "b"), (None, "a"), (Colour.RED, "a")])
def test_keys_that_cannot_be_sorted_are_an_error(keys):
    with pytest.raises(TreeError, match="cannot flatten"):
        flatten(dict.fromkeys(keys, 1.0))


@pytest.mark.parametrize(
    "leaf",
    [
        [1.0, 2.0],
        "text",
        b"text",
        3,
        1j,
        object(),
        np.array([None, 1], dtype=object),
        np.array(["a", "b"]),
        np.array([(1, 2.0)], dtype=[("a", int), ("b", float)]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        jax.random.key(0),
        np.float32(1),
        lambda x: x,
    ],
    ids=lambda leaf: type(leaf).__name__,
)
def test_leaves_that_are_no_arrays_of_numbers_stay_frozen(leaf):
    tree = {"ln_1": norm(), "ln_2": {"scale": leaf, "bias": jnp.ones(4)}}
    assert select(tree) == {"ln_1.scale", "ln_1.bias"}


class ForeignDtype:
    def __str__(self):
        return "foreign.float32"


class ForeignArray:
    dtype, shape = ForeignDtype(), (4,)


def test_arrays_of_another_library_are_named():
    tree = {"fc": {"kernel": jnp.ones((4, 4))}, "ln": {"scale": ForeignArray()}}
    for function in (lnt.partition_params, lnt.label_params, lnt.report_params):
        for given in ({}, {"norms": ["ln"]}):
            with pytest.raises(TreeError, match=r"'ln\.scale'.*foreign\.float32.*numpy"):
                function(tree, lnt.LNTuningConfig(), **given)
