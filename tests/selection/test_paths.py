"""Key paths: the same names whatever the containers."""

import dataclasses

import flax.core
import jax
import numpy as np
import pytest
from flax import nnx, struct
from hypothesis import given
from hypothesis import strategies as st

from lntune_jax.errors import TreeError
from lntune_jax.paths import flatten, join


@struct.dataclass
class Point:
    scale: object
    inner: object


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Value:
    value: object


def paths(tree):
    return [join(leaf.path) for leaf in flatten(tree)[0]]


def test_containers_give_the_same_paths():
    nested = {"a": {"b": [1.0, {"c": 2.0}]}}
    assert paths(nested) == ["a.b.0", "a.b.1.c"]
    assert paths({"a.b.0": 1.0, "a/b/1/c": 2.0}) == ["a.b.0", "a.b.1.c"]
    assert paths(flax.core.freeze(nested)) == ["a.b.0", "a.b.1.c"]
    assert paths({"a": Point(1.0, (2.0, None))}) == ["a.scale", "a.inner.0"]
    assert paths({0: {1: 1.0}}) == ["0.1"]
    assert paths(None) == []
    assert paths(1.0) == [""]


def test_a_value_of_one_s_own_is_a_segment_and_a_variable_s_is_not():
    state = nnx.state(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    assert paths(state) == ["bias", "kernel"]
    assert paths({"kernel": Value(1.0)}) == ["kernel.value"]
    assert paths({"value": {"value": 1.0}}) == ["value.value"]


def test_a_leading_params_collection_is_dropped():
    assert paths({"params": {"a": 1.0}, "cache": {"a": 2.0}}) == ["cache.a", "a"]
    assert paths({"model": {"params": 1.0}}) == ["model.params"]
    flags = [leaf.is_parameter for leaf in flatten({"params": {"a": 1.0}, "own": {"a": 2.0}})[0]]
    assert flags == [False, True]


def test_parameters_and_other_state_of_nnx():
    model = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
    flags = {leaf.path[-1]: leaf.is_parameter for leaf in flatten(nnx.state(model))[0]}
    assert flags == {"bias": True, "mean": False, "scale": True, "var": False}


@pytest.mark.parametrize(
    "tree", [{"a.b": 1, "a": {"b": 2}}, {"a/b": 1, "a.b": 2}, [{"x": 1, "params.x": 1}, 2]]
)
def test_two_leaves_with_one_path_are_an_error(tree):
    if isinstance(tree, list):
        assert len(set(paths(tree))) == 3
        return
    with pytest.raises(TreeError, match=r"two leaves.*'a\.b'.*rename"):
        flatten(tree)


def test_keys_that_cannot_be_sorted_are_an_error():
    with pytest.raises(TreeError, match="JAX cannot flatten the tree"):
        flatten({"a": 1.0, 1: 2.0})


keys = st.text("abc", min_size=1, max_size=2)


@given(st.recursive(st.just(np.float32(1)), lambda t: st.dictionaries(keys, t, max_size=3)))
def test_nested_and_flat_dicts_agree(tree):
    leaves = flatten(tree)[0]
    flat = {join(leaf.path): leaf.value for leaf in leaves}
    if "" not in flat and "params" not in str(tree):
        assert sorted(paths(flat)) == sorted(flat)
