"""Which leaves of a tree a config trains, checked: the one way in for all other modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..config import LNTuningConfig
from ..errors import ConfigError
from ..names.layers import Part, fold_roles, list_parts, view
from ..names.maps import NameMap, get_name_map
from ..paths import Path, flatten, join
from .diagnostics import check_selection
from .norms import NORM, find_norms, get_kind, is_trainable_array, split_modules
from .roles import Selection, assign_roles, match_config


class Views(NamedTuple):
    """A selection of the tree's leaves, and of the same leaves under the names of a name map.

    Attributes:
        tree: the leaves as they are.
        named: the leaves layer by layer; the same object as `tree` without a name map.
        parts: for each leaf path the parts that the leaf holds; None without a name map.
        norms: the paths of the norms in `named`: modules, or leaves where these were given.
    """

    tree: Selection
    named: Selection
    parts: Mapping[str, Sequence[Part]] | None
    norms: list[str]


def select_leaves(
    params: Any,
    config: LNTuningConfig,
    norms: Iterable[str] | None = None,
    name_map: str | NameMap | None = None,
    *,
    warn: bool = True,
) -> Selection:
    """Gives each leaf of `params` its role.

    Args:
        params: any pytree.
        config: which leaves train.
        norms: paths of the norms' modules or leaves, where they are known; else they are found.
        name_map: for trees with stacked layers: the names, layer by layer, that the patterns of
            `config` are for.
        warn: whether a pattern that has no effect gives an `UnmatchedPatternWarning`.

    Raises:
        ConfigError: `config` is no `LNTuningConfig`, or `name_map` is not known.
        SelectionError: nothing trains; a target names modules that hold no norm; `model_type` is
            not known; a part of a stacked leaf would train alone.
        TreeError: two leaves have the same path.
    """
    return select_views(params, config, norms, name_map, warn=warn).tree


def select_views(
    params: Any,
    config: LNTuningConfig,
    norms: Iterable[str] | None = None,
    name_map: str | NameMap | None = None,
    *,
    named_norms: Iterable[str] | None = None,
    warn: bool = True,
) -> Views:
    """Does the same, and gives the names too; `named_norms` are the norms' modules by name."""
    if not isinstance(config, LNTuningConfig):
        raise ConfigError(f"config must be an LNTuningConfig, not {type(config).__name__}")
    known_map = get_name_map(name_map)
    leaves, treedef = flatten(params)
    known = split_modules(norms)
    kinds = find_norms(params, leaves) if known is None else dict.fromkeys(known, NORM)
    parts = None if known_map is None else list_parts(leaves, known_map)
    named = leaves
    if parts is not None:
        named = [part for leaf in leaves for part in view(leaf, parts[join(leaf.path)])]
        kinds = _rename(kinds, parts)
    if named_norms is not None:
        kinds = dict.fromkeys(split_modules(named_norms) or (), NORM)
    matches = match_config(config, [leaf.path for leaf in named])
    roles = assign_roles(named, kinds, matches)
    selection = Selection(named, treedef, roles)
    norm_paths = [
        leaf.path for leaf in named if get_kind(kinds, leaf.path) and is_trainable_array(leaf)
    ]
    check_selection(selection, matches, config, norm_paths, warn)
    modules = [join(module) for module in kinds]
    if parts is None:
        return Views(selection, selection, None, modules)
    by_name = {join(leaf.path): role for leaf, role in zip(named, roles, strict=True)}
    own = Selection(leaves, treedef, fold_roles(leaves, parts, by_name))
    return Views(own, selection, parts, modules)


def _rename(kinds: Mapping[Path, str], parts: Mapping[str, Sequence[Part]]) -> dict[Path, str]:
    """The kinds of norm modules, or of leaves, by their names."""
    renamed: dict[Path, str] = {}
    for name, own in parts.items():
        path = tuple(name.split("."))
        for part in own:
            new = tuple(part.name.split("."))
            if path in kinds:
                renamed[new] = kinds[path]
            elif path[:-1] in kinds:
                renamed[new[:-1]] = kinds[path[:-1]]
    return renamed
