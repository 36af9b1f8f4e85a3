"""Whether a base is the one that a bank was made over: its other parameters, and row 0."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..adapters.fingerprint import list_frozen
from ..adapters.samples import holds_values
from ..errors import AdapterError
from ..messages import list_names
from ..paths import flatten, get_shape, join
from ..selection.norms import find_statistics
from ..selection.roles import FROZEN_ROLE, SAVED_ROLE, STATE_ROLE, RoledTree
from ..storage.arrays import to_numpy


def list_base(params: Any, paths: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters that a bank has no rows for, and those that it has rows for.

    Raises:
        AdapterError: `params` lacks one of these.

    Example:
        >>> params = {"ln": {"scale": np.ones(2)}, "fc": {"kernel": np.ones((2, 2))}}
        >>> [list(part) for part in list_base(params, ["ln.scale"])]
        [['fc.kernel'], ['ln.scale']]
    """
    wanted = list(paths)
    leaves, treedef = flatten(params)
    values = {join(leaf.path): leaf.value for leaf in leaves}
    absent = [path for path in wanted if path not in values]
    if absent:
        raise AdapterError(
            f"the base lacks {list_names(absent)}, which the bank has rows for: pass the tree that "
            "the bank was made over"
        )
    statistics, own = find_statistics(leaves), set(wanted)

    def get_role(leaf: Any) -> str:
        if join(leaf.path) in own:
            return SAVED_ROLE
        is_state = not leaf.is_parameter or leaf.path in statistics
        return STATE_ROLE if is_state else FROZEN_ROLE

    selection = RoledTree(leaves, treedef, [get_role(leaf) for leaf in leaves])
    return list_frozen(selection), {path: values[path] for path in wanted}


def check_base(
    argument: str, arrays: Mapping[str, np.ndarray], own: Mapping[str, Any], *, has_values: bool
) -> None:
    """Compares shapes with the base's, and row 0 with its values, as closely as dtypes can tell.

    Raises:
        AdapterError: lists what differs.
    """
    wrong = []
    for path, array in arrays.items():
        shape = get_shape(own[path])
        if shape is None or tuple(shape) != array.shape[1:]:
            wrong.append(f"{path!r} has shape {shape}, in the bank {array.shape[1:]}")
        elif has_values and holds_values(own[path]) and not _is_same(array[0], own[path], path):
            wrong.append(f"{path!r} has other values than row 0 of the bank")
    if wrong:
        raise AdapterError(
            f"{argument} is another base than the bank's: {list_names(wrong, str)}. Pass the tree "
            "that the bank was made over, without an adapter in place"
        )


def _is_same(row: np.ndarray, value: Any, path: str) -> bool:
    """Equal in the narrower of the two dtypes."""
    found = to_numpy(path, value)
    narrow = min(row.dtype, found.dtype, key=lambda dtype: dtype.itemsize)
    return bool(np.array_equal(row.astype(narrow), found.astype(narrow)))
