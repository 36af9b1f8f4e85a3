"""The state before the first step: owned, abstract where asked, and refused with reasons."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

import lntune_jax as lnt
from lntune_jax.errors import ArgumentError, CheckpointError, TreeError
from lntune_jax.training import finish_saves, open_checkpoints, restore_state, save_state

CONFIG = lnt.LNTuningConfig()


@pytest.fixture(autouse=True)
def _promotion():
    with jax.numpy_dtype_promotion("standard"):  # Optax mixes weak floats and integers
        yield


def make_halves():
    params = {"ln": {"scale": jnp.arange(1.0, 5), "bias": jnp.ones(4)}, "w": jnp.ones((4, 4))}
    return lnt.partition_params(params, CONFIG)


def loss_fn(params, x):
    return jnp.square(x * params["ln"]["scale"] + params["ln"]["bias"]).mean()


def take_steps(tx, count=3, **options):
    trainable, frozen = make_halves()
    step = lnt.make_train_step(loss_fn, tx, **options)
    state = lnt.TrainState.create(trainable, tx)
    losses = []
    for _ in range(count):
        state, metrics = step(state, frozen, jnp.ones((2, 4)))
        losses.append(float(metrics["loss"]))
    assert step.compilations() == 1
    return losses


def test_the_key_in_an_optimizer_is_still_the_caller_s():
    """Fault 14: `noisy_sgd(key=k)` keeps k itself in its state, which the step donates."""
    key = jax.random.key(0)
    tx = optax.noisy_sgd(0.1, key=key)
    take_steps(tx)
    take_steps(tx)  # a second state from the same optimizer
    jax.random.normal(key)


def test_two_states_from_one_add_noise():
    tx = optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(1)), optax.sgd(0.1))
    assert take_steps(tx) == take_steps(tx)


@pytest.mark.parametrize(
    "tx",
    [optax.contrib.cocob(), optax.lbfgs(linesearch=None)],
    ids=["cocob", "lbfgs without a line search"],
)
def test_an_init_that_returns_one_array_twice(tx):
    take_steps(tx)


def test_the_caller_s_arrays_survive_the_step():
    trainable, frozen = make_halves()
    tx = optax.trace(0.9)
    rng = jax.random.key(0)
    state = lnt.TrainState.create(trainable, tx, rng=rng, ema=True)
    step = lnt.make_train_step(lambda p, x, rng: loss_fn(p, x), tx, ema_decay=0.9)
    step(state, frozen, jnp.ones(4))
    jax.tree.map(np.asarray, (trainable, frozen))
    jax.random.normal(rng)


def with_count(count):
    """An optimizer whose state holds a number of the caller's making."""
    inner = optax.sgd(0.1)
    return optax.GradientTransformation(
        lambda params: (count, inner.init(params)),
        lambda grads, state, params=None: (
            jax.tree.map(lambda g: -0.1 * g, grads),
            (state[0] + 1, state[1]),
        ),
    )


@pytest.mark.parametrize("count", [0, np.float32(0), np.zeros(()), 0.0])
def test_numbers_in_an_optimizer_s_state(count):
    """Fault 19: no attribute sharding, no attribute dtype."""
    tx = with_count(count)
    take_steps(tx)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    trainable, _ = make_halves()
    placed = jax.device_put(trainable, NamedSharding(mesh, jax.P()))
    state = lnt.TrainState.create(placed, tx)
    assert all(isinstance(leaf.sharding, NamedSharding) for leaf in jax.tree.leaves(state))
    many = lnt.stack_states([lnt.TrainState.create(trainable, tx)] * 2)
    assert jax.tree.leaves(many.opt_state)[0].shape == (2,)


def test_stacking_states_that_hold_numbers():
    state = dataclasses.replace(lnt.TrainState.create(make_halves()[0], optax.sgd(0.1)), step=3)
    assert lnt.stack_states([state, state]).step.tolist() == [3, 3]


def test_sam_and_line_searches_work():
    """Fault 19: sam takes no value=, lbfgs wants value_fn=."""
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    take_steps(optax.contrib.sam(optax.sgd(0.1), adversary))
    opaque = optax.contrib.sam(optax.sgd(0.1), adversary, opaque_mode=True)
    assert take_steps(opaque)[-1] < take_steps(opaque)[0]
    for parts in (1, 2):
        losses = take_steps(optax.lbfgs(), count=4, accumulate=parts)
        assert losses[-1] < 0.2 * losses[0]


def test_an_optimizer_that_takes_other_arguments_is_refused_clearly():
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    chained = optax.chain(
        optax.clip_by_global_norm(1.0), optax.contrib.sam(optax.sgd(0.1), adversary)
    )
    with pytest.raises(ArgumentError, match=r"tx does not take .*'value'.*outside of"):
        take_steps(chained)


class TestAbstract:
    """Fault 3: no abstract state to restore into."""

    tx = optax.adamw(1e-3)

    def make(self, trainable):
        return lnt.TrainState.create(trainable, self.tx, rng=jax.random.key(0), ema=True)

    def test_eval_shape(self):
        trainable, _ = make_halves()
        state = jax.eval_shape(self.make, trainable)
        concrete = self.make(trainable)
        assert jax.tree.structure(state) == jax.tree.structure(concrete)
        for found, leaf in zip(jax.tree.leaves(state), jax.tree.leaves(concrete), strict=True):
            assert (found.shape, found.dtype) == (leaf.shape, leaf.dtype)

    def test_shape_dtype_structs(self):
        trainable, _ = make_halves()
        shapes = jax.eval_shape(lambda: trainable)
        state = self.make(shapes)
        assert state == jax.eval_shape(self.make, trainable)
        keys = jax.eval_shape(lambda: jax.random.key(0))
        assert lnt.TrainState.create(shapes, self.tx, rng=keys).rng == keys

    def test_shardings_are_those_of_a_state_made_from_arrays(self, tmp_path):
        mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
        split, whole = (NamedSharding(mesh, spec) for spec in (jax.P("fsdp"), jax.P()))
        trainable, frozen = make_halves()
        trainable = {
            "ln.scale": jax.device_put(trainable["ln.scale"], split),
            "ln.bias": jax.device_put(trainable["ln.bias"], whole),
        }
        concrete = self.make(trainable)
        shapes = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            for path, leaf in trainable.items()
        }
        abstract = self.make(shapes)
        for found, leaf in zip(jax.tree.leaves(abstract), jax.tree.leaves(concrete), strict=True):
            assert found.sharding == leaf.sharding
        step = lnt.make_train_step(lambda p, x, rng: loss_fn(p, x), self.tx, ema_decay=0.9)
        step.lower(abstract, frozen, jnp.ones(4))
        state, _ = step(concrete, frozen, jnp.ones(4))
        with open_checkpoints(tmp_path) as manager:
            save_state(manager, state)
            finish_saves(manager)
            restored, _ = restore_state(manager, abstract)
        for found, leaf in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
            assert found.sharding == leaf.sharding
            assert found.dtype == leaf.dtype
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                found, leaf = map(jax.random.key_data, (found, leaf))
            np.testing.assert_array_equal(found, leaf)

    def test_restoring_without_a_sharding(self, tmp_path):
        trainable, _ = make_halves()
        state = self.make(trainable)
        with open_checkpoints(tmp_path) as manager:
            save_state(manager, state)
            restored, _ = restore_state(manager, jax.eval_shape(self.make, trainable))
        np.testing.assert_array_equal(restored.trainable["ln.scale"], state.trainable["ln.scale"])


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path):
    """Fault 20: the leaves of Adam's and AdaBelief's states have the same names and shapes."""
    trainable, _ = make_halves()
    with open_checkpoints(tmp_path) as manager:
        save_state(manager, lnt.TrainState.create(trainable, optax.adam(1e-3)))
        other = lnt.TrainState.create(trainable, optax.adabelief(1e-3))
        with pytest.raises(CheckpointError, match=r"ScaleByBeliefState.*ScaleByAdamState"):
            restore_state(manager, other)
        assert restore_state(manager, lnt.TrainState.create(trainable, optax.adam(1e-3)))


def test_the_leaves_of_an_equinox_module_that_are_no_arrays_pass_through():
    """Fault 19: `shard_params` on a module that holds functions."""
    module = eqx.nn.MLP(4, 4, 8, 1, key=jax.random.key(0))
    mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    placed = lnt.shard_params(module, mesh)
    assert placed.activation is module.activation
    assert placed.layers[0].weight.sharding.spec == jax.P("fsdp", None)


class NoArray:
    """Like another library's tensor: shape and dtype, and nothing that JAX takes."""

    shape, dtype = (4,), "torch.float32"


def test_leaves_that_are_no_arrays_are_named():
    for wrong in (NoArray(), "text", None, [1.0]):
        with pytest.raises(TreeError, match=r"'ln\.scale'.* not an array"):
            lnt.TrainState.create({"ln.scale": wrong}, optax.sgd(0.1))
    strange = optax.GradientTransformation(lambda params: {"name": "adam"}, lambda *args: args)
    with pytest.raises(TreeError, match=r"opt_state\['name'\]"):
        lnt.TrainState.create(make_halves()[0], strange)


def test_wrong_arguments_say_what_to_pass():
    trainable, frozen = make_halves()
    create = lnt.TrainState.create
    tx = optax.sgd(0.1)
    whole = lnt.merge_params(trainable, frozen)
    with pytest.raises(TreeError, match="not the whole tree"):
        create(whole, tx)
    with pytest.raises(TreeError, match="must be a dict of leaf paths, not Partition"):
        create((lnt.partition_params(whole, CONFIG)), tx)
    with pytest.raises(ArgumentError, match=r"tx must be an Optax optimizer.*not float"):
        create(trainable, 0.1)
    with pytest.raises(ArgumentError, match=r"rng must be a key"):
        create(trainable, tx, rng=0)
    with pytest.raises(ArgumentError, match=r"ema must be True or False, not 0\.99.*ema_decay"):
        create(trainable, tx, ema=0.99)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": True}, "accumulate must be a whole number of 1 or more, not True"),
        ({"accumulate": 2.0}, "accumulate must be a whole number"),
        ({"accumulate": "2"}, "accumulate must be a whole number"),
        ({"clip_norm": True}, "clip_norm must be a number that is more than 0, not True"),
        ({"clip_norm": "1"}, "clip_norm must be a number that is more than 0"),
        ({"clip_norm": float("nan")}, "clip_norm must be a number that is more than 0"),
        ({"ema_decay": True}, "ema_decay must be a number that is at least 0"),
        ({"ema_decay": "0.9"}, "ema_decay must be a number that is at least 0"),
        ({"has_aux": 1}, "has_aux must be True or False"),
        ({"skip_nonfinite": "no"}, "skip_nonfinite must be True or False"),
        ({"donate": None}, "donate must be True or False"),
    ],
)
def test_wrong_arguments_of_a_step(options, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        lnt.make_train_step(loss_fn, optax.sgd(0.1), **options)
    assert isinstance(caught.value, ValueError)


def test_swapped_and_missing_arguments_of_a_step():
    tx = optax.sgd(0.1)
    trainable, frozen = make_halves()
    with pytest.raises(ArgumentError, match="tx must be an Optax optimizer"):
        lnt.make_train_step(loss_fn, loss_fn)
    with pytest.raises(ArgumentError, match="loss_fn must be a function"):
        lnt.make_train_step(tx, tx)
    with pytest.raises(ArgumentError, match="loss_fn must be a function"):
        lnt.value_and_grad(1.0)
    step = lnt.make_train_step(loss_fn, tx)
    with pytest.raises(TreeError, match=r"must be a TrainState, not dict.*TrainState\.create"):
        step(trainable, frozen, jnp.ones(4))
    state = lnt.TrainState.create(trainable, tx)
    with pytest.raises(TreeError, match="in both halves"):
        step(state, lnt.merge_params(trainable, frozen), jnp.ones(4))
    with pytest.raises(TreeError, match="needs a list of states"):
        lnt.stack_states(state)
    with pytest.raises(TreeError, match="needs a TrainState, not dict"):
        lnt.unstack_states(trainable)


def test_the_pure_step_goes_into_a_jit_of_one_s_own():
    tx = optax.sgd(0.1)
    trainable, frozen = make_halves()
    step = lnt.make_train_step(loss_fn, tx, donate=False)
    state = lnt.TrainState.create(trainable, tx)
    expected, _ = step(state, frozen, jnp.ones(4))
    found, _ = jax.jit(step.function)(state, frozen, jnp.ones(4))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
