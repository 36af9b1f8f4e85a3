"""What stands in the frozen half: one object for each leaf, and no array."""

import copy
import pickle
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax.errors import TreeError

CONFIG = lnt.LNTuningConfig()


def make_halves(count=2):
    layers = {
        f"layers_{i}": {"norm": {"scale": jnp.ones(4)}, "fc": {"kernel": jnp.ones((4, 4))}}
        for i in range(count)
    }
    return lnt.partition_params(layers, CONFIG)


def test_equal_placeholders_are_one_object():
    _, first = make_halves()
    _, second = make_halves()
    one = first["layers_0"]["norm"]["scale"]
    assert one is second["layers_0"]["norm"]["scale"]
    assert one != first["layers_1"]["norm"]["scale"]
    assert pickle.loads(pickle.dumps(first["layers_0"]["norm"]))["scale"] is one
    assert copy.deepcopy(one) is copy.copy(one) is one
    assert jax.tree.structure(first) == jax.tree.structure(second)
    with pytest.raises(AttributeError, match="cannot be changed"):
        one.shape = (5,)


def test_threads_make_one_object():
    make = type(make_halves()[1]["layers_0"]["norm"]["scale"])
    found, start = [], threading.Barrier(8)

    def run():
        start.wait()
        found.extend(make(f"own.{i}", (3,), "float32") for i in range(200))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(each) for each in found}) == 200


def test_a_jitted_function_is_not_traced_again_for_an_equal_frozen_half():
    traces = []

    @jax.jit
    def total(trainable, frozen):
        traces.append(1)
        return sum(leaf.sum() for leaf in jax.tree.leaves(lnt.merge_params(trainable, frozen)))

    for _ in range(3):
        total(*make_halves())
    assert len(traces) == 1


def test_hashing_and_comparing_call_no_python():
    _, frozen = make_halves()
    kind = type(frozen["layers_0"]["norm"]["scale"])
    assert kind.__eq__ is object.__eq__
    assert kind.__hash__ is object.__hash__


@pytest.mark.parametrize(
    "use",
    [
        lambda p: p.reshape(2, 2),
        lambda p: jnp.ones(4) * p,
        lambda p: jnp.asarray(p),
        lambda p: np.asarray(p),
        lambda p: np.ones(4) + p,
        lambda p: jnp.sin(p),
    ],
    ids=["method", "product", "jnp", "numpy", "sum", "sin"],
)
def test_using_the_frozen_half_says_to_merge(use):
    _, frozen = make_halves()
    with pytest.raises(TreeError, match=r"'layers_0\.norm\.scale'.*merge_params"):
        use(frozen["layers_0"]["norm"]["scale"])


def test_asking_what_it_is_breaks_nothing():
    placeholder = make_halves()[1]["layers_0"]["norm"]["scale"]
    for name in ("aval", "sharding", "_value", "__len__", "unbox"):
        assert not hasattr(placeholder, name)
    assert (placeholder.path, placeholder.shape) == ("layers_0.norm.scale", (4,))


def make_stack():
    params = {"layers": {"norm": {"scale": jnp.arange(6.0).reshape(3, 2)}, "w": jnp.ones((3, 2))}}
    return lnt.partition_params(params, CONFIG)


def test_vmap_and_scan_over_both_halves_of_stacked_params():
    """Fault 20: the placeholder keeps the stack's shape, each layer's leaf lacks an axis."""
    trainable, frozen = make_stack()

    def layer(trainable, frozen):
        merged = lnt.merge_params(trainable, frozen)["layers"]
        return (merged["norm"]["scale"] * merged["w"]).sum()

    expected = [1.0, 5.0, 9.0]
    np.testing.assert_array_equal(jax.vmap(layer)(trainable, frozen), expected)
    _, scanned = jax.lax.scan(lambda c, halves: (c, layer(*halves)), 0, (trainable, frozen))
    np.testing.assert_array_equal(scanned, expected)
    grads = jax.grad(lambda t: jax.vmap(layer)(t, frozen).sum())(trainable)
    np.testing.assert_array_equal(grads["layers.norm.scale"], np.ones((3, 2)))


def test_a_concrete_slice_and_another_shape_stay_errors():
    trainable, frozen = make_stack()
    with pytest.raises(TreeError, match=r"has shape \(2,\) in trainable, but \(3, 2\)"):
        lnt.merge_params({path: leaf[0] for path, leaf in trainable.items()}, frozen)
    wrong = {path: jnp.ones((2, 3)) for path in trainable}
    with pytest.raises(TreeError, match=r"has shape \(2, 3\)"):
        jax.jit(lnt.merge_params)(wrong, frozen)


def test_swapped_halves_and_other_mistakes():
    trainable, frozen = make_halves()
    with pytest.raises(TreeError, match=r"wrong way round.*merge_params\(trainable, frozen\)"):
        lnt.merge_params(frozen, trainable)
    whole = lnt.merge_params(trainable, frozen)
    with pytest.raises(TreeError, match=r"in both halves.*not the whole tree"):
        lnt.merge_params(trainable, whole)
    with pytest.raises(TreeError, match="must be a dict of leaf paths, not list"):
        lnt.merge_params(list(trainable), frozen)
