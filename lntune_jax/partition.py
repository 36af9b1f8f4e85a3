"""Splitting a parameter tree into what trains and what does not, and putting it together again.

`trainable` is a flat dict from leaf path to array; `frozen` is the tree itself, with a childless
node (`Taken`) where a leaf was taken out. Penzai's partitioning has the same idea of a sentinel
and an exactly-one rule (penzai/core/partitioning.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .errors import ConfigError, TreeError
from .paths import Leaf, flatten, get_shape, join

# What may stand for an array in a tree of marks: a label, a mask, a sharding.
_MARKS = (str, bool, jax.sharding.Sharding, jax.sharding.PartitionSpec)


class Partition(NamedTuple):
    """The two halves of a parameter tree.

    Attributes:
        trainable: `{leaf path: array}` in the tree's order.
        frozen: the tree, its containers kept, with a `Taken` where each trainable leaf was.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> halves = lnt.partition_params({"ln": {"scale": jnp.ones(2)}}, lnt.LNTuningConfig())
        >>> list(halves.trainable), halves.frozen
        (['ln.scale'], {'ln': {'scale': Taken('ln.scale', float32[2])}})
    """

    trainable: dict[str, Any]
    frozen: Any


@jax.tree_util.register_static
class Taken:
    """Stands in the frozen half for a leaf that went to the trainable half. Has no children.

    Attributes:
        path: the leaf's path, its key in `trainable`.
        shape: the leaf's shape.
        dtype: the base's dtype, to which a merge returns.
    """

    __slots__ = ("dtype", "path", "shape")

    def __init__(self, path: str, shape: tuple[int, ...], dtype: Any) -> None:
        self.path, self.shape, self.dtype = path, tuple(shape), np.dtype(dtype)

    def __repr__(self) -> str:
        return f"Taken({self.path!r}, {self.dtype.name}{list(self.shape)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Taken) and self._get_key() == other._get_key()

    def __hash__(self) -> int:
        return hash(self._get_key())

    def _get_key(self) -> tuple[Any, ...]:
        return self.path, self.shape, self.dtype


def split_params(
    leaves: Sequence[Leaf], treedef: Any, trains: Iterable[bool], dtype: str | None
) -> Partition:
    """Splits the leaves of a tree by what `trains` says of each.

    Args:
        leaves: what `flatten` gave.
        treedef: the tree's structure.
        trains: for each leaf whether it trains.
        dtype: trainable leaves of lower precision are cast to it; None keeps theirs.
    """
    trainable: dict[str, Any] = {}
    kept: list[Any] = []
    for leaf, own in zip(leaves, trains, strict=True):
        if not own:
            kept.append(leaf.value)
            continue
        name = join(leaf.path)
        trainable[name] = widen(leaf.value, dtype)
        kept.append(Taken(name, leaf.value.shape, leaf.value.dtype))
    return Partition(trainable, treedef.unflatten(kept))


def merge_params(trainable: Mapping[str, Any], frozen: Any, *, cast: bool = True) -> Any:
    """Puts the two halves together: the same structure, containers and dtypes as the original.

    Differentiable, and free under `jax.jit`: it leaves at most a cast of each trainable leaf in
    the program.

    Args:
        trainable: `{leaf path: array}`, as `partition_params` gave it or after training.
        frozen: the other half.
        cast: whether trainable leaves go back to the base's dtype; False leaves float32 masters as
            they are, for models that compute their norms in float32.

    Raises:
        TreeError: a leaf is in both halves or in neither, its shape has changed, or it is no
            floating-point array; the message names the path.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"ln_1": {"scale": jnp.ones(4, jnp.bfloat16)}}
        >>> trainable, frozen = lnt.partition_params(params, lnt.LNTuningConfig())
        >>> trainable["ln_1.scale"].dtype.name
        'float32'
        >>> lnt.merge_params(trainable, frozen)["ln_1"]["scale"].dtype.name
        'bfloat16'
    """
    leaves, treedef = jax.tree_util.tree_flatten(frozen, is_leaf=is_taken)
    holes = {leaf.path: leaf for leaf in leaves if is_taken(leaf)}
    if not isinstance(trainable, Mapping):
        raise TreeError(
            f"trainable must be a dict of leaf paths, not {type(trainable).__name__}: pass the "
            "first half that partition_params returned"
        )
    if holes.keys() != trainable.keys():
        raise _explain_mismatch(trainable, frozen, holes)
    return treedef.unflatten(
        [_fill(leaf, trainable[leaf.path], cast) if is_taken(leaf) else leaf for leaf in leaves]
    )


def is_taken(value: Any) -> bool:
    """Whether a node of a frozen half stands for a leaf of the trainable half."""
    return isinstance(value, Taken)


def widen(value: Any, dtype: str | None) -> Any:
    """Casts a leaf of lower precision to `dtype`; any other leaf is returned as it is.

    Raises:
        ConfigError: `dtype` is "float64" and JAX has it turned off.
    """
    if dtype == "float64" and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise ConfigError(
            "param_dtype='float64' needs jax.config.update('jax_enable_x64', True); or set "
            "param_dtype='float32'"
        )
    if dtype is None or not jnp.issubdtype(value.dtype, jnp.floating):
        return value
    if jnp.dtype(value.dtype).itemsize >= np.dtype(dtype).itemsize:
        return value
    if isinstance(value, jax.ShapeDtypeStruct):
        return value.update(dtype=np.dtype(dtype))
    return value.astype(dtype)


def _fill(hole: Taken, value: Any, cast: bool) -> Any:
    shape = get_shape(value)
    if shape is None and isinstance(value, _MARKS):
        return value
    if shape is None or not jnp.issubdtype(value.dtype, jnp.inexact):
        found = type(value).__name__ if shape is None else f"an array of {value.dtype}"
        raise TreeError(
            f"the leaf {hole.path!r} of trainable must be a floating-point array, not {found}"
        )
    if tuple(shape) != hole.shape:
        raise TreeError(
            f"the leaf {hole.path!r} has shape {tuple(shape)} in trainable, but {hole.shape} in "
            "the tree that frozen came from"
        )
    if not cast or value.dtype == hole.dtype:
        return value
    if isinstance(value, jax.ShapeDtypeStruct):
        return value.update(dtype=hole.dtype)
    return value.astype(hole.dtype)


def _explain_mismatch(
    trainable: Mapping[str, Any], frozen: Any, holes: Mapping[str, Taken]
) -> TreeError:
    missing = sorted(holes.keys() - trainable.keys())
    if missing:
        return TreeError(
            f"the leaves {missing[:5]} are in neither half: frozen has a hole there and trainable "
            "has no such key. Pass the two halves of one partition_params call"
        )
    present = {join(leaf.path) for leaf in flatten(frozen)[0]}
    extra = sorted(trainable.keys() - holes.keys())
    both = [name for name in extra if name in present]
    if both:
        return TreeError(
            f"the leaves {both[:5]} are in both halves: frozen still holds them. Pass the frozen "
            "half of the same partition_params call, not the whole tree"
        )
    return TreeError(
        f"the leaves {extra[:5]} of trainable have no place in frozen, which comes from another "
        "tree or another config"
    )
