"""What a model returns, and the mean over the tokens that count.

The result is a pytree, so that jit, grad and vmap can pass it on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from ._cache import Cache


class ModelOutput(NamedTuple):
    """The arrays a model computed; `None` for those it has not.

    Attributes:
        last_hidden_state: (batch, length, hidden), of every model.
        pooler_output: (batch, hidden), of a bare model that has a pooler.
        logits: (batch, labels), (batch, length, labels) or (batch, length, vocabulary), of a
            model with a head.
        cache: of a decoder that was given one, with the keys and values of its inputs added.

    Example:
        >>> import jax
        >>> from lntune_jax.models import ModelOutput
        >>> jax.tree.map(abs, ModelOutput(logits=-1.0))
        ModelOutput(last_hidden_state=None, pooler_output=None, logits=1.0, cache=None)
    """

    last_hidden_state: Float[Array, "batch length hidden"] | None = None
    pooler_output: Float[Array, "batch hidden"] | None = None
    logits: Float[Array, "batch ..."] | None = None
    cache: Cache | None = None


def mean_pool(
    last_hidden_state: Float[Array, "batch length hidden"], attention_mask: Any = None
) -> Float[Array, "batch hidden"]:
    """Average the hidden states over the tokens that count, as sentence-transformers does.

    Args:
        last_hidden_state: (batch, length, hidden), floating point.
        attention_mask: (batch, length), nonzero where a token counts; `None` for everywhere.

    Returns:
        (batch, hidden) in the dtype of the hidden states, added up in float32. A row without
        any token gives zeros.

    Example:
        >>> import jax.numpy as jnp
        >>> from lntune_jax.models import mean_pool
        >>> mean_pool(jnp.array([[[1.0], [3.0], [100.0]]]), jnp.array([[1, 1, 0]]))
        Array([[2.]], dtype=float32)
    """
    exact = last_hidden_state.astype(jnp.float32)
    if attention_mask is None:
        return exact.mean(axis=-2).astype(last_hidden_state.dtype)
    weights = jnp.asarray(attention_mask).astype(jnp.bool_).astype(jnp.float32)[..., None]
    # A padded position may hold anything, NaN too: select, rather than multiply by zero.
    total = jnp.where(weights > 0, exact, jnp.zeros_like(exact)).sum(axis=-2)
    mean = total / jnp.maximum(weights.sum(axis=-2), 1e-9)
    return mean.astype(last_hidden_state.dtype)
