"""All that changes in training, as one small pytree."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from ..arguments import check_flag, check_leaves, check_optimizer
from ..errors import ArgumentError, TreeError
from ..precision import widen

_SCALARS = (bool, int, float, complex)


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

        Every leaf is a copy (kilobytes), since the step donates its state, and `trainable` or the
        optimizer may hold arrays of yours. On a mesh, what has no sharding yet is replicated.

        Args:
            trainable: `{leaf path: array}`. With `jax.ShapeDtypeStruct`s, shardings included, the
                state is abstract too: to restore a checkpoint into, or to lower a step for.
            tx: the optimizer.
            rng: a key, where `loss_fn` takes one.
            ema: whether the step keeps a moving average (`ema_decay=`).

        Raises:
            ArgumentError: `tx` is no optimizer, `rng` no key, `ema` no bool.
            TreeError: a leaf of `trainable` or of the optimizer's state is no array.

        Example:
            >>> import jax, jax.numpy as jnp, optax
            >>> import lntune_jax as lnt
            >>> state = lnt.TrainState.create({"ln.scale": jnp.ones(4)}, optax.adam(1e-3), ema=True)
            >>> int(state.step), list(state.ema)
            (0, ['ln.scale'])
            >>> shapes = {"ln.scale": jax.ShapeDtypeStruct((4,), "float32")}
            >>> lnt.TrainState.create(shapes, optax.adam(1e-3)).step
            ShapeDtypeStruct(shape=(), dtype=int32)
        """
        _check(trainable, tx, rng, ema)
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in [*trainable.values(), rng]):
            shapes = (
                {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in trainable.items()},
                None if rng is None else jax.ShapeDtypeStruct(rng.shape, rng.dtype),
            )
            state = jax.eval_shape(lambda own, key: _make(tx, own, key, ema), *shapes)
        else:
            state = _make(tx, trainable, rng, ema)
        return _place(state, trainable, rng)


def copy_leaf(path: str, leaf: Any) -> jax.Array:
    """An array of its own, of whatever JAX takes for one.

    Raises:
        TreeError: it is none; names the path.
    """
    if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, *_SCALARS)):
        raise TreeError(
            f"the leaf {path!r} is a {type(leaf).__module__}.{type(leaf).__name__}, not an array "
            "of JAX or numpy: convert it first (np.asarray)"
        )
    array = jnp.array(leaf, copy=True)
    # Optax's first numbers may be weakly typed and its next are not: the step would compile twice.
    return (
        jax.lax.convert_element_type(array, array.dtype)
        if getattr(array, "weak_type", False)
        else array
    )


def _check(trainable: Any, tx: Any, rng: Any, ema: Any) -> None:
    check_leaves(trainable)
    nested = [path for path, leaf in trainable.items() if isinstance(leaf, Mapping)]
    if nested:
        raise TreeError(
            f"trainable holds a dict at {nested[0]!r}, not an array: pass the first half that "
            "partition_params returned, not the whole tree"
        )
    check_optimizer(tx)
    check_flag("ema", ema, ": the decay is ema_decay= of make_train_step")
    if rng is not None and not isinstance(rng, jax.Array | jax.ShapeDtypeStruct | np.ndarray):
        raise ArgumentError(f"rng must be a key, such as jax.random.key(0), not {rng!r}")


def _make(tx: Any, trainable: Mapping[str, Any], rng: Any, ema: bool) -> TrainState:
    leaves = {path: copy_leaf(path, leaf) for path, leaf in trainable.items()}
    wide = {path: copy_leaf(path, widen(leaf, "float32")) for path, leaf in leaves.items()}
    # All of it: some optimizers hold the leaves, the caller's key, or one array twice.
    opt_state = jax.tree_util.tree_map_with_path(
        lambda keys, leaf: copy_leaf(f"opt_state{jax.tree_util.keystr(keys)}", leaf),
        tx.init(leaves),
    )
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=leaves,
        opt_state=opt_state,
        rng=None if rng is None else jnp.array(rng, copy=True),
        ema=wide if ema else None,
    )


def _place(state: TrainState, trainable: Mapping[str, Any], rng: Any) -> TrainState:
    """Puts leaves without a sharding on the mesh of those that have one.

    A step returns all its state on the mesh; were parts of the first state elsewhere, the second
    call would compile again. An abstract leaf of the optimizer with a trainable leaf's path and
    shape lies as that does, as a copy or `zeros_like` of it would.
    """
    given = {path: _get_sharding(leaf) for path, leaf in trainable.items()}
    named = [each for each in given.values() if isinstance(each, NamedSharding)]
    if not named:
        return state
    everywhere = NamedSharding(named[0].mesh, PartitionSpec())

    def place(keys: Any, leaf: Any) -> Any:
        if isinstance(leaf, Tracer) or isinstance(_get_sharding(leaf), NamedSharding):
            return leaf
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.device_put(leaf, everywhere)
        path = str(getattr(keys[-1], "key", ""))
        alike = path in given and tuple(leaf.shape) == tuple(trainable[path].shape)
        sharding = given[path] if alike else None
        if keys[0] == jax.tree_util.GetAttrKey("rng"):
            sharding = _get_sharding(rng)
        return leaf.update(sharding=sharding if isinstance(sharding, NamedSharding) else everywhere)

    return jax.tree_util.tree_map_with_path(place, state)


def _get_sharding(leaf: Any) -> Any:
    """The sharding of an array; None for a traced one, which has none of its own."""
    return None if isinstance(leaf, Tracer) else getattr(leaf, "sharding", None)
