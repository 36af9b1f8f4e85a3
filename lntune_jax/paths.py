"""Names for the leaves of any pytree: one tuple of strings for each, the same for every container.

A flat torch-style dict, a nested dict, a list, a dataclass and an NNX state that hold the same
parameters give the same paths, so one pattern and one adapter file serve them all.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .errors import TreeError

Path = tuple[str, ...]


class Leaf(NamedTuple):
    """One leaf of a tree.

    Attributes:
        path: its path.
        value: its value.
        is_parameter: whether it is a parameter, or other state.
        is_repeat: whether it is an NNX variable that came before, under another path.
    """

    path: Path
    value: Any
    is_parameter: bool
    is_repeat: bool = False


def flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> tuple[list[Leaf], Any]:
    """Lists the leaves of `tree` with their paths, in JAX's order, and the tree's structure.

    `None` is an empty subtree, as everywhere in JAX, and gives no leaf. Of Linen's variables (see
    `holds_collections`) `params` is no segment, and what stands beside it is state.

    Raises:
        TreeError: two leaves have one path, as in `{"a.b": x, "a": {"b": y}}`; the keys of a dict
            cannot be sorted; or a leaf is an array of a foreign kind, such as a PyTorch tensor.
    """
    is_box = _make_box_test()
    stop = (lambda x: is_box(x) or (is_leaf is not None and is_leaf(x))) if is_box else is_leaf
    try:
        found, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=stop)
        treedef = jax.tree_util.tree_structure(tree, is_leaf=is_leaf)
    except ValueError as error:  # dict keys that cannot be sorted
        raise TreeError(f"JAX cannot flatten the tree: {error}") from error
    has_collections = holds_collections(tree)
    leaves: list[Leaf] = []
    boxes: set[int] = set()
    for keys, value in found:
        path, is_parameter = split_keys(keys), True
        if has_collections:
            is_parameter = path[0] == "params"
            path = path[1:] if is_parameter else path
        if is_box and is_box(value):
            # The box's own key (`.value`) is no segment; what it holds may have keys below it.
            inner, _ = jax.tree_util.tree_flatten_with_path(value, is_leaf=is_leaf)
            is_parameter = is_parameter and _holds_parameter(value)
            is_repeat = id(value) in boxes
            boxes.add(id(value))
            leaves += [
                Leaf((*path, *split_keys(k[1:])), v, is_parameter, is_repeat) for k, v in inner
            ]
        else:
            leaves.append(Leaf(path, value, is_parameter))
    _check_unique(leaves)
    _check_kinds(leaves)
    return leaves, treedef


def holds_collections(tree: Any) -> bool:
    """Whether a tree looks like Linen's variables: a dict of collections, one of them `params`.

    `flatten_dict` of such a dict counts too, with tuples for keys or with names joined by slashes.
    An attribute or a module that merely is called `params` does not, nor does the trainable half,
    whose keys have dots.

    Example:
        >>> holds_collections({"params": {"ln": {"scale": 1.0}}, "batch_stats": {}})
        True
        >>> holds_collections({"params.scale": 1.0}), holds_collections({"params": 1.0})
        (False, False)
    """
    if not isinstance(tree, dict) and not _is_frozen_dict(tree):
        return False
    if isinstance(tree.get("params"), Mapping):
        return True
    tuples = (key for key in tree if isinstance(key, tuple) and len(key) > 1)
    if any(key[0] == "params" for key in tuples):
        return all(isinstance(key, tuple) for key in tree)
    return any(isinstance(key, str) and key.startswith("params/") for key in tree)


def join(path: Path) -> str:
    """Writes a path as one string, its segments joined by dots."""
    return ".".join(path)


def get_shape(value: Any) -> tuple[int, ...] | None:
    """The shape of an array, a numpy array or a `jax.ShapeDtypeStruct`; None for anything else."""
    return getattr(value, "shape", None) if hasattr(value, "dtype") else None


def _check_unique(leaves: list[Leaf]) -> None:
    seen: set[str] = set()
    for leaf in leaves:
        name = join(leaf.path)
        if name in seen:
            raise TreeError(
                f"two leaves of the tree have the path {name!r}; keys are split at dots and "
                "slashes, so rename one of them"
            )
        seen.add(name)


def split_keys(keys: tuple[Any, ...]) -> Path:
    """The segments that JAX's keys of one leaf give."""
    path: list[str] = []
    for key in keys:
        name = _get_name(key)
        for part in name if isinstance(name, tuple) and name else (name,):
            path += split_name(str(part))
    return tuple(path)


@functools.lru_cache(maxsize=1024)  # the keys of a large tree are few, and repeated
def split_name(name: str) -> Path:
    """The segments of one key: it is split at dots and slashes."""
    return tuple(part for part in re.split(r"[./]", name) if part) or (name,)


def _get_name(key: Any) -> Any:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return str(key)


def _check_kinds(leaves: list[Leaf]) -> None:
    """Refuses arrays whose dtype JAX does not know, such as PyTorch tensors."""
    for leaf in leaves:
        kind = type(leaf.value)
        if _is_known(kind) or get_shape(leaf.value) is None:
            continue
        try:
            jnp.issubdtype(leaf.value.dtype, np.generic)
        except TypeError:
            raise TreeError(
                f"the leaf {join(leaf.path)!r} is a {kind.__module__}.{kind.__qualname__} of dtype "
                f"{leaf.value.dtype}, which JAX does not know: pass numpy or jax arrays (of a "
                "PyTorch tensor, tensor.detach().numpy())"
            ) from None


@functools.lru_cache(maxsize=256)
def _is_known(kind: type) -> bool:
    return issubclass(kind, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def _is_frozen_dict(tree: Any) -> bool:
    kind = getattr(sys.modules.get("flax.core"), "FrozenDict", None)
    return kind is not None and isinstance(tree, kind)


def _make_box_test() -> Callable[[Any], bool] | None:
    """A test for Flax's boxes around one array; None where Flax is not loaded, so has made none."""
    flax_nnx, flax_meta = sys.modules.get("flax.nnx"), sys.modules.get("flax.core.meta")
    boxes = ()
    if flax_nnx is not None and hasattr(flax_nnx, "Variable"):
        boxes += (flax_nnx.Variable,)
    if flax_meta is not None and hasattr(flax_meta, "AxisMetadata"):
        boxes += (flax_meta.AxisMetadata,)
    return (lambda x: isinstance(x, boxes)) if boxes else None


def _holds_parameter(box: Any) -> bool:
    """Whether a box holds a parameter; an NNX random state or batch statistic does not."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None or not isinstance(box, nnx.Variable):
        return True
    return isinstance(box, nnx.Param)
