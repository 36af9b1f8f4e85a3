"""Which leaves of a tree train, decided once and handed on as a value.

`select` matches the patterns of a config against a tree and gives an immutable `Selection`. Every
function that takes a config also takes a `Selection`, and then works nothing out again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from ..config import LNTuningConfig
from ..errors import SelectionError, TreeError
from ..names.layers import Part, fold_roles, list_parts, view
from ..names.maps import NameMap, get_name_map
from ..partition import Partition, is_placeholder
from ..paths import Path, flatten, get_shape, join
from .diagnostics import check_selection
from .norms import (
    NORM,
    Judgement,
    find_by_type,
    get_kind,
    is_trainable_array,
    judge_modules,
    match_norms,
)
from .report import ParamReport
from .roles import (
    NORM_ROLE,
    SAVED_ROLE,
    Matches,
    RoledTree,
    assign_roles,
    is_below,
    match_config,
)
from .selection import (
    SelectedLeaf,
    Selection,
    assign_selection,
    get_config,
    partition_tree,
    refuse_names,
)


def select(
    params: Any,
    config: LNTuningConfig | Selection,
    *,
    norms: Iterable[str] | None = None,
    name_map: str | NameMap | None = None,
) -> Selection:
    """Decides which leaves of `params` train.

    Looks at paths, shapes and dtypes only, so abstract trees of any size will do.

    Args:
        params: any pytree of arrays, numpy arrays or `jax.ShapeDtypeStruct`.
        config: which leaves train. A `Selection` of a tree with the same leaves is given back.
        norms: which modules or leaves are norms, where you know (`norm_modules`,
            `discover_norms`): their paths. None finds them by type, name and shape.
        name_map: for trees whose layers are stacked: the names, one for each layer, that the
            patterns of `config` are for (`model.name_map`, or the name of a table).

    Raises:
        ConfigError: `config` is neither a config nor a selection, or `name_map` is not known.
        SelectionError: no norm trains, a target holds no norm, `model_type` is unknown, or with
            `name_map` some layers of a stacked leaf would train and others not.
        TreeError: two leaves have the same path.

    Warns:
        UnmatchedPatternWarning: a pattern matches nothing.
        UncertainNormWarning: a module looks like a norm, and its name does not say so.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"ln_1": {"scale": jnp.ones(4)}, "fc": {"kernel": jnp.ones((4, 4))}}
        >>> selection = lnt.select(params, lnt.LNTuningConfig())
        >>> trainable, frozen = selection.partition(params)
        >>> list(trainable)
        ['ln_1.scale']
    """
    if isinstance(config, Selection):
        assign_selection(config, params, norms, name_map)
        return config
    return _make_selection(_look(params, config, norms, name_map, None, warn=True))


def partition_params(
    params: Any,
    config: LNTuningConfig | Selection,
    *,
    norms: Iterable[str] | None = None,
    name_map: str | NameMap | None = None,
) -> Partition:
    """Splits `params` into the leaves that train and the rest: `select`, then its `partition`.

    No frozen leaf is copied: each is the same object as in `params`. A trainable leaf is the same
    object too, unless its precision is below `config.param_dtype`: then it is cast, since small
    steps on a bfloat16 weight round to nothing. Sharding is kept.

    Args:
        params: any pytree of arrays, numpy arrays or `jax.ShapeDtypeStruct`.
        config: which leaves train, and in which precision; or a `Selection`.
        norms: as in `select`.
        name_map: as in `select`. The keys of `trainable` stay the tree's own paths.

    Returns:
        A `Partition(trainable, frozen)`; `merge_params` is the inverse.

    Raises:
        SelectionError: as in `select`.
        TreeError: two leaves have the same path.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"ln_1": {"scale": jnp.ones(4)}, "fc": {"kernel": jnp.ones((4, 4))}}
        >>> trainable, frozen = lnt.partition_params(params, lnt.LNTuningConfig())
        >>> list(trainable)
        ['ln_1.scale']
        >>> frozen["ln_1"]
        {'scale': Placeholder('ln_1.scale', float32[4])}
    """
    if isinstance(config, Selection):
        refuse_names(config, norms, name_map)
        return config.partition(params)
    # The same without the value in between, which a call that keeps none need not make.
    look = _look(params, config, norms, name_map, None, warn=True)
    return partition_tree(look.views.tree, look.config.param_dtype)


def report_params(
    params: Any,
    config: LNTuningConfig | Selection,
    *,
    norms: Iterable[str] | None = None,
    name_map: str | NameMap | None = None,
) -> ParamReport:
    """Counts what trains; needs no values, so abstract trees of any size will do.

    There is no copy of a norm here, so `total` is the model's own count; PEFT's is larger by the
    trainable norms, which it counts twice. Nor are the scales of quantised kernels counted. The
    arguments are those of `partition_params`.

    Raises:
        SelectionError: as in `select`.
        TreeError: two leaves have the same path.

    Example:
        >>> import jax
        >>> import lntune_jax as lnt
        >>> shape = lambda *axes: jax.ShapeDtypeStruct(axes, "float32")
        >>> params = {"norm": {"weight": shape(4096)}, "lm_head": {"weight": shape(32000, 4096)}}
        >>> print(lnt.report_params(params, lnt.LNTuningConfig()))
        trainable params: 4,096 || all params: 131,076,096 || trainable%: 0.0031
    """
    return select(params, config, norms=norms, name_map=name_map).report()


class Views(NamedTuple):
    """The leaves of a tree with their roles, and the same leaves under the names of a name map.

    Attributes:
        tree: the leaves as they are.
        named: the leaves layer by layer; the same object as `tree` without a name map.
        parts: for each leaf path the parts that the leaf holds; None without a name map.
        norms: the paths of the norms in `named` that train: modules, or leaves where these were
            given. Sorted.
    """

    tree: RoledTree
    named: RoledTree
    parts: Mapping[str, Sequence[Part]] | None
    norms: list[str]


def select_views(
    params: Any,
    config: LNTuningConfig | Selection,
    norms: Iterable[str] | None = None,
    name_map: str | NameMap | None = None,
    *,
    named_norms: Iterable[str] | None = None,
    warn: bool = True,
) -> Views:
    """Gives each leaf of `params`, values included, its role, and its names under a name map.

    For the parts of this library that read and write files. `named_norms` are the norms by the
    names of the name map. The arguments are otherwise those of `select`, and so are the errors.
    """
    if isinstance(config, Selection):
        tree = assign_selection(config, params, norms, name_map)
        return _name(tree, config)
    return _look(params, config, norms, name_map, named_norms, warn=warn).views


def select_leaves(
    params: Any,
    config: LNTuningConfig | Selection,
    norms: Iterable[str] | None = None,
    name_map: str | NameMap | None = None,
    *,
    warn: bool = True,
) -> RoledTree:
    """Gives each leaf of `params`, values included, its role; else as `select_views`."""
    return select_views(params, config, norms, name_map, warn=warn).tree


class _Look(NamedTuple):
    """All that is known after a tree has been looked at."""

    config: LNTuningConfig
    views: Views
    kinds: Mapping[Path, str]  # by the names of the name map
    sources: Mapping[Path, str]  # how each norm was found
    matches: Matches
    name_map: NameMap | None
    has_given_norms: bool


def _look(
    params: Any,
    config: LNTuningConfig,
    norms: Iterable[str] | None,
    name_map: str | NameMap | None,
    named_norms: Iterable[str] | None,
    *,
    warn: bool,
) -> _Look:
    config = get_config(config)
    known_map = get_name_map(name_map)
    leaves, treedef = flatten(params)
    if len(leaves) == 1 and not leaves[0].path:
        raise TreeError(
            f"params is one {type(params).__name__}, not a tree of named arrays: pass the "
            "parameter tree, such as a dict of dicts"
        )
    given = None if norms is None else match_norms(norms, leaves)
    typed = find_by_type(params) if given is None else {}
    if given is None:
        judged = judge_modules(params, leaves, typed)
    else:
        judged = dict.fromkeys(given.paths, Judgement(NORM))
    kinds = {path: each.kind for path, each in judged.items()}
    doubts = {path: each.doubt for path, each in judged.items() if each.doubt}
    sources = dict.fromkeys(kinds, _say_source(norms)) | dict.fromkeys(typed, "by its type")
    parts = None if known_map is None else list_parts(leaves, known_map)
    named = leaves
    if parts is not None:
        named = [part for leaf in leaves for part in view(leaf, parts[join(leaf.path)])]
        kinds, doubts, sources = (_rename(each, parts) for each in (kinds, doubts, sources))
    if named_norms is not None:
        kinds, doubts = dict.fromkeys(match_norms(named_norms, named).paths, NORM), {}
    matches = match_config(config, [leaf.path for leaf in named])
    roles = assign_roles(named, kinds, matches)
    own = RoledTree(named, treedef, roles)
    norm_paths = [
        leaf.path for leaf in named if get_kind(kinds, leaf.path) and is_trainable_array(leaf)
    ]
    unmatched = [] if given is None else given.unmatched
    try:
        check_selection(own, matches, config, norm_paths, kinds, doubts, unmatched, warn)
    except SelectionError:
        if any(map(is_placeholder, jax.tree.leaves(params, is_leaf=is_placeholder))):
            raise TreeError(
                "params is a frozen half, with placeholders where the norms were: pass the whole "
                "tree, merge_params(trainable, frozen)"
            ) from None
        raise
    modules = _list_trained(kinds, own)
    views = Views(own, own, None, modules)
    if parts is not None:
        by_name = {join(leaf.path): role for leaf, role in zip(named, roles, strict=True)}
        tree = RoledTree(leaves, treedef, fold_roles(leaves, parts, by_name))
        views = Views(tree, own, parts, modules)
    return _Look(config, views, kinds, sources, matches, known_map, given is not None)


def _make_selection(look: _Look) -> Selection:
    """The value that is handed on: paths, shapes, roles and reasons, no arrays."""
    tree, parts = look.views.tree, look.views.parts
    explain = _make_explanation(look)
    leaves = []
    for leaf, role in zip(tree.leaves, tree.roles, strict=True):
        path = leaf.path if parts is None else tuple(parts[join(leaf.path)][0].name.split("."))
        shape = get_shape(leaf.value)
        dtype = type(leaf.value).__name__ if shape is None else _name_dtype(leaf.value.dtype)
        is_norm = get_kind(look.kinds, path) is not None
        reason = explain(path, role) if is_norm or role == SAVED_ROLE else ""
        axes = None if shape is None else tuple(shape)
        own = SelectedLeaf(join(leaf.path), axes, dtype, role, is_norm, reason, leaf.is_repeat)
        leaves.append(own)
    norms = tuple(map(join, look.kinds)) if look.has_given_norms else None
    return Selection(look.config, tuple(leaves), tree.treedef, norms, look.name_map)


def _make_explanation(look: _Look) -> Any:
    """A function that says why a leaf of a norm, or of a saved module, has its role."""
    matches, targets = look.matches, look.matches.list_targets()
    field = "target_modules" if look.config.target_modules is not None else "model_type's target"

    def find(patterns: Iterable[Any], path: Path, names: frozenset[str] | None = None) -> str:
        for match in patterns:
            own = match.names if names is None else match.names & names
            if is_below(path, own):
                return repr(match.pattern)
        return ""

    def explain(path: Path, role: str) -> str:
        kind = get_kind(look.kinds, path)
        if role == SAVED_ROLE:
            return f"as a saved module (modules_to_save {find(matches.saved, path)})"
        source = look.sources.get(path) or look.sources.get(path[:-1]) or "by its name and shape"
        if role == NORM_ROLE and matches.targets is None:
            return f"as a norm {source} (every norm trains)"
        if role == NORM_ROLE:
            return f"as a norm {source} ({field} {find(matches.targets or (), path, targets)})"
        if pattern := find(matches.excluded, path):
            return f"a norm {source}, excluded (exclude_modules {pattern})"
        if kind != NORM:
            return f"{kind}: it trains only where target_modules names it"
        return f"a norm {source} that no target names"

    return explain


_name_dtype = functools.lru_cache(str)  # numpy makes the name anew each time


def _say_source(norms: Any) -> str:
    if norms is None:
        return "by its name and shape"
    return "by a trace" if hasattr(norms, "opaque") else "by norms="


def _name(tree: RoledTree, selection: Selection) -> Views:
    """The views of a tree whose roles a selection has decided."""
    known, name_map = selection.by_path, selection.name_map
    parts = None if name_map is None else list_parts(tree.leaves, name_map)
    named, roles, norms = [], [], dict.fromkeys(_split(selection.norms or ()))
    for leaf, role in zip(tree.leaves, tree.roles, strict=True):
        own = [leaf] if parts is None else view(leaf, parts[join(leaf.path)])
        named += own
        roles += [role] * len(own)
        if selection.norms is None and known[join(leaf.path)].is_norm:
            norms |= dict.fromkeys(part.path[:-1] for part in own)
    by_name = tree if parts is None else RoledTree(named, tree.treedef, roles)
    return Views(tree, by_name, parts, _list_trained(norms, by_name))


def _split(norms: Iterable[str]) -> list[Path]:
    return [tuple(norm.split(".")) if norm else () for norm in norms]


def _list_trained(norms: Iterable[Path], tree: RoledTree) -> list[str]:
    """Those of some modules and leaves that hold what trains, in an order of their own."""
    trained = {
        path
        for leaf, role in zip(tree.leaves, tree.roles, strict=True)
        if role in (NORM_ROLE, SAVED_ROLE)
        for path in (leaf.path, leaf.path[:-1])
    }
    return sorted(join(path) for path in norms if path in trained)


def _rename(values: Mapping[Path, str], parts: Mapping[str, Sequence[Part]]) -> dict[Path, str]:
    """What is known of norm modules, or of leaves, by their names."""
    renamed: dict[Path, str] = {}
    for name, own in parts.items():
        path = tuple(name.split("."))
        for part in own:
            new = tuple(part.name.split("."))
            if path in values:
                renamed[new] = values[path]
            elif path[:-1] in values:
                renamed[new[:-1]] = values[path[:-1]]
    return renamed
