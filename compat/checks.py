"""What must hold of every source of models: selection, training, and the way of an adapter."""

from __future__ import annotations

import jax
import numpy as np

import lntune_jax as lnt
from lntune_jax.paths import flatten, join


def list_leaves(tree):
    """`{leaf path: array}` of all parameters of a tree."""
    return {join(leaf.path): leaf.value for leaf in flatten(tree)[0] if leaf.is_parameter}


def check_selection(params, config, modules, **given):
    """The trainable leaves are exactly the leaves of these modules; returns them."""
    trainable, _ = lnt.partition_params(params, config, **given)
    leaves = list_leaves(params)
    expected = [path for path in leaves if path.rpartition(".")[0] in modules]
    assert modules, "no module of the package's norm types was found"
    assert {path.rpartition(".")[0] for path in expected} == set(modules)
    assert sorted(trainable) == sorted(expected)
    assert len(leaves) > len(trainable)
    return trainable


def check_trace(apply_fn, params, batch, modules):
    """Tracing the function finds the leaves of these modules, and no other."""
    found = lnt.discover_norms(apply_fn, params, batch)
    assert not found.ambiguous
    assert not found.opaque
    expected = {path for path in list_leaves(params) if path.rpartition(".")[0] in modules}
    assert set(found) == expected


def check_moved(before, after, trainable):
    """Every trainable leaf has moved, and no other has changed in one bit."""
    before, after = list_leaves(before), list_leaves(after)
    assert before.keys() == after.keys()
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert moved == set(trainable)


def check_equal(left, right):
    """Two results are the same, bit for bit."""
    left, right = jax.tree.leaves(left), jax.tree.leaves(right)
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def check_tuning(
    record,
    make_params,
    config,
    modules,
    loss_fn,
    batch,
    directory,
    *,
    steps=20,
    learning_rate=1e-2,
    apply_fn=None,
    **given,
):
    """Tunes the norms with this library's step, and takes the adapter to a fresh base.

    Args:
        record: the fixture that keeps figures for the results page.
        make_params: builds the same parameters each time it is called.
        config: what trains.
        modules: the norms' module paths by the package's own types.
        loss_fn: `loss_fn(params, batch)`.
        batch: what it takes.
        directory: where the adapter goes.
        steps: how many steps.
        learning_rate: of AdamW.
        apply_fn: `apply_fn(params, batch)`, what a restored model must give alike.
        **given: `norms` for the library; None lets it go by names and shapes.
    """
    params = make_params()
    trainable = check_selection(params, config, modules, **given)
    check_trace(apply_fn or loss_fn, params, batch, modules)
    _, frozen = lnt.partition_params(params, config, **given)
    tx = lnt.adamw(config, learning_rate)
    step = lnt.make_train_step(loss_fn, tx, config, donate=False)
    state = lnt.TrainState.create(trainable, tx)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, frozen, batch)
        losses.append(float(metrics["loss"]))
    tuned = lnt.merge_params(state.trainable, frozen)
    after = float(loss_fn(tuned, batch))
    assert after < losses[0]
    check_moved(params, tuned, trainable)
    path = lnt.save_adapter(directory / "adapter", state.trainable, config, base=params, **given)
    restored = lnt.restore_adapter(path, make_params())
    output = jax.jit(apply_fn or loss_fn)
    check_equal(output(restored, batch), output(tuned, batch))
    record(
        norms=len(modules),
        selected=len(trainable),
        leaves=len(list_leaves(params)),
        before=losses[0],
        after=after,
        restored="equal",
    )
    return tuned
