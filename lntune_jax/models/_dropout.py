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


def dropout(x: Float[Array, "*axes"], rate: float, key: Any) -> Float[Array, "*axes"]:
    """Zero each entry with probability `rate` and scale the others up to keep the mean."""
    if key is None or rate == 0:
        return x
    if rate == 1:
        return jnp.zeros_like(x)
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))
