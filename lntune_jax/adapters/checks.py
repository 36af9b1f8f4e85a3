"""Whether the leaves to be saved are those that the config trains, and are sound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ..errors import AdapterError
from ..messages import list_names
from ..partition import Placeholder, is_placeholder
from ..storage.leaves import compare_leaf, list_nonfinite

_LONGEST_PATH = 4096  # bytes; Orbax's store has a limit too


def fill_placeholders(base: Any) -> tuple[Any, dict[str, Placeholder]]:
    """The whole tree of a base that may be a frozen half, and its placeholders by leaf path.

    A placeholder becomes a `jax.ShapeDtypeStruct`, from which the config selects as from the leaf.

    Example:
        >>> fill_placeholders({"scale": Placeholder("scale", (4,), "float32")})[0]
        {'scale': ShapeDtypeStruct(shape=(4,), dtype=float32)}
    """
    leaves, treedef = jax.tree_util.tree_flatten(base, is_leaf=is_placeholder)
    placeholders = {leaf.path: leaf for leaf in leaves if is_placeholder(leaf)}
    if not placeholders:
        return base, {}
    filled = [jax.ShapeDtypeStruct(x.shape, x.dtype) if is_placeholder(x) else x for x in leaves]
    return treedef.unflatten(filled), placeholders


def check_trainable(
    trainable: Any, expected: Mapping[str, Any], placeholders: Mapping[str, Placeholder]
) -> None:
    """Compares the paths, shapes and kinds of the leaves with those selected in the base.

    Raises:
        AdapterError: lists what is missing, unexpected, or otherwise.
    """
    if not isinstance(trainable, Mapping):
        raise AdapterError(
            f"trainable must be a dict of leaf paths, not {type(trainable).__name__}: pass the "
            "first half that partition_params returned"
        )
    if placeholders and placeholders.keys() != expected.keys():
        others = sorted(placeholders.keys() ^ expected.keys())
        raise AdapterError(
            f"base is the frozen half of another config: its placeholders and what config selects "
            f"differ at {list_names(others)}. Pass the config (and norms) given to partition_params"
        )
    missing = [name for name in expected if name not in trainable]
    unexpected = [str(name) for name in trainable if name not in expected]
    wrong = [f"missing from trainable: {list_names(missing)}"] if missing else []
    wrong += [f"not selected by the config in base: {list_names(unexpected)}"] if unexpected else []
    for name in expected:
        if name in trainable:
            wrong += compare_leaf(name, trainable[name], expected[name])
    if wrong:
        raise AdapterError(
            f"trainable does not fit base and config: {list_names(wrong, str)}. Pass the trainable "
            "half of partition_params(base, config), or that half after training"
        )


def check_values(arrays: Mapping[str, np.ndarray]) -> None:
    """Refuses values that are not finite.

    Raises:
        AdapterError: lists the leaves.
    """
    broken = list_nonfinite(arrays)
    if broken:
        raise AdapterError(
            f"trainable holds values that are not finite, in {list_names(broken, str)}: training "
            "has diverged. Save an earlier state; numpy.isfinite shows which values"
        )
