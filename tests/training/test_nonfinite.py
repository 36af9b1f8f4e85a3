"""Losses and gradients that are no numbers: flagged in every step, and skipped where asked."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lntune_jax as lnt
from tests.support.small import loss_fn, make_batch, make_params, relax

CONFIG = lnt.LNTuningConfig(modules_to_save=["classifier"])


def start(tx, seed=0, **options):
    trainable, frozen = lnt.partition_params(make_params(seed=seed), CONFIG)
    return lnt.TrainState.create(trainable, tx, **options), frozen


def spoil(batch, row=0, value=np.nan):
    return {**batch, "x": batch["x"].at[row].set(value)}


def same(left, right):
    left, right = jax.tree.leaves(left), jax.tree.leaves(right)
    return all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_row_is_flagged_and_the_good_ones_are_not(value, accumulate):
    tx = relax(optax.adam(1e-2))
    step = lnt.make_train_step(loss_fn, tx, CONFIG, accumulate=accumulate)
    state, frozen = start(tx)
    flags = []
    for batch in (make_batch(), spoil(make_batch(), value=value)):
        state, metrics = step(state, frozen, batch)
        flags.append(bool(metrics["finite"]))
    assert flags == [True, False]
    assert step.compilations() == 1


def test_an_infinite_gradient_of_a_finite_loss_is_flagged():
    params = {"ln": {"scale": jnp.zeros(2)}}
    trainable, frozen = lnt.partition_params(params, lnt.LNTuningConfig())
    tx = optax.sgd(0.1)
    step = lnt.make_train_step(lambda p: jnp.sqrt(p["ln"]["scale"]).sum(), tx, skip_nonfinite=True)
    state, metrics = step(lnt.TrainState.create(trainable, tx), frozen)
    assert float(metrics["loss"]) == 0
    assert np.isinf(metrics["grad_norm"])
    assert not metrics["finite"]
    assert state.trainable["ln.scale"].tolist() == [0, 0]


def test_an_update_that_overflows_is_flagged_though_loss_and_gradient_are_finite():
    params = {"ln": {"scale": jnp.ones(2)}}
    trainable, frozen = lnt.partition_params(params, lnt.LNTuningConfig())
    tx = optax.sgd(1e38)
    step = lnt.make_train_step(lambda p: 1e3 * p["ln"]["scale"].sum(), tx)
    _, metrics = step(lnt.TrainState.create(trainable, tx), frozen)
    assert np.isfinite([metrics["loss"], metrics["grad_norm"]]).all()
    assert not metrics["finite"]


def test_a_skipped_step_changes_nothing_but_the_count():
    tx = relax(optax.adamw(1e-2))
    options = {"ema_decay": 0.9, "skip_nonfinite": True, "donate": False}
    step = lnt.make_train_step(loss_fn, tx, CONFIG, **options)
    state, frozen = start(tx, ema=True, rng=None)
    state, _ = step(state, frozen, make_batch())
    after, metrics = step(state, frozen, spoil(make_batch(seed=2)))
    assert not metrics["finite"]
    assert int(after.step) == int(state.step) + 1
    kept = ("trainable", "opt_state", "ema")
    assert all(same(getattr(after, name), getattr(state, name)) for name in kept)
    after, metrics = step(after, frozen, make_batch(seed=3))
    assert metrics["finite"]
    assert not same(after.trainable, state.trainable)
    assert step.compilations() == 1


def test_skipping_leaves_good_steps_bit_for_bit():
    tx = relax(optax.adam(1e-2))
    ends = []
    for batches in ([0, 1, 2], [0, None, 1, None, 2]):
        step = lnt.make_train_step(loss_fn, tx, CONFIG, skip_nonfinite=True)
        state, frozen = start(tx)
        for seed in batches:
            batch = spoil(make_batch()) if seed is None else make_batch(seed=seed)
            state, _ = step(state, frozen, batch)
        ends.append(state.trainable)
    assert same(*ends)


@pytest.mark.parametrize("at_once", [None, 2])
@pytest.mark.parametrize("skips", [False, True])
def test_one_adapter_without_numbers_does_not_touch_the_others(at_once, skips):
    """Batches of their own: the same run with and without a bad row in the second adapter's."""
    tx, count = relax(optax.adam(1e-2)), 3
    ends = []
    for bad in (False, True):
        step = lnt.make_multi_step(
            loss_fn,
            tx,
            CONFIG,
            adapters=count,
            own_batches=True,
            adapters_at_once=at_once,
            skip_nonfinite=skips,
        )
        state, frozen = start(tx)
        many = lnt.stack_states([state] * count)
        for turn in range(3):
            batches = [make_batch(seed=10 * turn + number) for number in range(count)]
            if bad and turn == 1:
                batches[1] = spoil(batches[1])
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
            many, metrics = step(many, frozen, stacked)
            expected = [True] * count
            if bad and (turn == 1 or (turn == 2 and not skips)):
                expected[1] = False
            assert metrics["finite"].tolist() == expected
        ends.append(lnt.unstack_states(many))
    for number in (0, 2):
        assert same(ends[0][number], ends[1][number])
    finite = [np.isfinite(leaf).all() for leaf in ends[1][1].trainable.values()]
    assert all(finite) == skips


def test_the_flag_costs_no_matrix_product_and_no_wait():
    """The compiled step has the same products with and without skipping."""
    tx = relax(optax.adam(1e-2))
    texts = []
    for skips in (False, True):
        step = lnt.make_train_step(loss_fn, tx, CONFIG, skip_nonfinite=skips)
        state, frozen = start(tx)
        texts.append(step.lower(state, frozen, make_batch()).as_text())
    products = [text.count("dot_general") for text in texts]
    assert products[0] == products[1] > 0
    assert "callback" not in "".join(texts)
