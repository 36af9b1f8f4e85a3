"""The training step: compiled once, nothing copied, everything inside the trainable half."""

import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lntune_jax as lnt
from lntune_jax.errors import ConfigError, TreeError, ZeroGradientWarning
from tests.support.small import apply, loss_fn, make_batch, make_params, relax

CONFIG = lnt.LNTuningConfig(modules_to_save=["classifier"])


def start(tx, params=None, **options):
    trainable, frozen = lnt.partition_params(params or make_params(), CONFIG)
    return lnt.TrainState.create(trainable, tx, **options), frozen


def nbytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def test_learns_and_moves_only_the_trainable_half():
    tx = relax(optax.adam(1e-2))
    params = make_params()
    step, (state, frozen) = lnt.make_train_step(loss_fn, tx, CONFIG), start(tx, params)
    before = jax.tree.map(np.array, params)
    losses = []
    for seed in range(30):
        state, metrics = step(state, frozen, make_batch(64, seed))
        losses.append(float(metrics["loss"]))
    after, _ = jax.tree.flatten_with_path(lnt.merge_params(state.trainable, frozen))
    for (key, leaf), was in zip(after, jax.tree.leaves(before), strict=True):
        path = ".".join(str(each.key) for each in key)
        assert np.array_equal(leaf, was) == (path not in state.trainable), path
    assert losses[-1] < 0.6 * losses[0]
    assert int(state.step) == 30
    assert not bool(metrics["zero_gradient"])
    assert float(metrics["grad_norm"]) > 0


def test_compiles_once_however_many_steps():
    tx = relax(optax.adam(1e-2))
    traced = chex.assert_max_traces(loss_fn, n=2)
    step = lnt.make_train_step(traced, tx, CONFIG, ema_decay=0.9)
    state, frozen = start(tx, ema=True, rng=None)
    for seed in range(5):
        state, _ = step(state, frozen, make_batch(seed=seed))
    assert step.compilations() == 1
    step(state, frozen, make_batch(8))
    assert step.compilations() == 2


def test_the_frozen_half_is_neither_donated_nor_returned_nor_copied():
    tx = relax(optax.adam(1e-2))
    step, (state, frozen) = lnt.make_train_step(loss_fn, tx, CONFIG), start(tx)
    batch = make_batch()
    memory = step.lower(state, frozen, batch).compile().memory_analysis()
    own, kilobyte = nbytes(state), 1024
    assert memory.output_size_in_bytes <= own + kilobyte  # the state and a few scalars
    assert memory.alias_size_in_bytes <= own + kilobyte  # and only it is donated
    assert memory.alias_size_in_bytes >= nbytes(state.trainable)
    assert memory.argument_size_in_bytes >= nbytes(frozen)
    # Doubling what is frozen must not add to the temporaries: no copy of it is made.
    wide = jax.tree.map(lambda leaf: leaf, frozen) | {"unused": jnp.ones((512, 512))}
    again = step.lower(state, wide, batch).compile().memory_analysis()
    assert again.temp_size_in_bytes == memory.temp_size_in_bytes
    step(state, frozen, batch)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(frozen))


def test_no_weight_gradient_is_computed():
    """Matmul FLOPs: forward 2N, activation gradients 2N, weight gradients of the head only."""
    tx = relax(optax.sgd(1.0))
    params, batch = make_params(), make_batch()
    step = lnt.make_train_step(loss_fn, tx)
    trainable, frozen = lnt.partition_params(params, lnt.LNTuningConfig())
    state = lnt.TrainState.create(trainable, tx)

    def count_dots(lowered):
        return lowered.as_text().count("stablehlo.dot_general")

    forward = count_dots(jax.jit(loss_fn).lower(params, batch))
    full = count_dots(jax.jit(jax.grad(loss_fn)).lower(params, batch))
    ours = count_dots(step.lower(state, frozen, batch))
    assert (forward, full) == (5, 15)  # 5 matmuls, and 5 + 5 backward
    assert ours == forward + 5  # only activation gradients


def test_the_state_passed_in_is_a_copy_of_the_caller_s_leaves():
    params = make_params()
    tx = relax(optax.sgd(1e-2))
    step, (state, frozen) = lnt.make_train_step(loss_fn, tx, CONFIG), start(tx, params)
    step(state, frozen, make_batch())
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    assert state.trainable["ln_f.scale"].is_deleted()


def test_without_donation_the_old_state_stays():
    tx = relax(optax.sgd(1e-2))
    step, (state, frozen) = lnt.make_train_step(loss_fn, tx, donate=False), start(tx)
    step(state, frozen, make_batch())
    assert not state.trainable["ln_f.scale"].is_deleted()


def test_accumulation_equals_the_whole_batch():
    tx = relax(optax.adam(1e-2))
    batch = make_batch(16)
    ends = []
    for parts in (1, 4):
        step = lnt.make_train_step(loss_fn, tx, CONFIG, accumulate=parts)
        state, frozen = start(tx)
        state, metrics = step(state, frozen, batch)
        ends.append((state.trainable, metrics["loss"], metrics["grad_norm"]))
    chex.assert_trees_all_close(*ends, rtol=1e-4, atol=1e-6)


def test_accumulation_stacks_aux_and_splits_keys():
    def noisy(params, batch, rng):
        return loss_fn(params, batch), jax.random.uniform(rng)

    tx = relax(optax.sgd(1e-2))
    step = lnt.make_train_step(noisy, tx, has_aux=True, accumulate=4)
    state, frozen = start(tx, rng=jax.random.key(0))
    state, first = step(state, frozen, make_batch())
    state, second = step(state, frozen, make_batch())
    values = np.concatenate([first["aux"], second["aux"]])
    assert len(set(values.tolist())) == 8


def test_clipping_acts_on_the_trainable_gradient_alone():
    tx = relax(optax.sgd(1.0))
    state, frozen = start(tx)
    before = jax.tree.map(np.asarray, state.trainable)
    _, grads = lnt.value_and_grad(loss_fn)(state.trainable, frozen, make_batch())
    step = lnt.make_train_step(loss_fn, tx, clip_norm=1e-3)
    state, metrics = step(state, frozen, make_batch())
    moved = jax.tree.map(lambda new, old: np.asarray(new) - old, state.trainable, before)
    assert float(metrics["grad_norm"]) == pytest.approx(float(optax.tree.norm(grads)), rel=1e-5)
    assert float(optax.tree.norm(moved)) == pytest.approx(1e-3, rel=1e-2)


def test_the_moving_average_lives_in_the_trainable_half():
    tx = relax(optax.sgd(1e-1))
    step = lnt.make_train_step(loss_fn, tx, CONFIG, ema_decay=0.5)
    state, frozen = start(tx, ema=True)
    first = np.asarray(state.trainable["ln_f.scale"])
    state, _ = step(state, frozen, make_batch())
    expected = 0.5 * first + 0.5 * np.asarray(state.trainable["ln_f.scale"])
    np.testing.assert_allclose(state.ema["ln_f.scale"], expected, rtol=1e-6)
    assert state.ema.keys() == state.trainable.keys()
    merged = lnt.merge_params(state.ema, frozen)
    assert apply(merged, make_batch()["x"]).shape == (16, 2)


def test_a_zero_gradient_is_reported_and_names_the_step():
    def constant_after_two(params, batch):
        return loss_fn(params, batch) * batch["on"].astype(jnp.float32).mean()

    tx = relax(optax.sgd(1e-2))
    step, (state, frozen) = lnt.make_train_step(constant_after_two, tx), start(tx)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            state, metrics = step(state, frozen, make_batch() | {"on": jnp.ones(16)})
    with pytest.warns(ZeroGradientWarning, match="exactly zero in step 3"):  # noqa: PT031
        state, metrics = step(state, frozen, make_batch() | {"on": jnp.zeros(16)})
        assert bool(metrics["zero_gradient"])
        step(state, frozen, make_batch() | {"on": jnp.ones(16)})


def test_a_zero_gradient_in_the_first_step_is_reported_at_once():
    tx = relax(optax.sgd(1e-2))
    params = make_params()
    step, (state, frozen) = lnt.make_train_step(lambda p, b: loss_fn(params, b), tx), start(tx)
    with pytest.warns(ZeroGradientWarning, match="does not depend on them"):
        step(state, frozen, make_batch())


def clipped_adamw(norm):
    return lnt.adamw(lnt.LNTuningConfig(), 1e-3, clip_norm=norm)


@pytest.mark.parametrize(
    ("loss", "has_aux", "message"),
    [
        (lambda p, b: (loss_fn(p, b), 1), False, "pass has_aux=True"),
        (loss_fn, True, r"returns \(loss, aux\)"),
        (lambda p, b: None, False, "scalar, not NoneType"),
        (lambda p, b: {"loss": 1.0}, False, "scalar, not dict"),
        (lambda p, b: jnp.zeros((), jnp.int32), False, "scalar, not int32"),
    ],
)
def test_a_loss_that_is_none_is_refused(loss, has_aux, message):
    state, frozen = start(optax.sgd(1.0))
    step = lnt.make_train_step(loss, optax.sgd(1.0), has_aux=has_aux)
    with pytest.raises(lnt.LNTuningError, match=message):
        step(state, frozen, make_batch())


def test_a_frozen_leaf_that_is_no_array_is_named():
    params = make_params() | {"activation": jax.nn.gelu}
    state, frozen = start(optax.sgd(1.0), params)
    with pytest.raises(TreeError, match=r"'activation' is no array.*eqx\.partition"):
        lnt.make_train_step(loss_fn, optax.sgd(1.0))(state, frozen, make_batch())


def test_an_equinox_model_trains_with_its_functions_split_off():
    import equinox as eqx

    class Model(eqx.Module):
        first: eqx.nn.LayerNorm
        mlp: eqx.nn.MLP  # holds its activation function

    model = Model(eqx.nn.LayerNorm(4), eqx.nn.MLP(4, 2, 8, 2, key=jax.random.key(0)))
    params, static = eqx.partition(model, eqx.is_array)

    def square(params, x):
        whole = eqx.combine(params, static)
        return jnp.mean(jax.vmap(lambda row: whole.mlp(whole.first(row)))(x) ** 2)

    trainable, frozen = lnt.partition_params(params, lnt.LNTuningConfig())
    tx = relax(optax.adam(1e-2))
    step, state = lnt.make_train_step(square, tx), lnt.TrainState.create(trainable, tx)
    losses = []
    for _ in range(3):
        state, metrics = step(state, frozen, jax.random.normal(jax.random.key(1), (8, 4)))
        losses.append(float(metrics["loss"]))
    assert set(state.trainable) == {"first.weight", "first.bias"}
    assert losses[2] < losses[0]


def test_the_step_can_be_traced():
    tx = relax(optax.sgd(1e-1))
    step, (state, frozen) = lnt.make_train_step(loss_fn, tx), start(tx)
    batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(make_batch, (8, 8), (1, 2)))
    end, metrics = jax.lax.scan(lambda s, b: step(s, frozen, b), state, batches)
    assert metrics["loss"].shape == (2,)
    assert int(end.step) == 2


@pytest.mark.parametrize("name", ["prodigy", "reduce_on_plateau", "schedule_free_adamw"])
def test_contributed_optimizers(name):
    tx = getattr(optax.contrib, name)()
    tx = relax(optax.chain(optax.sgd(1e-1), tx) if name == "reduce_on_plateau" else tx)
    step, (state, frozen) = lnt.make_train_step(loss_fn, tx), start(tx)
    before = np.asarray(state.trainable["ln_f.scale"])
    for seed in range(2):
        state, _ = step(state, frozen, make_batch(seed=seed))
    assert np.any(before != np.asarray(state.trainable["ln_f.scale"]))


def test_the_average_of_narrow_leaves_is_kept_in_float32():
    params = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), make_params())
    trainable, frozen = lnt.partition_params(params, lnt.LNTuningConfig(param_dtype=None))
    tx = optax.sgd(1e-1)
    state = lnt.TrainState.create(trainable, tx, ema=True)
    step = lnt.make_train_step(loss_fn, relax(tx), ema_decay=0.999, accumulate=2)
    state, _ = step(state, frozen, make_batch())
    assert state.trainable["ln_f.scale"].dtype == jnp.bfloat16
    assert state.ema["ln_f.scale"].dtype == jnp.float32
    assert np.any(np.asarray(state.ema["ln_f.scale"]) != 1)


def test_refusals():
    tx = optax.sgd(1.0)
    with pytest.raises(ConfigError, match=r"config\.replace\(inference_mode=False\)"):
        lnt.make_train_step(loss_fn, tx, CONFIG.replace(inference_mode=True))
    for parts in (0, 2.0, "2"):
        with pytest.raises(lnt.LNTuningError, match="accumulate must be a whole number"):
            lnt.make_train_step(loss_fn, tx, accumulate=parts)
    for make in (lambda norm: lnt.make_train_step(loss_fn, tx, clip_norm=norm), clipped_adamw):
        with pytest.raises(
            lnt.LNTuningError, match=r"clip_norm must be a number that is more than 0, not -1"
        ):
            make(-1)
    with pytest.raises(lnt.LNTuningError, match="ema_decay must be"):
        lnt.make_train_step(loss_fn, tx, ema_decay=1.0)
    state, frozen = start(tx)
    with pytest.raises(TreeError, match="accumulate=3 equal parts"):
        lnt.make_train_step(loss_fn, tx, accumulate=3)(state, frozen, make_batch(16))
    with pytest.raises(TreeError, match=r"TrainState\.create\(\.\.\., ema=True\)"):
        lnt.make_train_step(loss_fn, tx, ema_decay=0.5)(state, frozen, make_batch(16))
    with pytest.raises(lnt.LNTuningError, match=r"scalar, not float32 of shape \(16, 2\)"):
        lnt.make_train_step(lambda p, b: apply(p, b["x"]), tx)(state, frozen, make_batch(16))


def test_keyword_arguments_and_aux_of_value_and_grad():
    trainable, frozen = lnt.partition_params(make_params(), CONFIG)

    def loss_with_aux(params, batch, *, scale):
        return scale * loss_fn(params, batch), "aux"

    (loss, aux), grads = lnt.value_and_grad(loss_with_aux, has_aux=True)(
        trainable, frozen, make_batch(), scale=2.0
    )
    assert aux == "aux"
    assert grads.keys() == trainable.keys()
    assert float(loss) == pytest.approx(2 * float(loss_fn(make_params(), make_batch())))


def test_a_lowered_step_is_called_as_the_step_is():
    tx = relax(optax.sgd(0.1))
    step, batch = lnt.make_train_step(loss_fn, tx, donate=False), make_batch()
    state, frozen = start(tx)
    compiled = step.lower(state, frozen, batch).compile()
    one, other = compiled(state, frozen, batch)[0], step(state, frozen, batch)[0]
    for path, leaf in one.trainable.items():
        np.testing.assert_array_equal(leaf, other.trainable[path])
