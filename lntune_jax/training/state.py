"""All that changes in training, as one small pytree."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..partition import widen


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that changes in training. A pytree; every part is as small as the trainable half.

    Attributes:
        step: number of steps taken, an int32 scalar.
        trainable: `{leaf path: array}`.
        opt_state: the optimizer's state.
        rng: a key from which each step's key is derived, or None.
        ema: exponential moving average of `trainable`, in float32 at least, or None.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import lntune_jax as lnt
        >>> state = lnt.TrainState.create({"ln.scale": jnp.ones(4)}, optax.sgd(0.1))
        >>> state.step.item(), state.rng, state.ema
        (0, None, None)
    """

    step: jax.Array
    trainable: dict[str, jax.Array]
    opt_state: optax.OptState
    rng: jax.Array | None = None
    ema: dict[str, jax.Array] | None = None

    @classmethod
    def create(
        cls,
        trainable: Mapping[str, Any],
        tx: optax.GradientTransformation,
        *,
        rng: jax.Array | None = None,
        ema: bool = False,
    ) -> TrainState:
        """Makes the state before the first step.

        The leaves are copied (kilobytes), since the step donates its state and `trainable` may
        hold the base's own arrays. On a mesh, what has no sharding yet is replicated.

        Example:
            >>> import jax.numpy as jnp, optax
            >>> import lntune_jax as lnt
            >>> state = lnt.TrainState.create({"ln.scale": jnp.ones(4)}, optax.adam(1e-3), ema=True)
            >>> int(state.step), list(state.ema)
            (0, ['ln.scale'])
        """
        leaves = {path: _copy(leaf) for path, leaf in trainable.items()}
        state = cls(
            step=jnp.zeros((), jnp.int32),
            trainable=leaves,
            opt_state=_init(tx, leaves),
            rng=None if rng is None else _copy(rng),
            ema={path: _copy(widen(leaf, "float32")) for path, leaf in leaves.items()}
            if ema
            else None,
        )
        return _replicate_rest(state)


def _init(tx: optax.GradientTransformation, leaves: dict[str, jax.Array]) -> optax.OptState:
    """The optimizer's first state; some hold the leaves themselves, and none is donated twice."""
    own = {id(leaf) for leaf in leaves.values()}
    state = tx.init(leaves)
    return jax.tree.map(lambda leaf: _copy(leaf) if id(leaf) in own else leaf, state)


def _copy(leaf: Any) -> jax.Array:
    return jnp.array(leaf, copy=True)


def _replicate_rest(state: TrainState) -> TrainState:
    """Puts leaves without a sharding on the mesh of those that have one.

    A step returns all its state on the mesh; were parts of the first state elsewhere, the second
    call would compile again.
    """
    shardings = [leaf.sharding for leaf in state.trainable.values()]
    named = [s for s in shardings if isinstance(s, jax.sharding.NamedSharding)]
    if not named:
        return state
    everywhere = jax.sharding.NamedSharding(named[0].mesh, jax.sharding.PartitionSpec())
    return jax.tree.map(
        lambda leaf: (
            leaf
            if isinstance(leaf.sharding, jax.sharding.NamedSharding)
            else jax.device_put(leaf, everywhere)
        ),
        state,
    )
