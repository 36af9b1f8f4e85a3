"""Partition and merge: exact inverses, over arbitrary trees."""

import dataclasses

import flax.core
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import lntune_jax as lnt
from lntune_jax.errors import ConfigError, SelectionError, TreeError
from lntune_jax.paths import flatten, join
from tests.support.trees import norm, shape

VALUES = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1.0, -1.5, 3.14, 1e-45])
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.uint32, np.bool_]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Pair:
    scale: object
    child: object


@st.composite
def arrays(draw):
    dtype = draw(st.sampled_from(DTYPES))
    size = draw(st.sampled_from([(), (3,), (2, 3), (0,)]))
    values = draw(st.lists(st.sampled_from(list(VALUES)), min_size=6, max_size=6))
    with np.errstate(all="ignore"):
        array = np.resize(np.array(values), size).astype(dtype)
    return jnp.asarray(array) if draw(st.booleans()) else array


keys = st.sampled_from(["a", "ln_1", "norm", "scale", "bias", "weight", "kernel", "0", "head"])
leaves = st.one_of(arrays(), st.none(), st.just(3), st.just("text"), st.builds(dict))


def containers(children):
    dicts = st.dictionaries(keys, children, max_size=4)
    return st.one_of(
        dicts,
        dicts.map(flax.core.freeze),
        st.lists(children, max_size=3),
        st.lists(children, max_size=3).map(tuple),
        st.builds(Pair, children, children),
    )


@st.composite
def nnx_states(draw):
    kinds = st.sampled_from([nnx.Param, nnx.BatchStat, nnx.Cache])
    module = st.dictionaries(keys, st.builds(lambda kind, value: kind(value), kinds, arrays()))
    return nnx.State(draw(st.dictionaries(keys, module, min_size=1, max_size=3)))


inner_trees = st.recursive(leaves | nnx_states(), containers, max_leaves=12)
normal_norm = st.builds(
    lambda s, b: {"scale": s, "bias": b}, *[st.just(np.ones(3, np.float32))] * 2
)
trees = st.builds(lambda tree, ln: {"tree": tree, "ln_f": ln}, inner_trees, normal_norm)
configs = st.builds(
    lnt.LNTuningConfig,
    modules_to_save=st.sampled_from([None, ["head"], ["a"], ["tree"]]),
    exclude_modules=st.sampled_from([None, ["norm"], ".*ln_1.*"]),
    param_dtype=st.sampled_from([None, "float32"]),
)


def same_bits(one, two):
    if not hasattr(one, "dtype"):
        return one is two
    one, two = np.asarray(one), np.asarray(two)
    return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()


def try_partition(tree, config):
    """Partitions, or gives None where the config has nothing to say about this tree."""
    try:
        return lnt.partition_params(tree, config)
    except SelectionError:  # modules_to_save names a module whose leaves are all integers
        return None


@pytest.mark.filterwarnings("ignore::lntune_jax.errors.UnmatchedPatternWarning")
@pytest.mark.filterwarnings("ignore::lntune_jax.errors.UncertainNormWarning")
@given(trees, configs)
def test_merge_is_the_bitwise_inverse_of_partition(tree, config):
    halves = try_partition(tree, config)
    if halves is None:
        return
    merged = lnt.merge_params(*halves)
    assert jax.tree.structure(merged) == jax.tree.structure(tree)
    assert all(map(same_bits, jax.tree.leaves(merged), jax.tree.leaves(tree)))


@pytest.mark.filterwarnings("ignore::lntune_jax.errors.UnmatchedPatternWarning")
@pytest.mark.filterwarnings("ignore::lntune_jax.errors.UncertainNormWarning")
@given(trees, configs)
def test_every_leaf_is_in_exactly_one_half_and_frozen_ones_are_the_same_objects(tree, config):
    halves = try_partition(tree, config)
    if halves is None:
        return
    trainable, frozen = halves
    whole = {join(leaf.path): leaf.value for leaf in flatten(tree)[0]}
    kept = {join(leaf.path): leaf.value for leaf in flatten(frozen)[0]}
    assert kept.keys() | trainable.keys() == whole.keys()
    assert not kept.keys() & trainable.keys()
    assert all(kept[path] is whole[path] for path in kept)
    assert list(trainable) == [path for path in whole if path in trainable]  # the tree's order
    assert jax.tree.leaves(frozen) == [] or len(jax.tree.leaves(frozen)) == len(kept)


@pytest.mark.filterwarnings("ignore::lntune_jax.errors.UnmatchedPatternWarning")
@pytest.mark.filterwarnings("ignore::lntune_jax.errors.UncertainNormWarning")
@given(trees, configs)
def test_labels_report_and_partition_agree(tree, config):
    halves = try_partition(tree, config)
    if halves is None:
        return
    labels = lnt.label_params(tree, config)
    assert jax.tree.structure(labels) == jax.tree.structure(tree)
    labelled = {
        join(leaf.path)
        for leaf, label in zip(flatten(tree)[0], jax.tree.leaves(labels), strict=True)
        if label == "trainable"
    }
    report = lnt.report_params(tree, config)
    reported = {leaf.path for leaf in report.leaves if leaf.role in ("norm", "saved")}
    assert labelled == reported == set(halves.trainable)
    mask = jax.tree.map(lambda label: label == "trainable", labels)
    marks = lnt.merge_params(
        dict.fromkeys(halves.trainable, True), jax.tree.map(lambda leaf: False, halves.frozen)
    )
    assert jax.tree.leaves(marks) == jax.tree.leaves(mask)
    assert report.trainable == sum(leaf.size for leaf in halves.trainable.values())


def test_the_inputs_are_not_changed():
    tree = {"ln": {"scale": np.ones(3, np.float32)}, "rest": [np.ones(2)]}
    before = jax.tree.map(np.copy, tree)
    trainable, frozen = lnt.partition_params(tree, lnt.LNTuningConfig())
    lnt.merge_params({"ln.scale": np.zeros(3, np.float32)}, frozen)
    jax.tree.map(np.testing.assert_array_equal, tree, before)
    assert trainable["ln.scale"] is tree["ln"]["scale"]


def test_the_placeholder_says_what_was_taken_and_has_no_children():
    _, frozen = lnt.partition_params(
        {"ln": {"scale": jnp.ones(3, "bfloat16")}}, lnt.LNTuningConfig()
    )
    assert repr(frozen) == "{'ln': {'scale': Placeholder('ln.scale', bfloat16[3])}}"
    assert jax.tree.leaves(frozen) == []
    assert len({frozen["ln"]["scale"], frozen["ln"]["scale"]}) == 1


def test_numpy_stays_numpy_and_abstract_stays_abstract():
    config = lnt.LNTuningConfig()
    trainable, frozen = lnt.partition_params(
        {"ln": {"scale": np.ones(3, ml_dtypes.bfloat16)}}, config
    )
    assert isinstance(trainable["ln.scale"], np.ndarray)
    assert isinstance(lnt.merge_params(trainable, frozen)["ln"]["scale"], np.ndarray)
    tree = {"ln": {"scale": shape(3, dtype="bfloat16")}}
    trainable, frozen = lnt.partition_params(tree, config)
    assert trainable["ln.scale"].dtype == jnp.float32
    assert lnt.merge_params(trainable, frozen) == tree


def test_works_under_jit_grad_vmap_and_eval_shape():
    params = {"ln": {"scale": jnp.ones(3)}, "w": jnp.arange(3.0)}
    trainable, frozen = lnt.partition_params(params, lnt.LNTuningConfig())

    @jax.jit
    def loss(trainable, frozen):
        merged = lnt.merge_params(trainable, frozen)
        return jnp.sum(merged["ln"]["scale"] * merged["w"])

    assert loss(trainable, frozen) == 3.0
    np.testing.assert_array_equal(jax.grad(loss)(trainable, frozen)["ln.scale"], [0.0, 1.0, 2.0])
    many = {"ln.scale": jnp.stack([jnp.zeros(3), jnp.ones(3)])}
    np.testing.assert_array_equal(jax.vmap(loss, (0, None))(many, frozen), [0.0, 3.0])
    halves = jax.jit(lambda p: lnt.partition_params(p, lnt.LNTuningConfig()))(params)
    np.testing.assert_array_equal(halves.trainable["ln.scale"], params["ln"]["scale"])


def test_merging_leaves_nothing_in_the_program():
    params = {"ln": {"scale": jnp.ones(3)}, "w": jnp.arange(3.0)}
    halves = lnt.partition_params(params, lnt.LNTuningConfig())
    assert jax.make_jaxpr(lambda t, f: lnt.merge_params(t, f))(*halves).eqns == []


def test_trainable_goes_through_optax():
    trainable, _ = lnt.partition_params({"ln": {"scale": jnp.ones(3)}}, lnt.LNTuningConfig())
    tx = optax.adamw(1e-2)
    with jax.numpy_dtype_promotion("standard"):  # Optax's own code needs it
        updates, _ = tx.update(trainable, tx.init(trainable), trainable)
    assert optax.apply_updates(trainable, updates)["ln.scale"][0] < 1


class TestErrors:
    config = lnt.LNTuningConfig()

    @property
    def tree(self):
        return {"ln": norm(), "fc": {"kernel": shape(4, 4)}}

    def test_in_neither_half(self):
        trainable, frozen = lnt.partition_params(self.tree, self.config)
        del trainable["ln.scale"]
        with pytest.raises(TreeError, match=r"'ln\.scale' are in neither half"):
            lnt.merge_params(trainable, frozen)

    def test_in_both_halves(self):
        trainable, _ = lnt.partition_params(self.tree, self.config)
        with pytest.raises(TreeError, match=r"'ln\.bias', 'ln\.scale' are in both halves"):
            lnt.merge_params(trainable, self.tree)

    def test_no_place(self):
        trainable, frozen = lnt.partition_params(self.tree, self.config)
        with pytest.raises(TreeError, match=r"'other' of trainable have no place"):
            lnt.merge_params(trainable | {"other": trainable["ln.scale"]}, frozen)

    def test_wrong_shape(self):
        trainable, frozen = lnt.partition_params(self.tree, self.config)
        with pytest.raises(TreeError, match=r"'ln\.scale' has shape \(5,\).*\(8,\)"):
            lnt.merge_params(trainable | {"ln.scale": shape(5)}, frozen)

    @pytest.mark.parametrize("junk", [None, 1.0, [1.0], np.ones(8, np.int32)])
    def test_no_floating_point_array(self, junk):
        trainable, frozen = lnt.partition_params(self.tree, self.config)
        with pytest.raises(TreeError, match=r"'ln\.scale' of trainable must be a floating"):
            lnt.merge_params(trainable | {"ln.scale": junk}, frozen)

    def test_marks_may_stand_for_arrays(self):
        trainable, frozen = lnt.partition_params(self.tree, self.config)
        marks = lnt.merge_params(dict.fromkeys(trainable, "norm"), frozen)
        assert marks["ln"] == {"scale": "norm", "bias": "norm"}

    def test_halves_the_wrong_way_round(self):
        trainable, frozen = lnt.partition_params(self.tree, self.config)
        with pytest.raises(TreeError):
            lnt.merge_params(frozen, trainable)
        with pytest.raises(TreeError, match="must be a dict of leaf paths, not tuple"):
            lnt.merge_params((trainable, frozen), frozen)

    def test_float64_needs_x64(self):
        with pytest.raises(ConfigError, match="jax_enable_x64"):
            lnt.partition_params(self.tree, lnt.LNTuningConfig(param_dtype="float64"))
