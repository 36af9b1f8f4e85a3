"""Keys and values of the tokens so far, in arrays of a fixed size, for decoding.

Each row has its own place for the next token, so that rows of one batch may differ in length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from ..types import Cache

if TYPE_CHECKING:
    from ..model import PretrainedModel


def empty_cache(model: PretrainedModel, batch: int, slots: int, *, dtype: Any = None) -> Cache:
    """Give a decoder's cache without tokens.

    Pass it to `model.apply` as `cache`, with the first tokens of each row, then the cache of each
    output with the next ones. Rows may be padded on either side with an `attention_mask`. Without
    `position_ids`, positions count on from the slots; a token beyond the last slot gives NaN.
    A jitted step may take it as a donated argument.

    Args:
        model: a decoder, from `from_pretrained` or `from_config`.
        batch: rows.
        slots: the most tokens that a row can hold.
        dtype: of keys and values; `None` for the model's.

    Example:
        >>> from transformers import LlamaConfig
        >>> from lntune_jax.models import empty_cache, from_config
        >>> tiny = LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
        >>> empty_cache(from_config(tiny), batch=3, slots=16).keys[0].shape
        (3, 2, 16, 4)
    """
    return zeros(cache_shapes(model, batch, slots, dtype=dtype))


def cache_shapes(model: PretrainedModel, batch: int, slots: int, *, dtype: Any = None) -> Cache:
    """Give the shapes of `empty_cache`, a value that a jitted function can be told apart by."""
    settings = model.settings
    count = settings.num_hidden_layers
    shape = (batch, settings.num_key_value_heads, slots, settings.head_dim)
    dtype = model.dtype if dtype is None else dtype
    stacked = jax.ShapeDtypeStruct((count, *shape), jnp.dtype(dtype))
    apart = (jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)),) * count
    layers: Any = stacked if model.options.scan_layers else apart
    valid: Any = jax.ShapeDtypeStruct((batch, slots), jnp.bool_)
    next_slot: Any = jax.ShapeDtypeStruct((batch,), jnp.int32)
    return Cache(layers, layers, valid, next_slot)


def zeros(shapes: Cache) -> Cache:
    """Make the empty cache of these shapes, an array of its own for each layer."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def widen(cache: Cache, slots: int) -> Cache:
    """Give the cache with empty slots at its end, so that there are `slots` of them."""
    missing = slots - cache.valid.shape[1]

    def pad(layers: Any) -> Any:
        return jax.tree.map(
            lambda leaf: jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 2) + [(0, missing), (0, 0)]), layers
        )

    valid = jnp.pad(cache.valid, ((0, 0), (0, missing)))
    return Cache(pad(cache.keys), pad(cache.values), valid, cache.next_slot)
