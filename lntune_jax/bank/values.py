"""Whether an adapter fits the rows of a bank: its name, its leaves, their shapes and values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..adapters.fingerprint import holds_values
from ..errors import AdapterError
from ..messages import list_names, shorten
from ..paths import flatten, get_shape, join
from ..storage.leaves import cast_leaf, compare_leaf, list_nonfinite, to_numpy
from .core import BASE


def check_name(name: Any) -> str:
    """Gives a name that an adapter may have.

    Raises:
        AdapterError: it is no string, empty, or the base's.

    Example:
        >>> check_name("french")
        'french'
    """
    if not isinstance(name, str) or not name:
        raise AdapterError(
            f"an adapter's name must be a string with letters, not {shorten(repr(name))}"
        )
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise AdapterError(f"an adapter's name must be text, not {shorten(repr(name))}") from None
    if name == BASE:
        raise AdapterError(f"the name {BASE!r} is that of row 0, the base itself: use another one")
    return name


def get_trainable(adapter: Any) -> Mapping[str, Any]:
    """The leaves of an `Adapter`, or of a dict of leaves.

    Raises:
        AdapterError: it is neither, or holds none.
    """
    trainable = getattr(adapter, "trainable", adapter)
    if not isinstance(trainable, Mapping) or not trainable:
        raise AdapterError(
            "an adapter must be an Adapter, a dict of leaf paths or a path, and hold a leaf; found "
            f"{trainable!r:.80}"
        )
    for path, value in trainable.items():
        if not isinstance(path, str) or isinstance(value, Mapping):
            raise AdapterError(
                f"an adapter is a flat dict {{leaf path: array}}; found {shorten(repr(path))} with "
                f"a {type(value).__name__}: pass partition_params(tuned, config).trainable"
            )
    return trainable


def fit_values(name: str, adapter: Any, leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """An adapter's values in the dtypes of a bank.

    Args:
        name: for messages.
        adapter: an `Adapter`, or `{leaf path: array}`.
        leaves: for each leaf path, an array of the row's shape and dtype.

    Raises:
        AdapterError: a leaf has no place, another shape, no floating dtype, or a value that is
            not finite or too large for the bank's dtype; the message lists them.
    """
    trainable = get_trainable(adapter)
    absent = [path for path in trainable if path not in leaves]
    if absent:
        raise AdapterError(
            f"the adapter {name!r} tunes {list_names(absent)}, for which the bank has no rows: "
            "pass params=, the base's tree, whose values then stand in the other rows"
        )
    wrong = [
        text for path in trainable for text in compare_leaf(path, trainable[path], leaves[path])
    ]
    if wrong:
        raise AdapterError(f"the adapter {name!r} does not fit the bank: {list_names(wrong, str)}")
    values = {
        path: cast_leaf(to_numpy(path, value), leaves[path].dtype)
        for path, value in trainable.items()
    }
    broken = list_nonfinite(values)
    if broken:
        raise AdapterError(
            f"the adapter {name!r} holds values that are not finite in the bank's dtype, in "
            f"{list_names(broken, str)}: a training that diverged, or a dtype that is too narrow"
        )
    return values


def get_own(params: Any, paths: Iterable[str]) -> dict[str, Any]:
    """The leaves of a base that a bank has rows for.

    Raises:
        AdapterError: `params` lacks one of these.

    Example:
        >>> list(get_own({"ln": {"scale": np.ones(2)}, "fc": np.ones((2, 2))}, ["ln.scale"]))
        ['ln.scale']
    """
    values = {join(leaf.path): leaf.value for leaf in flatten(params)[0]}
    wanted = list(paths)
    absent = [path for path in wanted if path not in values]
    if absent:
        raise AdapterError(
            f"the base lacks {list_names(absent)}, which the bank has rows for: pass the tree that "
            "the bank was made over"
        )
    return {path: values[path] for path in wanted}


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
