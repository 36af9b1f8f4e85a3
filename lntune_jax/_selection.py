"""Which leaves of a tree a config trains: the patterns, the norms and the defaults brought together.

The order is PEFT's: `exclude_modules` first, then `modules_to_save`, then `target_modules`. It
depends on paths, shapes and dtypes only, never on values.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._architectures import DEFAULT_TARGETS, MODULES_TO_SAVE
from ._config import LNTuningConfig
from ._errors import SelectionError, UnmatchedPatternWarning
from ._matching import Match, match_patterns, match_saved, suggest
from ._norms import GROUP_NORM, find_norms, is_norm_leaf, is_statistic, split_modules
from ._paths import Leaf, Path, flatten, get_shape, join

NORM_ROLE, SAVED_ROLE, FROZEN_ROLE, STATE_ROLE = "norm", "saved", "frozen", "state"
_NAMES_A_GROUP = re.compile(r"group|instance|gn", re.IGNORECASE)


class Selection(NamedTuple):
    """The leaves of a tree, its structure, and the role of each leaf: norm, saved, frozen, state."""

    leaves: list[Leaf]
    treedef: jax.tree_util.PyTreeDef
    roles: list[str]

    def is_trainable(self, index: int) -> bool:
        """Whether the leaf at this place trains."""
        return self.roles[index] in (NORM_ROLE, SAVED_ROLE)


def select_leaves(
    params: Any, config: LNTuningConfig, norms: Iterable[str] | None = None
) -> Selection:
    """Gives each leaf of `params` its role.

    Args:
        params: any pytree.
        config: which leaves train.
        norms: module paths of the norms, where they are known; else they are found.

    Raises:
        SelectionError: nothing trains; a target names modules that hold no norm; `model_type` is
            not known.
    """
    leaves, treedef = flatten(params)
    paths = [leaf.path for leaf in leaves]
    names = [join(path) for path in paths]
    modules = _list_modules(paths)
    known = split_modules(norms)
    kinds = find_norms(params, leaves) if known is None else dict.fromkeys(known, "norm")
    is_norm = [leaf.path[:-1] in kinds and is_norm_leaf(leaf) for leaf in leaves]

    excluded = match_patterns(config.exclude_modules, modules, names)
    saved = match_saved(_get_modules_to_save(config), modules, names)
    targets = match_patterns(_get_targets(config), modules, names)
    out = frozenset().union(*(match.names for match in excluded))
    kept = frozenset().union(*(match.names for match in saved))
    all_norms_train = _get_targets(config) is None
    plain = frozenset().union(*(match.names for match in targets))
    groups = frozenset().union(*(match.names for match in targets if _names_groups(match)))

    roles: list[str] = []
    for leaf, name, norm in zip(leaves, names, is_norm, strict=True):
        group = kinds.get(leaf.path[:-1]) == GROUP_NORM
        if not leaf.is_parameter or is_statistic(leaf):
            roles.append(STATE_ROLE)
        elif out and (name in out or join(leaf.path[:-1]) in out):
            roles.append(FROZEN_ROLE)
        elif kept and _is_below(leaf.path, kept) and _can_train(leaf):
            roles.append(SAVED_ROLE)
        elif norm and (
            _is_below(leaf.path, groups if group else plain) or (all_norms_train and not group)
        ):
            roles.append(NORM_ROLE)
        else:
            roles.append(FROZEN_ROLE)

    selection = Selection(leaves, treedef, roles)
    norm_names = [name for name, norm in zip(names, is_norm, strict=True) if norm]
    if config.target_modules is not None:
        _check_targets(targets, leaves, is_norm, modules, norm_names)
    if config.modules_to_save is not None:
        _check_saved(saved, selection, out, modules)
    _check_excluded(excluded, selection, is_norm, modules)
    if not any(map(selection.is_trainable, range(len(roles)))):
        raise _explain_nothing(config, norm_names, leaves)
    return selection


def _get_targets(config: LNTuningConfig) -> str | Sequence[str] | None:
    """The patterns of the config or its architecture; None where every norm trains."""
    if config.target_modules is not None or config.model_type is None:
        return config.target_modules
    if config.model_type not in DEFAULT_TARGETS:
        raise SelectionError(
            f"model_type {config.model_type!r} has no default targets; known are "
            f"{', '.join(sorted(DEFAULT_TARGETS))}. Set target_modules, or set model_type=None to "
            "train every norm that is found"
        )
    return DEFAULT_TARGETS[config.model_type]


def _get_modules_to_save(config: LNTuningConfig) -> str | Sequence[str] | None:
    if config.target_modules is None and config.modules_to_save is None and config.model_type:
        return MODULES_TO_SAVE.get(config.model_type)
    return config.modules_to_save


def _list_modules(paths: Sequence[Path]) -> list[str]:
    """All module paths, containers included, in the tree's order."""
    modules: dict[str, None] = {}
    for path in paths:
        for end in range(1, len(path)):
            modules[join(path[:end])] = None
    return list(modules)


def _is_below(path: Path, names: frozenset[str]) -> bool:
    """Whether a leaf is named itself, or lies in a module that is."""
    return bool(names) and any(join(path[:end]) in names for end in range(1, len(path) + 1))


def _can_train(leaf: Leaf) -> bool:
    return get_shape(leaf.value) is not None and jnp.issubdtype(leaf.value.dtype, jnp.inexact)


def _names_groups(match: Match) -> bool:
    return match.is_literal or bool(_NAMES_A_GROUP.search(match.pattern))


def _check_targets(
    targets: Sequence[Match],
    leaves: Sequence[Leaf],
    is_norm: Sequence[bool],
    modules: Sequence[str],
    norm_names: Sequence[str],
) -> None:
    for match in targets:
        if not match.names:
            _warn_unmatched("target_modules", match.pattern, modules)
        elif not any(
            _is_below(leaf.path, match.names) for leaf, n in zip(leaves, is_norm, strict=True) if n
        ):
            raise SelectionError(
                f"target_modules {match.pattern!r} matches {_list(sorted(match.names))}, where there "
                "is no LayerNorm or RMSNorm leaf. To train a whole module put it into "
                f"modules_to_save; the norms of this tree are {_list(norm_names)}"
            )


def _check_saved(
    saved: Sequence[Match], selection: Selection, out: frozenset[str], modules: Sequence[str]
) -> None:
    for match in saved:
        below = [i for i, leaf in enumerate(selection.leaves) if _is_below(leaf.path, match.names)]
        if not match.names:
            _warn_unmatched("modules_to_save", match.pattern, modules)
        elif not any(map(selection.is_trainable, below)):
            path = join(selection.leaves[below[0]].path)
            dtype = getattr(selection.leaves[below[0]].value, "dtype", "no array")
            why = (
                "exclude_modules takes it out"
                if path in out or path.rpartition(".")[0] in out
                else (f"no leaf in it can train (the first, {path!r}, is {dtype})")
            )
            raise SelectionError(
                f"modules_to_save {match.pattern!r} matches {_list(sorted(match.names))}, but {why}"
            )


def _check_excluded(
    excluded: Sequence[Match], selection: Selection, is_norm: Sequence[bool], modules: Sequence[str]
) -> None:
    for match in excluded:
        if not match.names:
            _warn_unmatched("exclude_modules", match.pattern, modules)
            continue
        own = [
            join(leaf.path[:-1]) in match.names or join(leaf.path) in match.names
            for leaf in selection.leaves
        ]
        below = [_is_below(leaf.path, match.names) for leaf in selection.leaves]
        missed = [
            join(leaf.path)
            for i, leaf in enumerate(selection.leaves)
            if below[i] and not own[i] and selection.is_trainable(i)
        ]
        if missed and not any(o and n for o, n in zip(own, is_norm, strict=True)):
            warnings.warn(
                f"exclude_modules {match.pattern!r} matches {_list(sorted(match.names))} but, as in "
                f"PEFT, not what lies below: {_list(missed)} will train. Write "
                f"'.*{match.pattern}.*' to exclude all of it",
                UnmatchedPatternWarning,
                stacklevel=4,
            )


def _warn_unmatched(field: str, pattern: str, modules: Sequence[str]) -> None:
    near = suggest(pattern, modules)
    nearest = f"; the nearest module paths are {_list(near)}" if near else ""
    warnings.warn(
        f"{field} {pattern!r} matches no module of this tree, so it has no effect{nearest}",
        UnmatchedPatternWarning,
        stacklevel=5,
    )


def _explain_nothing(
    config: LNTuningConfig, norm_names: Sequence[str], leaves: Sequence[Leaf]
) -> SelectionError:
    if not leaves:
        return SelectionError("nothing trains: the tree has no leaves. Pass the parameter tree")
    if not norm_names:
        paths = [join(leaf.path) for leaf in leaves]
        return SelectionError(
            "nothing trains: no LayerNorm or RMSNorm leaf was found in this tree, whose leaves are "
            f"{_list(paths)}. Name modules that are no norms in modules_to_save"
        )
    asked = {
        field: getattr(config, field)
        for field in ("target_modules", "exclude_modules", "modules_to_save", "model_type")
        if getattr(config, field) is not None
    }
    given = ", ".join(f"{field}={value!r}" for field, value in asked.items())
    default = ""
    if config.target_modules is None and config.model_type is not None:
        default = f" (its targets are {_list(DEFAULT_TARGETS[config.model_type])})"
    return SelectionError(
        f"nothing trains with {given}{default}; the norms of this tree are {_list(norm_names)}. "
        "Change target_modules or exclude_modules"
    )


def _list(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")
