"""Names for the leaves of any pytree: one tuple of strings for each, the same for every container.

A flat torch-style dict, a nested dict, a list, a dataclass and an NNX state that hold the same
parameters give the same paths, so one pattern and one adapter file serve them all.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from .errors import TreeError

Path = tuple[str, ...]

# Collections of a Linen variables dict that never hold parameters. Every collection that stands
# beside `params` is one too.
STATE_COLLECTIONS = frozenset({"batch_stats", "cache", "intermediates"})


class Leaf(NamedTuple):
    """One leaf of a tree: its path, its value, and whether it is a parameter or other state."""

    path: Path
    value: Any
    is_parameter: bool


def flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> tuple[list[Leaf], Any]:
    """Lists the leaves of `tree` with their paths, in JAX's order, and the tree's structure.

    `None` is an empty subtree, as everywhere in JAX, and gives no leaf.

    Raises:
        TreeError: two leaves have one path, as in `{"a.b": x, "a": {"b": y}}`, or the keys of a
            dict cannot be sorted.
    """
    is_box = _make_box_test()
    stop = (lambda x: is_box(x) or (is_leaf is not None and is_leaf(x))) if is_box else is_leaf
    try:
        found, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=stop)
        treedef = jax.tree_util.tree_structure(tree, is_leaf=is_leaf)
    except ValueError as error:  # dict keys that cannot be sorted
        raise TreeError(f"JAX cannot flatten the tree: {error}") from error
    has_params_collection = any(_get_first_key(keys) == "params" for keys, _ in found)
    leaves: list[Leaf] = []
    for keys, value in found:
        path = _split_keys(keys)
        collection = _get_first_key(keys)
        is_parameter = collection not in STATE_COLLECTIONS
        if has_params_collection:
            is_parameter = collection == "params"
            path = path[1:] if is_parameter else path
        if is_box and is_box(value):
            # The box's own key (`.value`) is no segment; what it holds may have keys below it.
            inner, _ = jax.tree_util.tree_flatten_with_path(value, is_leaf=is_leaf)
            is_parameter = is_parameter and _holds_parameter(value)
            leaves += [Leaf((*path, *_split_keys(k[1:])), v, is_parameter) for k, v in inner]
        else:
            leaves.append(Leaf(path, value, is_parameter))
    _check_unique(leaves)
    return leaves, treedef


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


def _split_keys(keys: tuple[Any, ...]) -> Path:
    return tuple(part for key in keys for part in _split_name(str(_get_name(key))))


@functools.lru_cache(maxsize=1024)  # the keys of a large tree are few, and repeated
def _split_name(name: str) -> Path:
    return tuple(part for part in re.split(r"[./]", name) if part) or (name,)


def _get_first_key(keys: tuple[Any, ...]) -> str | None:
    """The first key, if it is the key of a dict or an attribute."""
    if not keys or isinstance(keys[0], jax.tree_util.SequenceKey):
        return None
    return str(_get_name(keys[0]))


def _get_name(key: Any) -> Any:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return str(key)


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
