"""A module's leaves by path, and a plain tree of weights put into it.

The modules are made once, without memory; `bind` puts the tree's arrays into them, and so is the
same function however the arrays change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
from flax import nnx

from lntune_jax.errors import ModelError

from .quantized import read_kernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..types import Leaves


def skeleton(make: Callable[[], Any]) -> tuple[Leaves, Callable[[Any], Any]]:
    """Give a module's leaves, by path, and the function that puts a tree of arrays into it."""
    graph, state = nnx.split(nnx.eval_shape(make))
    # Indices of layers are integers here and strings in the params.
    places = dict(jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(state))[0])
    keys = {tuple(str(part.key) for part in path): path for path in places}
    leaves = {path: places[place] for path, place in keys.items()}

    def bind(params: Any) -> Any:
        tree: dict[Any, Any] = {}
        for path, expected in leaves.items():
            norm = _is_norm(path, leaves)
            _put(tree, [part.key for part in keys[path]], _leaf(params, path, expected, norm))
        return nnx.merge(graph, tree)

    return leaves, bind


def nest(leaves: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    """Give the nested dict of what is given by path."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        _put(tree, path, leaf)
    return tree


def by_path(tree: Any) -> dict[tuple[str, ...], Any]:
    """Give the leaves of nested dicts by path: what `nest` puts together again."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {tuple(key.key for key in path): leaf for path, leaf in flat}


def _put(tree: dict[Any, Any], path: Any, leaf: Any) -> None:
    for segment in path[:-1]:
        tree = tree.setdefault(segment, {})
    tree[path[-1]] = leaf


def _is_norm(path: tuple[str, ...], leaves: Leaves) -> bool:
    return path[-1] in ("scale", "bias") and (*path[:-1], "scale") in leaves


def _leaf(params: Any, path: tuple[str, ...], expected: jax.ShapeDtypeStruct, is_norm: bool) -> Any:
    found = params
    for segment in path:
        try:
            found = found[segment]
        except (KeyError, TypeError, IndexError):
            raise ModelError(
                f"params has no leaf {'.'.join(path)} of the shape {expected.shape}; pass the "
                "whole tree (merge the trainable half with the frozen one first)"
            ) from None
    found = read_kernel(found)
    if getattr(found, "shape", None) != expected.shape:
        shape = getattr(found, "shape", f"none, as a {type(found).__name__}")
        has_rows = isinstance(shape, tuple) and shape[1:] == expected.shape
        if has_rows and is_norm:  # parameters of its own for each row of the batch
            # A loop over stacked layers takes its first axis.
            return found if len(expected.shape) == 1 else found.swapaxes(0, 1)
        if has_rows:
            raise ModelError(
                f"params leaf {'.'.join(path)} has a batch axis: {shape}, where norms alone may "
                "differ from row to row. Call lntune_jax.bank.apply_per_example, which computes a "
                "matmul for each row there, or leave saved modules out of the bank"
            )
        raise ModelError(
            f"params leaf {'.'.join(path)} has the shape {shape}; expected {expected.shape}"
        )
    return found
