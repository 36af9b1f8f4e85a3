"""Keys and values of the tokens so far, in arrays of a fixed size, for decoding.

Each row has its own place for the next token, so that rows of one batch may differ in length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from ..types import Cache

if TYPE_CHECKING:
    from ..model import PretrainedModel
    from ..types import Layers


def empty_cache(model: PretrainedModel, batch: int, slots: int, *, dtype: Any = None) -> Cache:
    """Give a decoder's cache without tokens.

    Pass it to `model.apply` as `cache`, with the first tokens of each row, then the cache of each
    output with the next ones. Rows may be padded on either side with an `attention_mask`. Without
    `position_ids`, positions count on from the slots; a token beyond the last slot gives NaN.

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
        (3, 16, 2, 4)
    """
    settings = model.settings
    shape = (batch, slots, settings.num_key_value_heads, settings.head_dim)
    count = settings.num_hidden_layers
    dtype = model.dtype if dtype is None else dtype
    # The layers of an empty cache are the same array.
    layers: Layers = (
        jnp.zeros((count, *shape), dtype)
        if model.options.scan_layers
        else (jnp.zeros(shape, dtype),) * count
    )
    valid = jnp.zeros((batch, slots), jnp.bool_)
    return Cache(layers, layers, valid, jnp.zeros((batch,), jnp.int32))
