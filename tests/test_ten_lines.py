"""The README's table against ten lines of Optax: what it says of them is so, and of ours too."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lntune_jax as lnt
from tests.support.small import loss_fn, make_batch, make_params, relax


def freeze_mask(params, word="ln_"):
    """`True` where a leaf is frozen: what people write, a word to look for in the path."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: word not in jax.tree_util.keystr(path), params
    )


def ten_lines(params, rate=1e-2, tx=None):
    tx = relax(optax.selective_transform(tx or optax.adam(rate), freeze_mask=freeze_mask(params)))
    return tx, tx.init(params)


def step_of(tx):
    @jax.jit
    def step(params, state, batch):
        grads = jax.grad(loss_fn)(params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def flops_of(step, *args):
    return step.lower(*args).compile().cost_analysis()["flops"]


def size_of(state):
    return sum(x.size for x in jax.tree.leaves(state))


def test_a_bfloat16_norm_does_not_move():
    params = make_params("bfloat16")
    tx, state = ten_lines(params, rate=1e-4)
    tuned, _ = step_of(tx)(params, state, make_batch())
    np.testing.assert_array_equal(*(each["ln_f"]["scale"] for each in (params, tuned)))
    trainable, frozen = lnt.partition_params(params, lnt.LNTuningConfig())
    own = relax(optax.adam(1e-4))
    state = lnt.TrainState.create(trainable, own)
    state, _ = lnt.make_train_step(loss_fn, own)(state, frozen, make_batch())
    assert np.all(np.asarray(state.trainable["ln_f.scale"]) != 1)


def test_clipping_outside_brings_the_weight_gradients_back():
    params, batch = make_params(), make_batch()
    tx, state = ten_lines(params)
    plain = flops_of(step_of(tx), params, state, batch)
    clipped = relax(optax.chain(optax.clip_by_global_norm(1.0), tx))
    outside = flops_of(step_of(clipped), params, clipped.init(params), batch)
    assert outside > 1.3 * plain
    trainable, frozen = lnt.partition_params(params, lnt.LNTuningConfig())
    own = relax(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)))

    @jax.jit
    def step(trainable, state, frozen, batch):
        _, grads = lnt.value_and_grad(loss_fn)(trainable, frozen, batch)
        updates, state = own.update(grads, state, trainable)
        return optax.apply_updates(trainable, updates), state

    assert flops_of(step, trainable, own.init(trainable), frozen, batch) < 1.1 * plain


def test_freeze_in_a_chain_keeps_all_moments_and_decays_what_is_frozen():
    params = make_params()
    mask = freeze_mask(params)
    before = relax(optax.chain(optax.freeze(mask), optax.adamw(1e-2, weight_decay=0.1)))
    state = before.init(params)
    assert size_of(state) > 2 * size_of(params)
    tuned, _ = step_of(before)(params, state, make_batch())
    kernels = (each["layers"]["0"]["up"]["kernel"] for each in (params, tuned))
    assert np.all(np.not_equal(*kernels))
    trainable, _ = lnt.partition_params(params, lnt.LNTuningConfig())
    assert size_of(optax.adamw(1e-2).init(trainable)) < 0.1 * size_of(state)


def test_a_word_in_a_path_takes_in_what_is_no_norm():
    params = {
        "norm": {"scale": jnp.ones(4), "bias": jnp.zeros(4)},
        "norm_proj": {"kernel": jnp.ones((4, 4)), "bias": jnp.zeros(4)},
        "pre_layrnorm": {"scale": jnp.ones(4), "bias": jnp.zeros(4)},  # CLIP writes it so
        "dense": {"kernel": jnp.ones((4, 4))},
    }
    by_norm, by_layernorm = (freeze_mask(params, word) for word in ("norm", "layernorm"))
    assert not by_norm["norm_proj"]["kernel"]
    assert by_layernorm["pre_layrnorm"]["scale"]
    trainable, _ = lnt.partition_params(params, lnt.LNTuningConfig())
    assert sorted(trainable) == [
        *("norm.bias", "norm.scale"),
        *("pre_layrnorm.bias", "pre_layrnorm.scale"),
    ]


def test_a_word_that_matches_nothing_is_silent():
    params = make_params()
    tx = relax(optax.selective_transform(optax.adam(1e-2), freeze_mask=freeze_mask(params, "nrom")))
    tuned, _ = step_of(tx)(params, tx.init(params), make_batch())
    jax.tree.map(np.testing.assert_array_equal, tuned, params)
    with (
        pytest.warns(lnt.errors.UnmatchedPatternWarning, match="ln_f"),
        pytest.raises(lnt.LNTuningError),
    ):
        lnt.partition_params(params, lnt.LNTuningConfig(target_modules=["ln_nrom"]))


def test_a_frozen_minus_zero_outside_jit():
    params = {"ln_f": {"scale": jnp.ones(2)}, "dense": {"kernel": jnp.full((2, 2), -0.0)}}
    tx, state = ten_lines(params)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
    assert not np.signbit(optax.apply_updates(params, updates)["dense"]["kernel"]).any()
    trainable, frozen = lnt.partition_params(params, lnt.LNTuningConfig())
    assert np.signbit(lnt.merge_params(trainable, frozen)["dense"]["kernel"]).all()


def test_one_nan_loss_spoils_the_state():
    params, bad = make_params(), make_batch()
    bad["x"] = bad["x"].at[0, 0].set(jnp.nan)
    tx, state = ten_lines(params)
    tuned, _ = step_of(tx)(params, state, bad)
    assert np.isnan(np.asarray(tuned["ln_f"]["scale"])).any()
    trainable, frozen = lnt.partition_params(params, lnt.LNTuningConfig())
    own = relax(optax.adam(1e-2))
    step = lnt.make_train_step(loss_fn, own, skip_nonfinite=True)
    state, metrics = step(lnt.TrainState.create(trainable, own), frozen, bad)
    assert not metrics["finite"]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.opt_state))
    np.testing.assert_array_equal(state.trainable["ln_f.scale"], params["ln_f"]["scale"])
