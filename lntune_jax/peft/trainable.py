"""What an adapter's leaves are, from the trainable half alone or with the base's help."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..adapters.checks import check_trainable, fill_placeholders
from ..config import LNTuningConfig
from ..errors import AdapterError, SelectionError
from ..messages import list_names
from ..names.layers import fold_roles, list_parts, view
from ..names.maps import NameMap
from ..paths import Leaf, get_shape, join
from ..selection.norm_names import BIAS_NAMES, SCALE_NAMES
from ..selection.norms import NORM, find_norms, match_norms
from ..selection.roles import (
    FROZEN_ROLE,
    NORM_ROLE,
    SAVED_ROLE,
    RoledTree,
    assign_roles,
    match_config,
    unite,
)
from ..selection.select import select_leaves
from ..selection.selection import Selection, get_config
from .tree import Index, index_tree

_STORABLE = ("float64", "float32", "float16", "bfloat16")


class Tree(NamedTuple):
    """What is known of the tree: its parameters, its leaves' roles, and the base's values."""

    names: Index
    roles: dict[str, str]
    values: Mapping[str, Any]
    saved: frozenset[str]  # what `modules_to_save` matched


def check_arrays(trainable: Any) -> None:
    """Refuses what no adapter file can hold.

    Raises:
        AdapterError: names the leaves and what they are.
    """
    if not isinstance(trainable, Mapping) or not trainable:
        found = "an empty one" if isinstance(trainable, Mapping) else type(trainable).__name__
        raise AdapterError(
            f"trainable must be a dict of leaf paths, not {found}: pass the first half that "
            "partition_params returned"
        )
    wrong = [f"{name!r} ({_describe(v)})" for name, v in trainable.items() if not _is_storable(v)]
    if wrong:
        raise AdapterError(
            f"trainable holds what is no array of {', '.join(_STORABLE)}: {list_names(wrong, str)}"
        )


def _is_storable(value: Any) -> bool:
    return get_shape(value) is not None and str(value.dtype) in _STORABLE


def _describe(value: Any) -> str:
    return type(value).__name__ if get_shape(value) is None else str(value.dtype)


def read_trainable(
    trainable: Any, selected: LNTuningConfig | Selection, name_map: NameMap | None
) -> Tree:
    """What the trainable half alone says, for an adapter that needs nothing of the base.

    Raises:
        AdapterError: a leaf is not selected by the config, or PEFT keeps more than what trained.
    """
    tree, config = name_trainable(trainable, selected, name_map), get_config(selected)
    frozen = [name for name, role in tree.roles.items() if role not in (NORM_ROLE, SAVED_ROLE)]
    if frozen:
        raise AdapterError(
            f"trainable holds {list_names(frozen)}, which the config does not select: pass the "
            "config that partition_params was given"
        )
    saved = [name for name, role in tree.roles.items() if role == SAVED_ROLE]
    norms = [name for name, role in tree.roles.items() if role == NORM_ROLE]
    if isinstance(selected, Selection):
        trained = {name.rpartition(".")[0] for name in norms}
        left_out = (leaf.path for leaf in selected.leaves if leaf.path not in tree.roles)
        partial = [name for name in left_out if name.rpartition(".")[0] in trained]
    else:
        partial = _find_partial(norms, config)
    partial += [name for name in saved if name in tree.saved]
    partial += saved if config.exclude_modules else []
    if partial:
        raise AdapterError(
            f"the config trains leaves of {list_names(partial)} one by one, and PEFT keeps whole "
            "modules: pass base=params, so that the rest of each module is written too"
        )
    return tree


def name_trainable(
    trainable: Any, selected: LNTuningConfig | Selection, name_map: NameMap | None
) -> Tree:
    """The roles of trainable leaves, and their names in transformers, without their tree."""
    leaves = [Leaf(tuple(str(n).split(".")), value, True) for n, value in trainable.items()]
    config = get_config(selected)
    matches = match_config(config, [leaf.path for leaf in leaves])
    kinds = dict.fromkeys((leaf.path[:-1] for leaf in leaves), NORM)
    roles = dict(zip(map(_name, leaves), assign_roles(leaves, kinds, matches), strict=True))
    if isinstance(selected, Selection):
        known = selected.by_path
        roles = {name: known[name].role if name in known else FROZEN_ROLE for name in roles}
    elif name_map is not None and not set(roles.values()) <= {NORM_ROLE, SAVED_ROLE}:
        parts = list_parts(leaves, name_map)
        named = [part for leaf in leaves for part in view(leaf, parts[_name(leaf)])]
        matches = match_config(config, [part.path for part in named])
        own = dict.fromkeys((part.path[:-1] for part in named), NORM)
        by_name = dict(zip(map(_name, named), assign_roles(named, own, matches), strict=True))
        roles = dict(zip(map(_name, leaves), fold_roles(leaves, parts, by_name), strict=True))
    norms = {leaf.path[:-1] for leaf in leaves if roles[_name(leaf)] == NORM_ROLE}
    inside = find_norms({}, leaves)  # norms in saved modules, whose scales are called so too
    index = index_tree({}, leaves, name_map, norms={*norms, *inside})
    return Tree(index, roles, {}, unite(matches.saved))


def read_base(
    trainable: Mapping[str, Any],
    config: LNTuningConfig | Selection,
    base: Any,
    norms: Iterable[str] | None,
    name_map: NameMap | None,
) -> Tree:
    """The same with the base, which also gives what PEFT keeps beside what trained.

    Raises:
        AdapterError: trainable is not what the config selects in the base.
    """
    params, placeholders = fill_placeholders(base)
    norms = norms if norms is None or isinstance(norms, str) else list(norms)
    selection = _select(params, config, norms, name_map, trainable)
    roles = dict(zip(map(_name, selection.leaves), selection.roles, strict=True))
    values = {_name(leaf): leaf.value for leaf in selection.leaves}
    expected = {
        name: values[name] for name, role in roles.items() if role in (NORM_ROLE, SAVED_ROLE)
    }
    check_trainable(trainable, expected, placeholders)
    if isinstance(config, Selection):
        norms = config.norms
    given = None if norms is None else match_norms(norms, selection.leaves).paths
    index = index_tree(params, selection.leaves, name_map, norms=given)
    return Tree(index, roles, values, frozenset())


def _select(
    params: Any,
    config: LNTuningConfig | Selection,
    norms: Iterable[str] | None,
    name_map: str | NameMap | None,
    trainable: Mapping[str, Any],
) -> RoledTree:
    """By the tree's own names, or, where these say otherwise, layer by layer."""
    if isinstance(config, Selection):
        return select_leaves(params, config, norms)
    try:
        own = select_leaves(params, config, norms, warn=False)
    except SelectionError:
        if name_map is None:
            raise
        own = None
    if own is not None and (name_map is None or own.list_trainable().keys() == trainable.keys()):
        return own
    return select_leaves(params, config, norms, name_map, warn=False)


def _find_partial(norms: Iterable[str], config: LNTuningConfig) -> list[str]:
    """The modules of these leaves of which the config would leave a scale or a bias out."""
    unique = list(dict.fromkeys(tuple(name.split("."))[:-1] for name in norms))
    likely = [Leaf((*m, n), np.empty(1), True) for m in unique for n in SCALE_NAMES | BIAS_NAMES]
    matches = match_config(config, [leaf.path for leaf in likely])
    roles = assign_roles(likely, dict.fromkeys(unique, NORM), matches)
    left_out = [
        leaf.path[:-1] for leaf, role in zip(likely, roles, strict=True) if role != NORM_ROLE
    ]
    return [join(module) for module in dict.fromkeys(left_out)]


def _name(leaf: Leaf) -> str:
    return join(leaf.path)
