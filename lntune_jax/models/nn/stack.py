"""The layers of a decoder: one after the other, or all through one traced layer and a loop.

A layer is called with the hidden states, a context and a key for dropout; it returns the new
states and, with a cache, its keys and values. In a loop, what layers differ in beside their
weights (whom a token sees, angles, a factor, a random key) is handed to each turn. Weights are the
loop's own inputs, so that the backward pass reads them where they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from .attention import Masking, pick_kernel
from .layers import split_key
from .primitives import CHEAP_IN_LOOPS, FLASH_ATTENTION, KERNEL, NAMED
from .sharding import divide_features, keep_rows_apart, keep_tokens_apart
from .splash import RESULT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Array, Float, Int

    from ..inputs import DecoderInputs
    from ..types import Cache, Options

    Hidden = Float[Array, "batch length hidden"]
    Heads = Float[Array, "batch length heads size"]
    Angles = tuple[Float[Array, "rows length half"], Float[Array, "rows length half"]]
    Seen = tuple[Float[Array, "batch slots heads size"], Float[Array, "batch slots heads size"]]
    Kept = tuple[Float[Array, "batch heads slots size"], Float[Array, "batch heads slots size"]]


class Context(NamedTuple):
    """What a layer needs beside the hidden states.

    Attributes:
        masking: which tokens a token attends to.
        angles: the rotary positions' cosines and sines, where the model has such.
        slots: with a cache, where the new keys and values go.
        before: with a cache, the keys and values so far.
        layer: with a cache of stacked layers, the number of this one.
        scale: what scores are multiplied by, where that differs between scanned layers.
    """

    masking: Masking
    angles: Angles | None = None
    slots: Int[Array, "batch length"] | None = None
    before: Kept | None = None
    layer: Int[Array, ""] | None = None
    scale: Any = None

    def remember(self, keys: Heads, values: Heads) -> tuple[Seen, Kept | None]:
        """Give the keys and values to look at, and those to keep."""
        if self.before is None or self.slots is None:
            return (keys, values), None
        first = store(self.before[0], keys, self.slots, self.layer)
        second = store(self.before[1], values, self.slots, self.layer)
        seen = (first, second) if self.layer is None else (first[self.layer], second[self.layer])
        # Attention turns them back: in the program there is no transpose.
        seen = (seen[0].transpose(0, 2, 1, 3), seen[1].transpose(0, 2, 1, 3))
        return (seen[0].astype(keys.dtype), seen[1].astype(values.dtype)), (first, second)


def make_contexts(
    options: Options, settings: Any, inputs: DecoderInputs, hidden: Hidden, key: Any
) -> list[Context]:
    """Give each layer's context, as far as it says whom its tokens see.

    Args:
        options: of the decoder.
        settings: of the decoder, with the windows of its layers.
        inputs: its inputs.
        hidden: the first layer's states.
        key: for dropout, or `None`.
    """
    windows, distinct = settings.windows, dict.fromkeys(settings.windows)
    kernel = options.attention
    if inputs.cache is None:
        dropping = key is not None and settings.attention_dropout > 0
        kernel = pick_kernel(kernel, settings, hidden, dropping=dropping)
    elif kernel in ("auto", "splash"):
        kernel = "xla"
    if kernel == "splash":
        segments = inputs.visible_segments()
        return [Context(Masking(kernel, None, segments, (window,))) for window in windows]
    varying = options.scan_layers and len(distinct) > 1 and kernel == "xla"
    masks = {window: inputs.mask(window, varying) for window in distinct}
    return [Context(Masking(kernel, masks[window], None, (window,))) for window in windows]


def _is_flash_attention(primitive: Any, *_: Any, **params: Any) -> bool:
    """Whether a result is that of a kernel of attention, a product which is no `dot_general`."""
    is_splash = primitive.name == NAMED and params["name"] == RESULT
    return is_splash or primitive.name.startswith(FLASH_ATTENTION)


# Policies of `jax.checkpoint` by the names users give, which are JAX's own for two of them: how
# much is computed again. Of what a policy lets be stored, JAX stores what the backward pass reads.
POLICIES = {
    "dots_saveable": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_saveable, _is_flash_attention
    ),
    "dots_with_no_batch_dims_saveable": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
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
        hidden, after = _run(layers[index], place_states(hidden, inputs), context, own, remat)
        kept.append(after)
    if inputs.cache is None or inputs.slots is None:
        return hidden, None
    keys, values = zip(*kept, strict=True)
    return mark_overflow(hidden, inputs), inputs.cache._replace(keys=keys, values=values)


def place_states(hidden: Hidden, inputs: DecoderInputs) -> Hidden:
    """Say how states lie on a mesh: by tokens, or, of single ones, as the weights they meet."""
    if hidden.shape[1] > 1:
        return keep_tokens_apart(hidden)
    return keep_rows_apart(hidden) if inputs.cache is None else divide_features(hidden)


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


def store(
    old: Float[Array, "*layers batch heads slots size"],
    new: Float[Array, "batch length heads size"],
    slots: Int[Array, "batch length"],
    layer: Int[Array, ""] | None = None,
) -> Float[Array, "*layers batch heads slots size"]:
    """Put each row's new entries into its slots; what lies beyond the last slot is dropped.

    Args:
        old: what is there; of all layers if `layer` is given.
        new: what is added.
        slots: where to.
        layer: the number of the layer.
    """
    given = (old, new, slots, layer)
    if new.shape[1] > 1:
        return scatter_slots(*given)
    return jax.lax.platform_dependent(*given, tpu=select_slots, default=scatter_slots)


def select_slots(old: Any, new: Any, slots: Any, layer: Any) -> Any:
    """Store one token of each row by writing a layer anew, which attention reads in any case.

    For a scatter, or an update of a slice, a TPU's compiler turns the whole cache into another
    layout and back: four copies for each token.
    """
    entries = new.transpose(0, 2, 1, 3).astype(old.dtype)
    own = old if layer is None else jax.lax.dynamic_index_in_dim(old, layer, keepdims=False)
    is_place = jnp.arange(own.shape[-2], dtype=slots.dtype) == slots
    own = jnp.where(is_place[:, None, :, None], entries, own)
    return own if layer is None else jax.lax.dynamic_update_index_in_dim(old, own, layer, 0)


def scatter_slots(old: Any, new: Any, slots: Any, layer: Any) -> Any:
    """Store the tokens of each row by writing their slots alone."""
    if new.shape[:2] == (1, 1):
        # A second place, past the end, which is dropped. XLA takes a scatter to one place for an
        # update of a slice, and fuses that into each reader: on a CPU it copied the cache thrice.
        new = jnp.tile(new, (1, 2, 1, 1))
        slots = jnp.pad(slots, ((0, 0), (0, 1)), constant_values=old.shape[-2])
    rows = jnp.arange(new.shape[0])[:, None]
    # An array index on either side of the heads: the indexed part has the axes of `new`.
    place = (rows, slice(None), slots) if layer is None else (layer, rows, slice(None), slots)
    return old.at[place].set(new.astype(old.dtype), mode="drop")


# Two stacks by their names: the layers that stay as they are, and those above.
LOWER, UPPER = "lower", "upper"


class _Turn(NamedTuple):
    """What one turn of the loop reads: with a leading axis for all, without it for one."""

    weights: Any
    layer: Any
    mask: Any
    angles: Any
    scale: Any
    which: Any
    key: Any


def stack_layers(make: Callable[[], Any], count: int, frozen: int) -> Any:
    """Give a layer whose every leaf has `count` layers along its first axis.

    With a number of frozen layers there are two, for these and for those above: nothing of the
    first is differentiated, and so the backward pass ends where the second begins.
    """
    if not frozen:
        return _stack(make(), count)
    return nnx.Dict(
        {LOWER: _stack(make(), frozen), UPPER: _stack(make(), count - frozen)},
    )


def _stack(layer: Any, count: int) -> Any:
    state = nnx.state(layer)
    nnx.update(
        layer, jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), state)
    )
    return layer


def scan_layers(
    stack: Any,
    hidden: Hidden,
    contexts: Sequence[Context],
    inputs: DecoderInputs,
    remat: str,
    key: Any,
) -> tuple[Hidden, Cache | None]:
    """Do what `run_layers` does, with what `stack_layers` gives; the cache is stacked too."""
    keys = None if key is None else jax.random.split(key, len(contexts))
    before = None
    if inputs.cache is not None and inputs.slots is not None:
        before = inputs.cache.keys, inputs.cache.values
    first = 0
    for part in (stack[LOWER], stack[UPPER]) if isinstance(stack, nnx.Dict) else (stack,):
        end = first + jax.tree.leaves(nnx.state(part))[0].shape[0]
        own = None if keys is None else keys[first:end]
        carry = (hidden, before)
        hidden, before = _scan(part, carry, contexts[first:end], first, inputs, remat, own)
        first = end
    if inputs.cache is None or before is None:
        return hidden, None
    return mark_overflow(hidden, inputs), inputs.cache._replace(keys=before[0], values=before[1])


def _scan(
    stack: Any,
    carry: tuple[Any, Any],
    contexts: Sequence[Context],
    first: int,
    inputs: DecoderInputs,
    remat: str,
    keys: Any,
) -> tuple[Any, Any]:
    """Run the layers of one stack, of which the lowest has the number `first`."""
    graph, state = nnx.split(stack)
    shared = contexts[0].masking
    windows = [context.masking.windows[0] for context in contexts]
    distinct = tuple(dict.fromkeys(windows))
    which = None
    if shared.mask is None and len(distinct) > 1:
        which = jnp.asarray([distinct.index(window) for window in windows], jnp.int32)
        shared = shared._replace(windows=distinct)
    mask_of, masks = _choose([context.masking.mask for context in contexts])
    angles_of, angles = _choose([context.angles for context in contexts])
    turns = _Turn(
        nnx.to_pure_dict(state),
        jnp.arange(first, first + len(contexts), dtype=jnp.int32),
        masks,
        angles,
        _scales(contexts),
        which,
        keys,
    )

    def body(carry: tuple[Any, Any], turn: _Turn) -> tuple[tuple[Any, Any], None]:
        states, before = carry
        masking = shared._replace(mask=mask_of(turn.mask), which=turn.which)
        context = Context(masking, angles_of(turn.angles), scale=turn.scale)
        if before is not None:
            context = context._replace(slots=inputs.slots, before=before, layer=turn.layer)
        layer = nnx.merge(graph, turn.weights)
        states, after = layer(place_states(states, inputs), context, turn.key)
        # The loop's own state too, which its first turn need not decide.
        return (place_states(states, inputs) if inputs.cache is not None else states, after), None

    # Two loops are never merged into one: no barrier is needed to keep them apart.
    policy = POLICIES.get(remat, _is_worth_storing)
    body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    return jax.lax.scan(body, carry, turns)[0]


def _is_worth_storing(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether a result is stored where nothing is asked to be computed again.

    In separate layers the compiler computes cheap elementwise work again where it is read; from
    one loop to another it cannot, and would store all of it.
    """
    return primitive.name not in CHEAP_IN_LOOPS and primitive.name != KERNEL


def _choose(values: list[Any]) -> tuple[Callable[[Any], Any], Any]:
    """Give how a turn finds its own of some values, and what it needs for that.

    Layers of one kind share a value, the same object: one for all stays outside the loop, of
    several each turn has the number.
    """
    distinct = {id(value): value for value in values}
    if len(distinct) == 1:
        return (lambda _: values[0]), None
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *distinct.values())
    order = list(distinct)
    indices = jnp.asarray([order.index(id(value)) for value in values], jnp.int32)

    def pick(index: Any) -> Any:
        return jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), stacked
        )

    return pick, indices


def _scales(contexts: Sequence[Context]) -> Any:
    scales = [context.scale for context in contexts if context.scale is not None]
    return jnp.asarray(scales, jnp.float32) if scales else None
