"""Dropout with explicit keys: no key means that nothing is dropped.

A key is split at every level of the model, and `None` splits into `None`, so that the same code
runs in training and out of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def split_key(key: Any, count: int) -> list[Any]:
    """Give `count` keys that differ, or as many `None` for no key."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def dropout(
    x: Float[Array, "*axes"], rate: float, key: Any, drawn: tuple[int, ...] | None = None
) -> Float[Array, "*axes"]:
    """Zero each entry with probability `rate` and scale the others up to keep the mean.

    Args:
        x: what is dropped from.
        rate: the probability.
        key: a JAX random key, or `None` for no dropout.
        drawn: a larger shape, whose first entries along each axis `x` is: the same are dropped
            as if all were there.
    """
    if key is None or rate == 0:
        return x
    if rate == 1:
        return jnp.zeros_like(x)
    keep = jax.random.bernoulli(key, 1 - rate, drawn or x.shape)
    if drawn is not None:
        keep = keep[tuple(slice(size) for size in x.shape)]
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))
