"""Which leaves of a tree a config trains, checked: the one way in for all other modules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ._config import LNTuningConfig
from ._errors import ConfigError
from ._norms import NORM, find_norms, is_trainable_array, split_modules
from ._paths import flatten
from ._roles import Selection, assign_roles, match_config
from ._selection_checks import check_selection


def select_leaves(
    params: Any,
    config: LNTuningConfig,
    norms: Iterable[str] | None = None,
    *,
    warn: bool = True,
) -> Selection:
    """Gives each leaf of `params` its role.

    Args:
        params: any pytree.
        config: which leaves train.
        norms: module paths of the norms, where they are known; else they are found.
        warn: whether a pattern that has no effect gives an `UnmatchedPatternWarning`.

    Raises:
        ConfigError: `config` is no `LNTuningConfig`.
        SelectionError: nothing trains; a target names modules that hold no norm; `model_type` is
            not known.
        TreeError: two leaves have the same path.
    """
    if not isinstance(config, LNTuningConfig):
        raise ConfigError(f"config must be an LNTuningConfig, not {type(config).__name__}")
    leaves, treedef = flatten(params)
    known = split_modules(norms)
    kinds = find_norms(params, leaves) if known is None else dict.fromkeys(known, NORM)
    matches = match_config(config, [leaf.path for leaf in leaves])
    roles = assign_roles(leaves, kinds, matches)
    selection = Selection(leaves, treedef, roles)
    norm_paths = [
        leaf.path for leaf in leaves if leaf.path[:-1] in kinds and is_trainable_array(leaf)
    ]
    check_selection(selection, matches, config, norm_paths, warn)
    return selection
