"""One layer after the other: what each is told, what it keeps, and what the backward pass stores.

A layer is called with the hidden states, a context and a key for dropout; it returns the new
states and, with a cache, its keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from ._cache import store
from ._dropout import split_key
from ._rows import keep_rows_apart

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Array, Bool, Float, Int

    from ._cache import Cache
    from ._decoder_inputs import DecoderInputs

    Hidden = Float[Array, "batch length hidden"]
    Heads = Float[Array, "batch length heads size"]
    Angles = tuple[Float[Array, "rows length half"], Float[Array, "rows length half"]]
    Kept = tuple[Float[Array, "batch slots heads size"], Float[Array, "batch slots heads size"]]


@dataclass(frozen=True)
class Options:
    """How a decoder computes, whatever its config says.

    Attributes:
        dtype: of weights and activations.
        attention: the implementation, one of `ATTENTIONS`.
        remat: what the backward pass finds stored, one of `REMATS`.
        scan_layers: whether all layers are one, with stacked weights.
        frozen_layers: of these, how many from the first are a stack and a loop of their own.
    """

    dtype: str = "float32"
    attention: str = "xla"
    remat: str = "none"
    scan_layers: bool = False
    frozen_layers: int = 0


class Context(NamedTuple):
    """What a layer needs beside the hidden states.

    Attributes:
        mask: what each token sees; `None` for all before it in the layer's window.
        angles: the rotary positions' cosines and sines, where the model has such.
        slots: with a cache, where the new keys and values go.
        before: with a cache, the keys and values so far.
        layer: with a cache of stacked layers, the number of this one.
        scale: what scores are multiplied by, where that differs between scanned layers.
    """

    mask: Bool[Array, "_ 1 length slots"] | None
    angles: Angles | None = None
    slots: Int[Array, "batch length"] | None = None
    before: Kept | None = None
    layer: Int[Array, ""] | None = None
    scale: Any = None

    def remember(self, keys: Heads, values: Heads) -> tuple[Kept, Kept | None]:
        """Give the keys and values to look at, and those to keep."""
        if self.before is None or self.slots is None:
            return (keys, values), None
        first = store(self.before[0], keys, self.slots, self.layer)
        second = store(self.before[1], values, self.slots, self.layer)
        seen = (first, second) if self.layer is None else (first[self.layer], second[self.layer])
        return (seen[0].astype(keys.dtype), seen[1].astype(values.dtype)), (first, second)


def _is_flash_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether a result is that of cuDNN's attention, a product which is no `dot_general`."""
    return primitive.name.startswith("dot_product_attention_fwd")


# Policies of `jax.checkpoint` by the names users give: how much is computed again. Of what a
# policy lets be stored, JAX stores what the backward pass reads.
POLICIES = {
    "norms": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_saveable, _is_flash_attention
    ),
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def run_layers(
    layers: Any,
    hidden: Hidden,
    contexts: Sequence[Context],
    inputs: DecoderInputs,
    remat: str,
    key: Any,
) -> tuple[Hidden, Cache | None]:
    """Run the layers in turn, and give the last states and the cache with these tokens in it."""
    kept = []
    for index, own in enumerate(split_key(key, len(contexts))):
        context = contexts[index]
        if inputs.cache is not None:
            before = inputs.cache.keys[index], inputs.cache.values[index]
            context = context._replace(slots=inputs.slots, before=before)
        hidden, after = _run(layers[index], keep_rows_apart(hidden), context, own, remat)
        kept.append(after)
    if inputs.cache is None or inputs.slots is None:
        return hidden, None
    keys, values = zip(*kept, strict=True)
    return mark_overflow(hidden, inputs), inputs.cache._replace(keys=keys, values=values)


def mark_overflow(hidden: Hidden, inputs: DecoderInputs) -> Hidden:
    """Give NaN for a token for which there was no slot left: it must not pass for a kept one."""
    assert inputs.cache is not None
    assert inputs.slots is not None
    fits = inputs.slots < inputs.cache.valid.shape[1]
    return jnp.where(fits[..., None], hidden, jnp.nan)


def _run(layer: Any, hidden: Hidden, context: Context, key: Any, remat: str) -> Any:
    if remat == "none":
        return layer(hidden, context, key)
    # The layer's weights come in through the closure: they are stored in any case.
    again = jax.checkpoint(lambda states: layer(states, context, key), policy=POLICIES[remat])
    return again(hidden)
