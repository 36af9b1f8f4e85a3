"""The model's inputs: checked before any arithmetic, and completed where they were left out.

Whatever can be known without reading values (rank, type of number, length) is checked at once,
also under jit, where it costs nothing when the compiled function runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp

from lntune_jax.errors import ModelError

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int

    from ._settings import Settings


class Inputs(NamedTuple):
    """Arrays ready for the encoder; the mask is `None` where every position counts."""

    input_ids: Int[Array, "batch length"]
    attention_mask: Bool[Array, "batch length"] | None
    token_type_ids: Int[Array, "batch length"]
    position_ids: Int[Array, "rows length"]


def prepare_inputs(
    settings: Settings,
    input_ids: Any,
    attention_mask: Any,
    token_type_ids: Any,
    position_ids: Any,
) -> Inputs:
    """Check the inputs and fill in the ones that are `None`.

    Raises:
        ModelError: an input has the wrong rank, shape or type of number, or is longer than the
            position table.
    """
    tokens = tokens_of(input_ids)
    if position_ids is None:
        _check_length(settings, tokens.shape[1])
        positions = _positions(settings, tokens)
    else:
        positions = integers("position_ids", position_ids)
        check_shape("position_ids", positions, tokens.shape, (1, tokens.shape[1]))
    if token_type_ids is None:
        types = jnp.zeros_like(tokens)
    else:
        types = integers("token_type_ids", token_type_ids)
        check_shape("token_type_ids", types, tokens.shape)
    if attention_mask is not None:
        attention_mask = mask_of(attention_mask)
        check_shape("attention_mask", attention_mask, tokens.shape)
    return Inputs(tokens, attention_mask, types, positions)


def tokens_of(input_ids: Any) -> Int[Array, "batch length"]:
    """Give the tokens as 32-bit integers.

    Raises:
        ModelError: they are no integers, or not of two axes.
    """
    tokens = integers("input_ids", input_ids)
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise ModelError(
            f"input_ids has the shape {tokens.shape}; expected (batch, length), both at least 1"
        )
    return tokens


def integers(name: str, value: Any) -> Int[Array, "*axes"]:
    """Give an input as 32-bit integers, or refuse it."""
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ModelError(f"{name} holds {array.dtype} numbers; expected integers")
    return array.astype(jnp.int32)


def mask_of(value: Any) -> Bool[Array, "*axes"]:
    """Give an attention mask as booleans, or refuse it."""
    array = jnp.asarray(value)
    # A mask of floats may mean 0 and 1, or 0 and minus infinity: the opposite.
    if array.dtype != jnp.bool_ and not jnp.issubdtype(array.dtype, jnp.integer):
        raise ModelError(
            f"attention_mask holds {array.dtype} numbers; expected integers or booleans, "
            "1 where a token counts and 0 at padding"
        )
    return array.astype(jnp.bool_)


def check_shape(name: str, array: Array, *expected: tuple[int, ...]) -> None:
    """Refuse an input of another shape than these."""
    if array.shape not in expected:
        wanted = " or ".join(map(str, expected))
        raise ModelError(f"{name} has the shape {array.shape}; expected {wanted}, as input_ids")


def _check_length(settings: Settings, length: int) -> None:
    longest = settings.max_position_embeddings
    if settings.architecture.positions_follow_padding:
        longest -= settings.pad_token_id + 1
    if length > longest:
        raise ModelError(
            f"input_ids has {length} positions, the model's table holds {longest}; "
            "shorten the inputs (max_length in the tokenizer)"
        )


def _positions(settings: Settings, tokens: Int[Array, "batch length"]) -> Int[Array, "rows length"]:
    if not settings.architecture.positions_follow_padding:
        return jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
    counts = (tokens != settings.pad_token_id).astype(jnp.int32)
    # Padding itself keeps the padding id as its position.
    return jnp.cumsum(counts, axis=1) * counts + settings.pad_token_id
