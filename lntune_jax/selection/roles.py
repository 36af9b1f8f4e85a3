"""The role of each leaf under a config: patterns, norms and defaults brought together.

The order is PEFT's: `exclude_modules` first, then `modules_to_save`, then `target_modules`. It
depends on paths, shapes and dtypes only, never on values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from ..config import LNTuningConfig
from ..errors import SelectionError
from ..messages import Advice, Argument
from ..paths import Leaf, Path, get_shape, join
from .architectures import DEFAULT_TARGETS, MODULES_TO_SAVE
from .norms import GROUP_NORM, NORM, find_statistics, get_kind, is_trainable_array
from .patterns import Match, match_patterns
from .quantized import find_quantized

NORM_ROLE, SAVED_ROLE, FROZEN_ROLE, STATE_ROLE = "norm", "saved", "frozen", "state"
TRAINABLE_ROLES = (NORM_ROLE, SAVED_ROLE)
_NAMES_A_GROUP = re.compile(r"group|instance|(?<![a-z])gn(?![a-z])", re.IGNORECASE)


class RoledTree(NamedTuple):
    """The leaves of a tree, its structure, and each leaf's role: norm, saved, frozen or state."""

    leaves: list[Leaf]
    treedef: Any  # a jax.tree_util.PyTreeDef
    roles: list[str]

    def is_trainable(self, index: int) -> bool:
        """Whether the leaf at this place trains."""
        return self.roles[index] in TRAINABLE_ROLES

    def list_trainable(self) -> dict[str, Any]:
        """The leaves that train, by leaf path."""
        leaves = enumerate(self.leaves)
        return {join(leaf.path): leaf.value for i, leaf in leaves if self.is_trainable(i)}

    def list_paths(self, role: str) -> list[str]:
        """The leaf paths of this role."""
        pairs = zip(self.leaves, self.roles, strict=True)
        return [join(leaf.path) for leaf, own in pairs if own == role]


class Matches(NamedTuple):
    """What each pattern of a config matched. `targets` is None where every norm is a target."""

    excluded: list[Match]
    saved: list[Match]
    targets: list[Match] | None
    modules: list[str]

    def list_targets(self) -> frozenset[str]:
        """The names that are targets: as in PEFT, none that is excluded or saved."""
        return unite(self.targets) - unite(self.excluded) - unite(self.saved)


def match_config(config: LNTuningConfig, paths: Sequence[Path]) -> Matches:
    """Matches the patterns of a config, or its architecture's, against the paths of a tree."""
    names, modules = [join(path) for path in paths], list_modules(paths)
    targets, saved = _get_targets(config), get_modules_to_save(config)
    return Matches(
        excluded=match_patterns(config.exclude_modules, modules, names),
        saved=match_patterns(saved, modules, names, is_inside=True),
        targets=None if targets is None else match_patterns(targets, modules, names),
        modules=modules,
    )


def assign_roles(leaves: Sequence[Leaf], kinds: Mapping[Path, str], matches: Matches) -> list[str]:
    """Gives each leaf its role; `kinds` says which modules or leaves are norms, of which kind."""
    excluded, saved, targets = unite(matches.excluded), unite(matches.saved), matches.list_targets()
    # A group norm is no LayerNorm, and what only looks like a norm may be none: these train only
    # where a pattern names them, themselves.
    groups = unite(match for match in matches.targets or () if _names_groups(match)) & targets
    literal = unite(match for match in matches.targets or () if match.is_literal) & targets
    # A leaf that is known to be a norm's is so whatever its name.
    statistics = find_statistics(leaves) - kinds.keys()
    # Values of few bits and their scales have no useful gradient, whatever module is saved.
    quantized = find_quantized(leaf.path for leaf in leaves) - kinds.keys()

    def get_role(leaf: Leaf) -> str:
        kind = get_kind(kinds, leaf.path)
        if not leaf.is_parameter or leaf.path in statistics:
            return STATE_ROLE
        if is_named(leaf.path, excluded) or leaf.path in quantized:
            return FROZEN_ROLE
        if _is_inexact(leaf) and is_below(leaf.path, saved):
            return SAVED_ROLE
        if kind is None or not is_trainable_array(leaf):
            return FROZEN_ROLE
        if kind == NORM:
            trains = matches.targets is None or is_below(leaf.path, targets)
        else:
            trains = is_named(leaf.path, groups if kind == GROUP_NORM else literal)
        return NORM_ROLE if trains else FROZEN_ROLE

    return [get_role(leaf) for leaf in leaves]


def get_modules_to_save(config: LNTuningConfig) -> str | Sequence[str] | None:
    """The modules to save of the config or of its architecture."""
    if config.target_modules is None and config.modules_to_save is None and config.model_type:
        return MODULES_TO_SAVE.get(config.model_type)
    return config.modules_to_save


def list_modules(paths: Sequence[Path]) -> list[str]:
    """All module paths above these leaf paths, containers included, in the tree's order."""
    modules: dict[str, None] = {}
    previous: Path = ()
    for path in paths:
        if path[:-1] != previous:  # most leaves lie beside the one before them
            previous = path[:-1]
            modules |= dict.fromkeys(join(path[:end]) for end in range(1, len(path)))
    return list(modules)


def is_below(path: Path, names: frozenset[str]) -> bool:
    """Whether a leaf is named itself, or lies in a module that is."""
    return bool(names) and any(join(path[:end]) in names for end in range(1, len(path) + 1))


def is_named(path: Path, names: frozenset[str]) -> bool:
    """Whether a leaf, or the module that holds it, is named. PEFT excludes like this."""
    return join(path) in names or join(path[:-1]) in names


def unite(matches: Iterable[Match] | None) -> frozenset[str]:
    """All names that the patterns matched together."""
    return frozenset[str]().union(*(match.names for match in matches or ()))


def _get_targets(config: LNTuningConfig) -> str | Sequence[str] | None:
    """The patterns of the config or of its architecture; None where every norm trains."""
    if config.target_modules is not None or config.model_type is None:
        return config.target_modules
    if config.model_type not in DEFAULT_TARGETS:
        raise SelectionError(
            f"model_type {config.model_type!r} has no default targets; known are "
            f"{', '.join(sorted(DEFAULT_TARGETS))}. Set ",
            Argument("target_modules"),
            Advice((", or set ", Argument("model_type", None), " to train every norm found")),
        )
    return DEFAULT_TARGETS[config.model_type]


def _names_groups(match: Match) -> bool:
    return match.is_literal or bool(_NAMES_A_GROUP.search(match.pattern))


def _is_inexact(leaf: Leaf) -> bool:
    return get_shape(leaf.value) is not None and jnp.issubdtype(leaf.value.dtype, jnp.inexact)
