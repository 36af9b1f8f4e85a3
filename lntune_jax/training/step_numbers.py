"""What a training step does with numbers: tests, clipping, averaging; all of it on the device."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..errors import TreeError


def are_finite(tree: Any) -> jax.Array:
    """Whether every number of a tree is finite."""
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def is_all_zero(grads: Any) -> jax.Array:
    """Whether every number of a tree is zero."""
    return ~jnp.any(jnp.stack([jnp.any(leaf != 0) for leaf in jax.tree.leaves(grads)]))


def clip(grads: Any, norm: jax.Array, largest: float) -> Any:
    """Gradients scaled down to a global norm, where theirs is larger."""
    scale = jnp.minimum(1.0, largest / jnp.maximum(norm, 1e-12))
    return jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), grads)


def average(ema: Any, trainable: Any, decay: float) -> Any:
    """The moving average after one more step.

    Raises:
        TreeError: there is none.
    """
    if ema is None:
        raise TreeError(
            "ema_decay is given, but the state has no ema: TrainState.create(..., ema=True)"
        )
    return jax.tree.map(
        lambda mean, new: decay * mean + (1 - decay) * new.astype(mean.dtype), ema, trainable
    )
