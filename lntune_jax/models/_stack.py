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
    """

    dtype: str = "float32"
    attention: str = "xla"
    remat: str = "none"


class Context(NamedTuple):
    """What a layer needs beside the hidden states.

    Attributes:
        mask: what each token sees; `None` for all before it in the layer's window.
        angles: the rotary positions' cosines and sines, where the model has such.
        slots: with a cache, where the new keys and values go.
        before: with a cache, the keys and values so far.
    """

    mask: Bool[Array, "_ 1 length slots"] | None
    angles: Angles | None = None
    slots: Int[Array, "batch length"] | None = None
    before: Kept | None = None

    def remember(self, keys: Heads, values: Heads) -> tuple[Kept, Kept | None]:
        """Give the keys and values to look at, and those to keep."""
        if self.before is None or self.slots is None:
            return (keys, values), None
        kept = store(self.before[0], keys, self.slots), store(self.before[1], values, self.slots)
        return (kept[0].astype(keys.dtype), kept[1].astype(values.dtype)), kept


# Policies of `jax.checkpoint` by the names users give: how much is computed again.
_POLICIES = {
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
        hidden, after = _run(layers[index], hidden, context, own, remat)
        kept.append(after)
    if inputs.cache is None or inputs.slots is None:
        return hidden, None
    # A token for which there was no slot left must not pass for one that was kept.
    fits = inputs.slots < inputs.cache.valid.shape[1]
    hidden = jnp.where(fits[..., None], hidden, jnp.nan)
    keys, values = zip(*kept, strict=True)
    return hidden, inputs.cache._replace(keys=keys, values=values)


def _run(layer: Any, hidden: Hidden, context: Context, key: Any, remat: str) -> Any:
    if remat == "none":
        return layer(hidden, context, key)
    # The layer's weights come in through the closure: they are stored in any case.
    again = jax.checkpoint(lambda states: layer(states, context, key), policy=_POLICIES[remat])
    return again(hidden)
