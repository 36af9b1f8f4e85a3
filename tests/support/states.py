"""Training states whose every bit matters, and steps of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lntune_jax as lnt


def make_tx() -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.masked(
            optax.adamw(optax.linear_schedule(1e-2, 0, 10)), {"a.scale": True, "b": False}
        ),
    )


def make_state(seed: int = 0, dtype: Any = jnp.bfloat16, **options: Any) -> lnt.TrainState:
    trainable = {
        "a.scale": jax.random.normal(jax.random.key(seed), (4,)).astype(dtype),
        "b": jnp.array([-0.0, 1e-40, jnp.nan], jnp.float32),
    }
    rng = jax.random.key(seed + 7)
    return lnt.TrainState.create(trainable, make_tx(), rng=rng, ema=True, **options)


def advance(state: lnt.TrainState) -> lnt.TrainState:
    key = jax.random.fold_in(state.rng, state.step)
    gradients = {
        name: jax.random.normal(key, leaf.shape, leaf.dtype)
        for name, leaf in state.trainable.items()
    }
    with jax.numpy_dtype_promotion("standard"):  # Optax mixes the two dtypes
        updates, opt_state = make_tx().update(gradients, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
    ema = jax.tree.map(lambda new, old: new.astype(old.dtype), trainable, state.ema)
    return lnt.TrainState(state.step + 1, trainable, opt_state, state.rng, ema)


def assert_same_state(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert type(one) is type(other)
        assert one.dtype == other.dtype
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
