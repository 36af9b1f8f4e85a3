"""Keys and values of the tokens so far, in arrays of a fixed size, for decoding.

Each row has its own place for the next token, so that rows of one batch may differ in length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

    from ._pretrained import PretrainedModel

    Layers = (
        tuple[Float[Array, "batch slots heads size"], ...]
        | Float[Array, "layers batch slots heads size"]
    )


class Cache(NamedTuple):
    """What a decoder keeps between calls.

    Attributes:
        keys: one array for each layer, (batch, slots, heads, size), rotated already; of a model
            with `scan_layers` one array for all, with a first axis for the layers.
        values: the same for the values.
        valid: true in a slot whose token may be seen.
        next_slot: the slot of each row's next token.

    Example:
        >>> import jax.numpy as jnp
        >>> from lntune_jax.models import Cache
        >>> Cache((), (), jnp.zeros((1, 4), bool), jnp.array([0])).next_slot
        Array([0], dtype=int32)
    """

    keys: Layers
    values: Layers
    valid: Bool[Array, "batch slots"]
    next_slot: Int[Array, " batch"]


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
        (jnp.zeros(shape, dtype),) * count
        if model.name_map is None
        else jnp.zeros((count, *shape), dtype)
    )
    valid = jnp.zeros((batch, slots), jnp.bool_)
    return Cache(layers, layers, valid, jnp.zeros((batch,), jnp.int32))


def store(
    old: Float[Array, "*layers batch slots heads size"],
    new: Float[Array, "batch length heads size"],
    slots: Int[Array, "batch length"],
    layer: Int[Array, ""] | None = None,
) -> Float[Array, "*layers batch slots heads size"]:
    """Put each row's new entries into its slots; what lies beyond the last slot is dropped.

    Args:
        old: what is there; of all layers if `layer` is given.
        new: what is added.
        slots: where to.
        layer: the number of the layer.
    """
    rows = jnp.arange(new.shape[0])[:, None]
    place = (rows, slots) if layer is None else (layer, rows, slots)
    return old.at[place].set(new.astype(old.dtype), mode="drop")


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
