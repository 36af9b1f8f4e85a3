"""Optax inside the trainable half: every wrapper trains it, and holds no byte of the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import lntune_jax as lnt
from tests.support.small import loss_fn, make_batch, make_params, relax
from tests.support.source_checks import assert_moved_only, read_arrays, run_page

CONFIG = lnt.LNTuningConfig(modules_to_save=["classifier"])
SCALARS = 64  # counts, rates and flags, at most; the smallest leaf has 8 bytes, all 1,032


def label(trainable):
    return lnt.label_groups(trainable, CONFIG)


def group(scale, bias, head):
    return optax.multi_transform({"scale": scale, "bias": bias, "head": head}, label)


SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 2, 20)
OPTIMIZERS = {  # with how many times the bytes of the trainable leaves
    "adam": (optax.adam(1e-2), 2),
    "schedule": (optax.adamw(SCHEDULE, weight_decay=1e-3), 2),
    "inject_hyperparams": (optax.inject_hyperparams(optax.adam)(learning_rate=1e-2), 2),
    "MultiSteps": (optax.MultiSteps(optax.adam(2e-2), 3).gradient_transformation(), 3),
    "apply_if_finite": (optax.apply_if_finite(optax.adam(1e-2), 3), 2),
    "ema": (optax.chain(optax.adam(1e-2), optax.ema(0.9)), 3),
    "clip": (optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)), 2),
    "schedule free": (contrib.schedule_free_adamw(1e-2, warmup_steps=2), 2),
    "prodigy": (contrib.prodigy(1.0), 4),
}


def count_bytes(tree):
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def train(tx, steps=20, params=None, config=CONFIG):
    tx = relax(tx)
    trainable, frozen = lnt.partition_params(params or make_params(), config)

    @jax.jit
    def step(trainable, opt_state, frozen, batch):
        loss, grads = lnt.value_and_grad(loss_fn)(trainable, frozen, batch)
        updates, opt_state = tx.update(grads, opt_state, trainable)
        return optax.apply_updates(trainable, updates), opt_state, loss

    opt_state, losses = tx.init(trainable), []
    for _ in range(steps):
        trainable, opt_state, loss = step(trainable, opt_state, frozen, make_batch())
        losses.append(float(loss))
    assert step._cache_size() == 1
    return trainable, frozen, opt_state, losses


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_trains_the_half_and_holds_state_for_it_alone(name):
    tx, factor = OPTIMIZERS[name]
    params = make_params()
    before = read_arrays(params)
    # Prodigy starts from a rate of 1e-6 and finds its own.
    trainable, frozen, opt_state, losses = train(tx, 120 if name == "prodigy" else 20, params)
    assert losses[-1] < 0.9 * losses[0], losses
    after = read_arrays(lnt.merge_params(trainable, frozen))
    named = [f"['{path.replace('.', chr(39) + '][' + chr(39))}']" for path in trainable]
    assert_moved_only(before, after, named)
    size = count_bytes(trainable)
    assert size == 4 * 258
    whole = jax.eval_shape(lnt.make_optimizer(relax(tx), CONFIG).init, params)
    for state in (opt_state, whole):
        assert 0 <= count_bytes(state) - factor * size <= SCALARS


def test_groups_of_a_rate_each():
    params = make_params()
    tx = group(optax.sgd(1e-2), optax.sgd(1e-3), optax.sgd(1e-1))
    trainable, frozen = lnt.partition_params(params, CONFIG)
    _, grads = jax.jit(lnt.value_and_grad(loss_fn))(trainable, frozen, make_batch())
    updates, _ = tx.update(grads, tx.init(trainable))
    rates = {"scale": 1e-2, "bias": 1e-3, "head": 1e-1}
    labels = label(trainable)
    assert labels == {
        path: "head" if path.startswith("classifier") else path.rpartition(".")[2]
        for path in trainable
    }
    for path, update in updates.items():
        np.testing.assert_allclose(update, -rates[labels[path]] * grads[path], rtol=1e-6)


def test_muon_on_the_head_alone():
    tx = group(optax.adam(1e-2), optax.set_to_zero(), contrib.muon(1e-2))
    trainable, _, opt_state, losses = train(tx)
    assert losses[-1] < losses[0]
    sizes = {
        name: count_bytes(
            [leaf for path, leaf in trainable.items() if label(trainable)[path] == name]
        )
        for name in ("scale", "bias")
    }
    kernel, bias = (trainable[f"classifier.{name}"].nbytes for name in ("kernel", "bias"))
    expected = 2 * sizes["scale"] + kernel + 2 * bias  # one momentum for the matrix; Adam for 1-D
    assert 0 <= count_bytes(opt_state) - expected <= SCALARS
    for path, leaf in trainable.items():
        if label(trainable)[path] == "bias":
            assert not np.any(np.asarray(leaf))


def test_groups_by_names_and_in_other_trees():
    trainable = {"ln_1": {"weight": jnp.ones(4), "beta": jnp.ones(4)}, "fc": {"bias": jnp.ones(4)}}
    expected = {"ln_1": {"weight": "scale", "beta": "bias"}, "fc": {"bias": "head"}}
    assert lnt.label_groups(trainable, lnt.LNTuningConfig(modules_to_save=["fc"])) == expected
    # With a config the head is what it saves, and all else is of norms, whatever its name.
    flat = {"alpha.scale": jnp.ones(4), "alpha.bias": jnp.ones(4), "classifier.scale": jnp.ones(4)}
    assert list(label(flat).values()) == ["bias", "scale", "head"]  # sorted by path


def test_a_rate_that_changes_compiles_nothing_anew():
    tx = relax(optax.inject_hyperparams(optax.adam)(learning_rate=1e-2))
    step = lnt.make_train_step(loss_fn, tx, CONFIG, donate=False)
    trainable, frozen = lnt.partition_params(make_params(), CONFIG)
    state, _ = step(lnt.TrainState.create(trainable, tx), frozen, make_batch())
    state.opt_state.hyperparams["learning_rate"] = jnp.zeros((), jnp.float32)
    again, _ = step(state, frozen, make_batch())
    assert step.compilations() == 1
    for path, leaf in again.trainable.items():
        np.testing.assert_array_equal(leaf, state.trainable[path])


def test_a_step_that_is_not_finite_does_not_count():
    tx = relax(optax.apply_if_finite(optax.adam(1e-2), 3))
    trainable, frozen = lnt.partition_params(make_params(), CONFIG)
    step = lnt.make_train_step(loss_fn, tx, CONFIG, donate=False)
    state, batch = lnt.TrainState.create(trainable, tx), make_batch()
    bad, metrics = step(state, frozen, {**batch, "x": batch["x"] * jnp.nan})
    assert np.isnan(metrics["loss"])
    for path, leaf in bad.trainable.items():
        np.testing.assert_array_equal(leaf, trainable[path])
    good, _ = step(bad, frozen, batch)
    fresh, _ = step(state, frozen, batch)
    for path, leaf in good.trainable.items():
        np.testing.assert_array_equal(leaf, fresh.trainable[path])


def test_multi_steps_moves_on_every_third_step_alone():
    tx = relax(optax.MultiSteps(optax.sgd(0.1), 3).gradient_transformation())
    trainable, frozen = lnt.partition_params(make_params(), CONFIG)
    step = lnt.make_train_step(loss_fn, tx, CONFIG, donate=False)
    state, moved = lnt.TrainState.create(trainable, tx), []
    for _ in range(6):
        new, _ = step(state, frozen, make_batch())
        path = "ln_f.bias"
        moved.append(bool(jnp.any(new.trainable[path] != state.trainable[path])))
        state = new
    assert moved == [False, False, True] * 2


def test_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"params": make_params(), "loss_fn": loss_fn, "batch": make_batch()}
    names = run_page("optax", names)
    assert names["step"]._cache_size() == 1  # "nothing is compiled again"
    saved = lnt.load_adapter("adapter").trainable
    np.testing.assert_array_equal(saved["ln_f.scale"], names["average"]["ln_f.scale"])
    assert np.any(saved["ln_f.scale"] != np.asarray(names["tuned"]["ln_f.scale"]))
