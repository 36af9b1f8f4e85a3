"""All layers through one traced layer: their weights stacked, and a loop over them.

What layers differ in beside their weights (whom a token sees, angles, a factor, a random key) is
handed to each turn of the loop. Weights are the loop's own inputs, so that the backward pass reads
them where they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ._rows import keep_rows_apart
from ._stack import POLICIES, Context, mark_overflow

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._cache import Cache
    from ._decoder_inputs import DecoderInputs
    from ._stack import Hidden

# Two stacks by their names: the layers that stay as they are, and those above.
LOWER, UPPER = "lower", "upper"


class _Turn(NamedTuple):
    """What one turn of the loop reads: with a leading axis for all, without it for one."""

    weights: Any
    layer: Any
    mask: Any
    angles: Any
    scale: Any
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
    mask_of, masks = _choose([context.mask for context in contexts])
    angles_of, angles = _choose([context.angles for context in contexts])
    turns = _Turn(
        nnx.to_pure_dict(state),
        jnp.arange(first, first + len(contexts), dtype=jnp.int32),
        masks,
        angles,
        _scales(contexts),
        keys,
    )

    def body(carry: tuple[Any, Any], turn: _Turn) -> tuple[tuple[Any, Any], None]:
        states, before = carry
        context = Context(mask_of(turn.mask), angles_of(turn.angles), scale=turn.scale)
        if before is not None:
            context = context._replace(slots=inputs.slots, before=before, layer=turn.layer)
        layer = nnx.merge(graph, turn.weights)
        return layer(keep_rows_apart(states), context, turn.key), None

    # Two loops are never merged into one: no barrier is needed to keep them apart.
    policy = POLICIES.get(remat, _is_worth_storing)
    body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    return jax.lax.scan(body, carry, turns)[0]


def _is_worth_storing(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether a result is stored where nothing is asked to be computed again.

    In separate layers the compiler computes cheap elementwise work again where it is read; from
    one loop to another it cannot, and would store all of it.
    """
    return primitive.name not in _CHEAP


_CHEAP_NAMES = (
    "add add_any and broadcast_in_dim convert_element_type copy dynamic_slice eq expand_dims ge gt "
    "iota le lt mul ne neg not or reshape select_n slice split squeeze sub transpose"
)
_CHEAP = frozenset(_CHEAP_NAMES.split())


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
