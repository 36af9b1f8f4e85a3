"""Attention of every position to every position that the mask leaves.

JAX's own function does the work; it knows no dropout on the probabilities, so that training with
such dropout takes the explicit path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from ._dropout import dropout

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


def attend(
    query: Float[Array, "batch length heads size"],
    key: Float[Array, "batch length heads size"],
    value: Float[Array, "batch length heads size"],
    mask: Bool[Array, "batch length"] | None,
    rate: float,
    dropout_rng: Any,
) -> Float[Array, "batch length heads size"]:
    """Mix the values, by the softmax of the scaled products of queries and keys.

    Args:
        query: what each position looks for.
        key: what each position offers.
        value: what each position passes on.
        mask: true where a position may be attended to; `None` for everywhere.
        rate: the share of probabilities dropped when there is a key for it.
        dropout_rng: a JAX random key, or `None` for no dropout.
    """
    spread = None if mask is None else mask[:, None, None, :]
    if dropout_rng is None or rate == 0:
        # JAX's function promotes inside; the caller's strict mode is not meant for it.
        with jax.numpy_dtype_promotion("standard"):
            return jax.nn.dot_product_attention(query, key, value, mask=spread)
    return attend_with_dropout(query, key, value, spread, rate, dropout_rng)


def attend_with_dropout(
    query: Float[Array, "batch length heads size"],
    key: Float[Array, "batch length heads size"],
    value: Float[Array, "batch length heads size"],
    mask: Bool[Array, "batch 1 1 length"] | None,
    rate: float,
    dropout_rng: Any,
) -> Float[Array, "batch length heads size"]:
    """Do the same in full, with the softmax in float32 and dropout on its result."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    scores = scores / query.shape[-1] ** 0.5
    if mask is not None:
        # The lowest finite number: a row with nothing to attend to stays free of NaN.
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    probabilities = dropout(jax.nn.softmax(scores, axis=-1), rate, dropout_rng)
    return jnp.einsum("bhqk,bkhd->bqhd", probabilities.astype(value.dtype), value)
