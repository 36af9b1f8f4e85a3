"""Patterns for programs that freeze by regular expressions of their own, such as MaxText."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ..config import LNTuningConfig
from ..names.rules import NameMap
from .select import select_leaves


def make_path_patterns(
    params: Any,
    config: LNTuningConfig,
    *,
    norms: Iterable[str] | None = None,
    name_map: str | NameMap | None = None,
    separator: str = "/",
) -> list[str]:
    """One regular expression for each leaf that trains; it matches that leaf and no other.

    For programs that freeze what no pattern finds (`re.search`) in the path of a leaf, such as
    MaxText's `trainable_parameters_mask`. A leading `params` and a trailing `value` in the path
    make no difference.

    Args:
        params: the tree, or its shapes.
        config: which leaves train.
        norms: as in `partition_params`.
        name_map: as in `partition_params`, for trees with stacked layers.
        separator: what the program writes between the keys of a path.

    Raises:
        SelectionError: nothing trains, or a target holds no norm.
        TreeError: two leaves have the same path.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> decoder = {"norm": {"scale": jnp.ones(4)}, "fc": {"kernel": jnp.ones((4, 4))}}
        >>> make_path_patterns({"decoder": decoder}, lnt.LNTuningConfig())
        ['^(params/)*decoder/norm/scale(/value)?$']
    """
    selection = select_leaves(params, config, norms, name_map)
    between = re.escape(separator)
    return [
        f"^(params{between})*{between.join(map(re.escape, leaf.path))}({between}value)?$"
        for index, leaf in enumerate(selection.leaves)
        if selection.is_trainable(index)
    ]
