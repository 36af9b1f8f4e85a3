"""The model's inputs: checked before any arithmetic, completed, and turned into who sees whom.

Whatever can be known without reading values (rank, type of number, length) is checked at once,
also under jit, where it costs nothing when the compiled function runs. A decoder's positions are
columns unless they are given, as in PyTorch's transformers; with segment ids they begin anew in
each segment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from lntune_jax.errors import ModelError

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int

    from .types import Cache


class Inputs(NamedTuple):
    """Arrays ready for the encoder; the mask is `None` where every position counts."""

    input_ids: Int[Array, "batch length"]
    attention_mask: Bool[Array, "batch length"] | None
    token_type_ids: Int[Array, "batch length"]
    position_ids: Int[Array, "rows length"]


def prepare_encoder_inputs(
    input_ids: Any,
    attention_mask: Any,
    token_type_ids: Any,
    position_ids: Any,
    *,
    table: int | None,
    padding: int | None = None,
) -> Inputs:
    """Check the inputs and fill in the ones that are `None`.

    Args:
        input_ids: the tokens.
        attention_mask: 1 where a token counts.
        token_type_ids: which text of a pair each belongs to.
        position_ids: where each is in its text.
        table: how many positions the model has a vector for; `None` where it computes them.
        padding: the id of padding, where positions count what is no padding, from behind this id;
            `None` where they are the columns.

    Raises:
        ModelError: an input has the wrong rank, shape or type of number, or is longer than the
            position table.
    """
    tokens = tokens_of(input_ids)
    if position_ids is None:
        if table is not None:
            _check_length(tokens, table if padding is None else table - padding - 1)
        positions = _positions(tokens, padding)
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


def refuse_types(token_type_ids: Any, model_type: str) -> None:
    """Refuse token types, of an architecture which has none.

    Raises:
        ModelError: there are some.
    """
    if token_type_ids is not None:
        raise ModelError(
            f"token_type_ids were given, which {model_type} does not have: leave them out "
            "(return_token_type_ids=False in the tokenizer)"
        )


def _check_length(tokens: Int[Array, "batch length"], longest: int) -> None:
    if tokens.shape[1] > longest:
        raise ModelError(
            f"input_ids has {tokens.shape[1]} positions, the model's table holds {longest}; "
            "shorten the inputs (max_length in the tokenizer)"
        )


def _positions(
    tokens: Int[Array, "batch length"], padding: int | None
) -> Int[Array, "rows length"]:
    if padding is None:
        return jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
    counts = (tokens != padding).astype(jnp.int32)
    # Padding itself keeps the padding id as its position.
    return jnp.cumsum(counts, axis=1) * counts + padding


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


class DecoderInputs(NamedTuple):
    """Arrays ready for the layers.

    Attributes:
        input_ids: the tokens.
        position_ids: where each is in its text.
        attention_mask: true for a token that others may see; `None` for all.
        segments: a number for each run of tokens that see one another only; `None` for one run.
        slots: with a cache, where each token's keys and values go.
        cache: with a cache, the one after this call, keys and values still the old ones.
    """

    input_ids: Int[Array, "batch length"]
    position_ids: Int[Array, "rows length"]
    attention_mask: Bool[Array, "batch length"] | None
    segments: Int[Array, "rows length"] | None
    slots: Int[Array, "batch length"] | None = None
    cache: Cache | None = None

    def mask(
        self, window: int | None, explicit: bool = False
    ) -> Bool[Array, "_ 1 length slots"] | None:
        """Give what each token sees in a layer with this window; `None` for all before it.

        Args:
            window: how many tokens, itself included; `None` for all before it.
            explicit: whether `None` is no answer, since the window varies in one program.
        """
        if self.cache is not None and self.slots is not None:
            places = jnp.arange(self.cache.valid.shape[1], dtype=jnp.int32)[None]
            return sees(self.slots, places, window) & self.cache.valid[:, None, None, :]
        if self.attention_mask is None and self.segments is None and not explicit:
            return None
        columns = jnp.arange(self.input_ids.shape[1], dtype=jnp.int32)[None]
        mask = sees(columns, columns, window)
        if self.attention_mask is not None:
            mask = mask & self.attention_mask[:, None, None, :]
        return mask if self.segments is None else mask & sees_segment(self.segments)

    def visible_segments(self) -> Int[Array, "batch length"] | None:
        """Give a number for each token, which sees those of its own only; `None` for one.

        What the attention mask leaves out has a number of its own, so that no other token sees it.
        """
        if self.attention_mask is None:
            return self.segments
        return jnp.where(self.attention_mask, 0 if self.segments is None else self.segments, -1)


def prepare_decoder_inputs(
    input_ids: Any,
    attention_mask: Any,
    position_ids: Any,
    segment_ids: Any,
    cache: Cache | None,
    table: int | None,
) -> DecoderInputs:
    """Check the inputs and fill in the ones that are `None`.

    Args:
        input_ids: the tokens.
        attention_mask: 1 where a token counts.
        position_ids: where each is in its text.
        segment_ids: which text of several in a row each belongs to.
        cache: the tokens before these.
        table: how many positions the model has a vector for; `None` where it computes them.

    Raises:
        ModelError: an input has the wrong rank, shape or type of number, is longer than the
            position table, or does not go with a cache.
    """
    tokens = tokens_of(input_ids)
    if attention_mask is not None:
        attention_mask = mask_of(attention_mask)
        check_shape("attention_mask", attention_mask, tokens.shape)
    if position_ids is not None:
        position_ids = integers("position_ids", position_ids)
        check_shape("position_ids", position_ids, tokens.shape, (1, tokens.shape[1]))
    if cache is not None:
        return _with_cache(tokens, attention_mask, position_ids, segment_ids, cache)
    columns = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    segments = None
    if segment_ids is not None:
        segment_ids = integers("segment_ids", segment_ids)
        check_shape("segment_ids", segment_ids, tokens.shape)
        segments = _runs(segment_ids)
        if position_ids is None:
            position_ids = columns - _starts(segments, columns)
    if position_ids is None:
        position_ids = columns
        if table is not None:
            _check_length(tokens, table)
    return DecoderInputs(tokens, position_ids, attention_mask, segments)


def _with_cache(
    tokens: Int[Array, "batch length"],
    attention_mask: Bool[Array, "batch length"] | None,
    position_ids: Int[Array, "rows length"] | None,
    segment_ids: Any,
    cache: Cache,
) -> DecoderInputs:
    if segment_ids is not None:
        raise ModelError("segment_ids go without a cache: decode one text in each row")
    if cache.valid.shape[0] != tokens.shape[0]:
        raise ModelError(
            f"the cache has {cache.valid.shape[0]} rows; expected {tokens.shape[0]}, as input_ids"
        )
    counted = jnp.ones(tokens.shape, jnp.bool_) if attention_mask is None else attention_mask
    slots = cache.next_slot[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)
    positions = slots if position_ids is None else position_ids
    return DecoderInputs(tokens, positions, None, None, slots, advance(cache, counted))


def _runs(segment_ids: Int[Array, "batch length"]) -> Int[Array, "batch length"]:
    """Number the runs of equal ids in each row."""
    begins = (jnp.diff(segment_ids, axis=1) != 0).astype(jnp.int32)
    return jnp.pad(jnp.cumsum(begins, axis=1), ((0, 0), (1, 0)))


def _starts(
    runs: Int[Array, "rows length"], columns: Int[Array, "1 length"]
) -> Int[Array, "rows length"]:
    """Give the column in which each token's run begins."""
    first = jnp.pad(jnp.diff(runs, axis=1) != 0, ((0, 0), (1, 0)), constant_values=True)
    return jax.lax.cummax(jnp.where(first, columns, 0), axis=1)


def sees(queries: Any, keys: Any, window: int | None) -> Bool[Array, "rows 1 length slots"]:
    """Whether the query at each place sees the key at each other, by the order and the window.

    Args:
        queries: (rows, length), the places of queries.
        keys: (rows, slots), the places of keys.
        window: how many places a query sees, its own included; `None` for all before.
    """
    distance = queries[:, None, :, None] - keys[:, None, None, :]
    return (distance >= 0) & (True if window is None else distance < window)


def sees_segment(segments: Int[Array, "rows length"]) -> Bool[Array, "rows 1 length length"]:
    """Whether each token is of the same segment as each other."""
    return segments[:, None, :, None] == segments[:, None, None, :]


def advance(cache: Cache, mask: Bool[Array, "batch length"]) -> Cache:
    """Count in the tokens of one call.

    Padding before a token keeps its slot, unseen; padding after the last one is written over by
    the next call.
    """
    slots = cache.next_slot[:, None] + jnp.arange(mask.shape[1], dtype=jnp.int32)
    rows = jnp.arange(mask.shape[0])[:, None]
    valid = cache.valid.at[rows, slots].set(mask, mode="drop")
    steps = jnp.where(mask, jnp.arange(1, mask.shape[1] + 1, dtype=jnp.int32), 0).max(axis=1)
    return cache._replace(valid=valid, next_slot=cache.next_slot + steps)
