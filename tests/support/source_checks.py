"""What must hold for the models of every library, and the code of a page run as it is written."""

import re

import jax
import numpy as np
import optax

import lntune_jax as lnt
from tests.support.paths import ROOT
from tests.support.small import relax

PAGES = ROOT / "docs/sources"


def is_array(leaf):
    return hasattr(leaf, "dtype") and hasattr(leaf, "shape")


def to_numpy(leaf):
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.array(jax.random.key_data(leaf) if is_key else leaf)


def read_arrays(tree):
    """The array leaves of a tree on the host, by key path: copies, which no later step changes."""
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): to_numpy(leaf) for path, leaf in found if is_array(leaf)}


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        assert found[path].dtype == array.dtype, path
        assert found[path].tobytes() == array.tobytes(), path


def assert_moved_only(before, after, paths):
    """Every leaf whose path is in `paths` has changed, and no bit of any other."""
    assert before.keys() == after.keys()
    moved = {path for path in before if before[path].tobytes() != after[path].tobytes()}
    assert moved == set(paths)


def tune(params, loss_fn, config, steps=15, rate=3e-2, **selection):
    """Trains in the library's own step: `(trainable, frozen)` and the losses."""
    trainable, frozen = lnt.partition_params(params, config, **selection)
    tx = relax(optax.adam(rate))
    step = lnt.make_train_step(loss_fn, tx, config)
    state, losses = lnt.TrainState.create(trainable, tx), []
    for _ in range(steps):
        state, metrics = step(state, frozen)
        losses.append(float(metrics["loss"]))
    return lnt.partition.Partition(state.trainable, frozen), losses


def check_source(tmp_path, params, fresh, loss_fn, apply, config=None, **selection):
    """Tunes norms, saves them, and restores them into a fresh model that computes the same.

    Args:
        tmp_path: where the adapter goes.
        params: the model's parameters, or its arrays.
        fresh: the same, made anew from the same seed.
        loss_fn: loss of a tree of parameters.
        apply: outputs of a tree of parameters; compiled here, once.
        config: which leaves train; by default every norm.
        **selection: what `partition_params` takes besides.

    Returns:
        The paths of the trainable leaves, sorted.
    """
    config = config or lnt.LNTuningConfig()
    before = read_arrays(params)
    halves, losses = tune(params, loss_fn, config, **selection)
    assert losses[-1] < 0.95 * losses[0], losses
    assert_same_bits(read_arrays(params), before)  # the base itself is as it was
    merged = lnt.merge_params(*halves)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    labels = lnt.label_params(params, config, **selection)
    named, _ = jax.tree_util.tree_flatten_with_path(labels)
    trains = {jax.tree_util.keystr(path) for path, label in named if label == "trainable"}
    assert_moved_only(before, read_arrays(merged), trains)
    norms = {"norms": selection["norms"]} if "norms" in selection else {}
    path = lnt.save_adapter(tmp_path / "adapter", halves[0], config, base=params, **norms)
    restored = lnt.restore_adapter(path, fresh)
    assert_same_bits(read_arrays(restored), read_arrays(merged))
    outputs = jax.jit(apply)
    np.testing.assert_array_equal(np.asarray(outputs(restored)), np.asarray(outputs(merged)))
    assert np.any(np.asarray(outputs(restored)) != np.asarray(outputs(params)))
    return sorted(halves.trainable)


def run_page(name, names):
    """Runs the code of a page from top to bottom, with the names that a reader has already."""
    blocks = re.findall(r"```python\n(.*?)```", (PAGES / f"{name}.md").read_text(), re.DOTALL)
    assert blocks, name
    for block in blocks:
        with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs it
            exec(block, names)
    return names
