"""Splitting a parameter tree into what trains and what does not, and putting it together again.

`trainable` is a flat dict from leaf path to array; `frozen` is the tree itself, with a childless
node (`Placeholder`) where a leaf was taken out. Penzai's partitioning has the same idea of a
sentinel and an exactly-one rule (penzai/core/partitioning.py).
"""

from __future__ import annotations

import operator
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .arguments import check_flag, check_leaves
from .errors import PlaceholderError, TreeError
from .messages import list_names
from .paths import flatten, get_shape, join
from .precision import widen

# What may stand for an array in a tree of marks: a label, a mask, a sharding.
_MARKS = (str, bool, jax.sharding.Sharding, jax.sharding.PartitionSpec)


class Partition(NamedTuple):
    """The two halves of a parameter tree.

    Attributes:
        trainable: `{leaf path: array}` in the tree's order.
        frozen: the tree, its containers kept, with a `Placeholder` where each trainable leaf was.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> halves = lnt.partition_params({"ln": {"scale": jnp.ones(2)}}, lnt.LNTuningConfig())
        >>> list(halves.trainable), halves.frozen
        (['ln.scale'], {'ln': {'scale': Placeholder('ln.scale', float32[2])}})
    """

    trainable: dict[str, Any]
    frozen: Any


class Placeholder:
    """Stands in the frozen half for a leaf that went to the trainable half. Has no children.

    There is one object for each path, shape and dtype, so that equality is identity and a jitted
    function compares two frozen halves without calling Python.

    Attributes:
        path: the leaf's path, its key in `trainable`.
        shape: the leaf's shape.
        dtype: the base's dtype, to which a merge returns.

    Example:
        >>> import copy
        >>> placeholder = Placeholder("ln.scale", (4,), "bfloat16")
        >>> placeholder, copy.deepcopy(placeholder) is placeholder
        (Placeholder('ln.scale', bfloat16[4]), True)
    """

    __slots__ = ("__weakref__", "_flattened", "dtype", "path", "shape")

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __new__(cls, path: str, shape: Sequence[int], dtype: Any) -> Placeholder:
        """Gives the one object of this path, shape and dtype."""
        key = (path, tuple(shape), np.dtype(dtype))
        with _PLACEHOLDERS_LOCK:
            found = _PLACEHOLDERS.get(key)
            if found is None:
                found = _PLACEHOLDERS[key] = super().__new__(cls)
                for name, value in zip(("path", "shape", "dtype"), key, strict=True):
                    object.__setattr__(found, name, value)
                object.__setattr__(found, "_flattened", ((), found))
        return found

    def __repr__(self) -> str:
        return f"Placeholder({self.path!r}, {self.dtype.name}{list(self.shape)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Placeholder, (self.path, self.shape, self.dtype)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{self!r} is shared by all trees that hold it, and cannot be changed")

    def __getattr__(self, name: str) -> Any:
        # Libraries ask for private and double-underscore names to find out what an object is.
        if name.startswith("_"):
            raise AttributeError(name)
        raise PlaceholderError(f"{self._explain()} (asked for its attribute {name!r})")

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise PlaceholderError(self._explain())

    def __jax_array__(self) -> Any:
        raise PlaceholderError(self._explain())

    def _explain(self) -> str:
        return (
            f"the leaf {self.path!r} of the frozen half is a placeholder, not an array: give the "
            "model merge_params(trainable, frozen), not the frozen half"
        )


_PLACEHOLDERS: weakref.WeakValueDictionary[Any, Placeholder] = weakref.WeakValueDictionary()
_PLACEHOLDERS_LOCK = threading.Lock()

# `_flattened` is read by C code: flattening a frozen half calls no Python function.
jax.tree_util.register_pytree_node(
    Placeholder, operator.attrgetter("_flattened"), lambda placeholder, _: placeholder
)


def split_params(
    leaves: Iterable[tuple[str, Any, bool]], treedef: Any, dtype: str | None
) -> Partition:
    """Splits the leaves of a tree.

    Args:
        leaves: of each its path, its value, and whether it trains.
        treedef: the tree's structure.
        dtype: trainable leaves of lower precision are cast to it; None keeps theirs.
    """
    trainable: dict[str, Any] = {}
    kept: list[Any] = []
    for name, value, trains in leaves:
        if trains:
            trainable[name] = widen(value, dtype)
            value = Placeholder(name, value.shape, value.dtype)
        kept.append(value)
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
    check_flag("cast", cast)
    leaves, treedef = jax.tree_util.tree_flatten(frozen, is_leaf=is_placeholder)
    placeholders = {leaf.path: leaf for leaf in leaves if is_placeholder(leaf)}
    if not isinstance(trainable, Mapping) or placeholders.keys() != trainable.keys():
        raise _explain_mismatch(trainable, frozen, placeholders)
    return treedef.unflatten(
        [
            _fill(leaf, trainable[leaf.path], cast) if is_placeholder(leaf) else leaf
            for leaf in leaves
        ]
    )


def is_placeholder(value: Any) -> bool:
    """Whether a node of a frozen half stands for a leaf of the trainable half."""
    return isinstance(value, Placeholder)


def _fill(placeholder: Placeholder, value: Any, cast: bool) -> Any:
    shape = get_shape(value)
    if shape is None and isinstance(value, _MARKS):
        return value
    if shape is None or not jnp.issubdtype(value.dtype, jnp.inexact):
        found = type(value).__name__ if shape is None else f"an array of {value.dtype}"
        raise TreeError(
            f"the leaf {placeholder.path!r} of trainable must be a floating-point array, not "
            f"{found}"
        )
    if tuple(shape) != placeholder.shape and not _is_slice(value, placeholder.shape):
        raise TreeError(
            f"the leaf {placeholder.path!r} has shape {tuple(shape)} in trainable, but "
            f"{placeholder.shape} in the tree that frozen came from"
        )
    if not cast or value.dtype == placeholder.dtype:
        return value
    if isinstance(value, jax.ShapeDtypeStruct):
        return value.update(dtype=placeholder.dtype)
    return value.astype(placeholder.dtype)


def _is_slice(value: Any, shape: tuple[int, ...]) -> bool:
    """Whether a traced value lacks only axes of the whole leaf.

    Under `vmap` or `scan` over both halves of stacked params a layer's leaf has one axis less, and
    the placeholder, which is no array, still the stack's shape.
    """
    axes = iter(shape)
    return isinstance(value, Tracer) and all(size in axes for size in value.shape)


def _explain_mismatch(
    trainable: Any, frozen: Any, placeholders: Mapping[str, Placeholder]
) -> TreeError:
    if not placeholders and _has_placeholder(trainable):
        return TreeError("the halves are the wrong way round: call merge_params(trainable, frozen)")
    check_leaves(trainable)
    missing = sorted(placeholders.keys() - trainable.keys())
    if missing:
        return TreeError(
            f"the leaves {list_names(missing)} are in neither half: frozen has a placeholder "
            "there and trainable has no such key. Pass the two halves of one partition_params call"
        )
    present = {join(leaf.path) for leaf in flatten(frozen)[0]}
    extra = sorted(map(str, trainable.keys() - placeholders.keys()))
    both = [name for name in extra if name in present]
    if both:
        return TreeError(
            f"the leaves {list_names(both)} are in both halves: frozen still holds them. Pass the "
            "frozen half of the same partition_params call, not the whole tree"
        )
    return TreeError(
        f"the leaves {list_names(extra)} of trainable have no place in frozen, which comes from "
        "another tree or another config"
    )


def _has_placeholder(tree: Any) -> bool:
    return any(map(is_placeholder, jax.tree.leaves(tree, is_leaf=is_placeholder)))
