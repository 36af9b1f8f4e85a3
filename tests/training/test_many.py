"""Many adapters trained in one step: each as if it were alone, at the price of one."""

from __future__ import annotations

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lntune_jax as lnt
from lntune_jax.errors import TreeError, ZeroGradientWarning
from tests.support.small import loss_fn, make_batch, make_params, relax

CONFIG = lnt.LNTuningConfig(modules_to_save=["classifier"])
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1)


def optimizer(rate):
    return relax(optax.inject_hyperparams(optax.adamw)(learning_rate=rate, weight_decay=0.01))


def start(params=None, **options):
    """A state for each learning rate, and the frozen half."""
    params = make_params() if params is None else params
    trainable, frozen = lnt.partition_params(params, CONFIG)
    create = lnt.TrainState.create
    return [create(trainable, optimizer(rate), **options) for rate in RATES], frozen


def train_alone(states, frozen, batches, loss=loss_fn):
    step = lnt.make_train_step(loss, optimizer(0.0), donate=False)
    ends, losses = [], []
    for number, state in enumerate(states):
        own = []
        for batch in batches(number):
            state, metrics = step(state, frozen, batch)
            own.append(metrics["loss"])
        ends.append(state)
        losses.append(own)
    return ends, np.asarray(losses).T


def shared(number):
    return [make_batch(seed=seed) for seed in range(1, 6)]


def different(number):
    return [make_batch(seed=seed + 100 * number) for seed in range(1, 6)]


@pytest.mark.parametrize("at_once", [None, 1, 2, 5])
@pytest.mark.parametrize("batches", [shared, different])
def test_each_adapter_ends_where_it_ends_alone(batches, at_once):
    states, frozen = start()
    expected, expected_losses = train_alone(states, frozen, batches)
    own = batches is different
    step = lnt.make_multi_step(
        loss_fn, optimizer(0.0), adapters=5, own_batches=own, adapters_at_once=at_once
    )
    many, losses = lnt.stack_states(states), []
    for number in range(5):
        batch = shared(0)[number]
        if own:
            parts = [batches(adapter)[number] for adapter in range(5)]
            batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
        many, metrics = step(many, frozen, batch)
        losses.append(metrics["loss"])
        assert metrics["grad_norm"].shape == (5,)
    np.testing.assert_allclose(np.asarray(losses), expected_losses, rtol=1e-5)
    for state, alone in zip(lnt.unstack_states(many), expected, strict=True):
        chex.assert_trees_all_close(state.trainable, alone.trainable, rtol=1e-4, atol=1e-6)
        chex.assert_trees_all_equal(state.opt_state.hyperparams, alone.opt_state.hyperparams)
    assert step.compilations() == 1
    moved = [float(jnp.abs(state.trainable["ln_f.scale"] - 1).max()) for state in expected]
    assert moved == sorted(moved)  # The learning rates differ in what they do.
    assert moved[-1] > 20 * moved[0]


def test_finished_adapters_stay_as_they_are():
    states, frozen = start(ema=True)
    active = np.array([True, False, True, False, True])
    step = lnt.make_multi_step(
        loss_fn, optimizer(0.0), adapters=5, ema_decay=0.9, clip_norm=1.0, accumulate=2
    )
    many = lnt.stack_states(states)
    for mask in (np.ones(5, bool), active, active):
        before = jax.tree.map(np.asarray, many)
        many, _ = step(many, frozen, make_batch(), active=mask)
    for place, (old, new) in enumerate(
        zip(lnt.unstack_states(before), lnt.unstack_states(many), strict=True)
    ):
        assert int(new.step) == (3 if active[place] else 1)
        if active[place]:
            assert np.abs(new.trainable["ln_f.scale"] - old.trainable["ln_f.scale"]).max() > 0
        else:
            chex.assert_trees_all_equal(old, new)
    assert step.compilations() == 1


def test_each_adapter_draws_from_its_own_key():
    def noisy(params, batch, rng):
        return loss_fn(params, batch) + jax.random.normal(rng, ())

    trainable, frozen = lnt.partition_params(make_params(), CONFIG)
    states = [
        lnt.TrainState.create(trainable, optimizer(1e-3), rng=jax.random.key(seed))
        for seed in (0, 0, 1)
    ]
    step = lnt.make_multi_step(noisy, optimizer(0.0), adapters=3)
    _, metrics = step(lnt.stack_states(states), frozen, make_batch(), active=np.ones(3, bool))
    first, second, third = metrics["loss"].tolist()
    assert first == pytest.approx(second)
    assert abs(first - third) > 1e-3
    _, expected = train_alone(states, frozen, lambda number: [make_batch()], noisy)
    np.testing.assert_allclose(metrics["loss"], expected[0], rtol=1e-5)


def products(lowered):
    """The work of every matrix product of the program: entries of the result by those summed."""
    found = []
    for line in lowered.as_text().splitlines():
        if "stablehlo.dot_general" not in line:
            continue
        contracted = [int(axis) for axis in re.findall(r"contracting_dims = \[([\d, ]*)\]", line)]
        shapes = [
            [int(size) for size in shape.split("x")[:-1]]
            for shape in re.findall(r"tensor<([^>]+)>", line)
        ]
        left, _, result = shapes
        found.append(int(np.prod(result)) * left[contracted[0]])
    return found


def test_the_matrix_products_are_those_of_one_adapter_on_all_rows():
    # The norms alone: a saved head is a matrix of its own for each adapter.
    config = lnt.LNTuningConfig()
    trainable, frozen = lnt.partition_params(make_params(), config)
    state = lnt.TrainState.create(trainable, optimizer(1e-3))
    alone = lnt.make_train_step(loss_fn, optimizer(0.0)).lower(state, frozen, make_batch(4 * 16))
    many = lnt.make_multi_step(loss_fn, optimizer(0.0), adapters=4).lower(
        lnt.stack_states([state] * 4), frozen, make_batch(16)
    )
    expected = products(alone)
    # What comes before the first norm is one for all, and so may be less.
    assert len(expected) == len(products(many)) > 5
    assert sorted(products(many)) == sorted(expected)


def test_a_zero_gradient_names_the_adapters():
    def loss(params, batch):
        return jnp.where(batch > 0, params["ln_f"]["scale"].sum(), 0.0)

    states, frozen = start()
    step = lnt.make_multi_step(loss, optimizer(0.0), adapters=5, own_batches=True)
    with pytest.warns(ZeroGradientWarning, match="of adapter 1, 3 was exactly zero in step 1"):
        step(lnt.stack_states(states), frozen, jnp.array([1.0, 0.0, 1.0, 0.0, 1.0]))


def test_refusals():
    states, frozen = start()
    with pytest.raises(TreeError, match="needs a list of states"):
        lnt.stack_states([])
    wide = make_params(classes=3)
    with pytest.raises(
        TreeError,
        match=r"0 and 1 differ .*classifier\.bias' is \(2,\) of float32 and \(3,\)",
    ):
        lnt.stack_states([states[0], start(wide)[0][0]])
    with pytest.raises(TreeError, match="not several adapters along its first axis"):
        lnt.unstack_states(states[0])
    step = lnt.make_multi_step(loss_fn, optimizer(0.0), adapters=4)
    with pytest.raises(TreeError, match="not 4 adapters along its first axis"):
        step(lnt.stack_states(states), frozen, make_batch())
    step = lnt.make_multi_step(loss_fn, optimizer(0.0), adapters=5, own_batches=True)
    with pytest.raises(TreeError, match=r"batch's leaf '0\.x' has the shape \(16, 32\)"):
        step(lnt.stack_states(states), frozen, make_batch())
    with pytest.raises(TreeError, match=r"active has the shape \(2,\); expected \(5,\)"):
        step(lnt.stack_states(states), frozen, make_batch(), active=[True, False])
    alone = lnt.make_train_step(loss_fn, optimizer(0.0))
    with pytest.raises(lnt.LNTuningError, match="active= goes with make_multi_step"):
        alone(states[0], frozen, make_batch(), active=[True])
    for options, message in (
        ({"adapters": True}, "adapters must be a whole number of 1 or more, not True"),
        ({"adapters": 0}, "adapters must be a whole number of 1 or more, not 0"),
        ({"adapters": 2, "adapters_at_once": 1.5}, "adapters_at_once must be a whole number"),
        ({"adapters": 2, "own_batches": 1}, "own_batches must be True or False, not 1"),
    ):
        with pytest.raises(lnt.LNTuningError, match=message):
            lnt.make_multi_step(loss_fn, optimizer(0.0), **options)
