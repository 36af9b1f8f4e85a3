"""From trainable leaves to a PEFT adapter.

The values go over bit for bit (a name map with an offset apart); only names, the layout of
kernels, and stacks of layers change.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..adapters.fit import check_trainable, check_values, fill_placeholders
from ..arguments import check_leaves
from ..config import LNTuningConfig
from ..errors import AdapterError, SelectionError
from ..messages import Argument, Code, list_names
from ..names.layers import fold_roles, list_parts, view
from ..names.maps import NameMap, Place, get_name_map, take
from ..paths import Leaf, get_shape, join
from ..selection.norm_names import BIAS_NAMES, SCALE_NAMES
from ..selection.norms import NORM, find_norms, match_norms
from ..selection.roles import (
    NORM_ROLE,
    SAVED_ROLE,
    STATE_ROLE,
    TRAINABLE_ROLES,
    Matches,
    RoledTree,
    assign_roles,
    match_config,
    unite,
)
from ..selection.select import select_leaves
from ..selection.selection import Selection, get_config
from ..storage.directories import resolve_path
from ..storage.leaves import to_numpy
from ..storage.processes import together, write_on_first_process
from .config import check_head, check_untied, is_saved_by_peft, list_parents, make_peft_config
from .files import write_key, write_peft_directory
from .tree import Index, index_tree

_STORABLE = ("float64", "float32", "float16", "bfloat16")


def export_peft(
    path: str | os.PathLike[str],
    trainable: Mapping[str, Any],
    config: LNTuningConfig | Selection,
    *,
    base: Any = None,
    norms: Iterable[str] | None = None,
    name_map: str | NameMap | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes an adapter that PEFT loads: `adapter_config.json` and `adapter_model.safetensors`.

    Targets that PEFT would read otherwise (expressions, containers, our defaults) are written out
    as module paths; `model_type` and `param_dtype`, which PEFT does not know, are left out. In a
    run of several processes each must call this; the first one writes.

    Args:
        path: the directory to make. Its parents are made too.
        trainable: `{leaf path: array}`, as `partition_params` gave it or after training.
        config: the config that `partition_params` was given, or the `Selection`.
        base: the parameters that were tuned, or the frozen half of `partition_params`. Needed only
            where PEFT's file holds more than what trained: a module of which some leaves trained,
            or the head of a classification task that did not train.
        norms: as given to `partition_params`, if it was; read together with `base`.
        name_map: the name of a table (`lntune_jax.peft.NAME_MAPS`) or a `NameMap`, for trees
            whose module paths are not those of transformers.
        overwrite: whether a PEFT adapter that is there is replaced. Files beside its two, such as a
            model card, are never deleted: with them the path is refused.

    Returns:
        The absolute path of the directory.

    Raises:
        AdapterError: the path exists; a leaf has no name in transformers; a value is not finite;
            PEFT needs more than the leaves that trained; an embedding trained that the model
            seems to share with its output; or the file system refuses.
        ConfigError: `name_map` is not known.
        SelectionError: the config selects nothing in `base`.
        TreeError: the layout of a saved kernel cannot be known, or two leaves are one parameter.

    Source: PEFT's `get_peft_model_state_dict` (src/peft/utils/save_and_load.py, 0.21).

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"model": {"norm": {"scale": jnp.ones(4)}}}
        >>> config = lnt.LNTuningConfig(target_modules=["norm"])
        >>> trainable, frozen = lnt.partition_params(params, config)
        >>> path = lnt.export_peft(tempfile.mkdtemp() + "/peft", trainable, config)
        >>> sorted(entry.name for entry in path.iterdir())
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    with together():
        target = resolve_path(path, error=AdapterError)
        settings = get_config(config)
        check_arrays(trainable)
        # In one order, however the leaves come: jitted functions sort a dict, `partition_params`
        # does not, and the same leaves give the same file.
        trainable = dict(sorted(trainable.items()))
        if isinstance(config, Selection) and name_map is None:
            name_map = config.name_map
        name_map = get_name_map(name_map)
        tree = _read_tree(trainable, config, base, norms, name_map)
        _check_names(tree.names, trainable, name_map)
        arrays = {name: to_numpy(name, value) for name, value in trainable.items()}
        wanted, written = _collect(tree, settings, trainable, name_map is not None)
        tensors: dict[str, np.ndarray] = {}
        for parameter, is_norm in wanted.items():
            place = tree.names.parameters[parameter]
            if place.leaf not in arrays:
                arrays[place.leaf] = to_numpy(place.leaf, tree.values[place.leaf])
            tensor = np.asarray(take(place, arrays[place.leaf]))
            _check_layout(place, tensor, is_norm, name_map is not None)
            tensors[write_key(parameter, is_norm=is_norm)] = tensor
        check_values(arrays)

        def write() -> None:
            write_peft_directory(target, tensors, written, overwrite=overwrite)

        write_on_first_process(write)
    return target


class Tree(NamedTuple):
    """What is known of the tree.

    Attributes:
        names: its parameters: of all leaves, or of the trainable ones where no more is known.
        roles: the role of each leaf, by leaf path.
        values: the base's leaves, or none.
        is_whole: whether all leaves are known.
        saved: without the whole tree, what `modules_to_save` matched.
    """

    names: Index
    roles: Mapping[str, str]
    values: Mapping[str, Any]
    is_whole: bool
    saved: frozenset[str]


def _collect(
    tree: Tree, config: LNTuningConfig, trainable: Mapping[str, Any], is_renamed: bool
) -> tuple[dict[str, bool], LNTuningConfig]:
    """The parameters that PEFT wants in the file, and whether each is a norm's; and its config.

    More than what trained, sometimes: PEFT keeps norms and saved modules whole, and wants the head
    of a task in every file.
    """
    wanted = {
        place.parameter: tree.roles[name] == NORM_ROLE
        for name in trainable
        for place in tree.names.places[name]
    }
    if not any(wanted.values()):
        raise AdapterError(
            "the adapter holds saved modules alone, and PEFT loads none without a norm: train at "
            "least one (",
            Argument("target_modules"),
            "), or keep the leaves with save_adapter",
        )
    known = tree.names.parameters
    modules = set(list_parents(name for name, is_norm in wanted.items() if is_norm))
    beside = [name for name in known if name in tree.names.norms and name not in wanted]
    wanted |= dict.fromkeys((n for n in beside if n.rpartition(".")[0] in modules), True)
    while True:
        norms = [name for name, is_norm in wanted.items() if is_norm]
        saved = [name for name, is_norm in wanted.items() if not is_norm]
        written = make_peft_config(config, norms, saved, known=known, is_renamed=is_renamed)
        entries = (*(written.modules_to_save or ()), *written.optional_modules)
        more = [name for name in known if name not in wanted and is_saved_by_peft(name, entries)]
        if not more:
            break
        wanted |= dict.fromkeys(more, False)
    there = trainable.keys() | tree.values.keys()
    lacking = [name for name in wanted if known[name].leaf not in there]
    if lacking:
        raise AdapterError(
            f"PEFT keeps whole modules, and wants {list_names(lacking)} too: pass ",
            Argument("base", Code("params")),
            ", so that these are written as they are in the base",
        )
    if not tree.is_whole:
        check_head(written, wanted, tree.saved)
    check_untied(wanted, config.task_type, known if tree.is_whole else None)
    return wanted, written


def _check_names(names: Index, leaves: Collection[str], name_map: NameMap | None) -> None:
    nowhere = [place.leaf for place in names.parameters.values() if "." not in place.parameter]
    nowhere = sorted(set(nowhere) & set(leaves))
    if nowhere:
        raise AdapterError(
            f"these leaves lie in no module, and PEFT keeps modules only: {list_names(nowhere)}. "
            "Leave them out of the training, or keep the adapter with save_adapter"
        )
    nameless = [name for name in leaves if name not in names.places]
    if nameless and name_map is not None:
        raise AdapterError(
            Argument("name_map"),
            f" has no rule for {list_names(nameless)}: its rules are for "
            f"{list_names([rule.leaf for rule in name_map.rules])}. Add one, or pass the map of "
            "the library that made the tree",
        )
    if nameless:
        raise AdapterError("these leaves have no name in transformers: ", names.explain(nameless))


def _check_layout(place: Place, tensor: np.ndarray, is_norm: bool, is_renamed: bool) -> None:
    if is_norm and tensor.ndim != 1:
        raise AdapterError(
            f"the norm leaf {place.leaf!r} has shape {tensor.shape}, a stack of layers, which "
            "PEFT keeps one by one: pass a ",
            Argument("name_map"),
            " that says along which axis they lie",
        )
    if not is_renamed and len(place.axes or ()) == 3:
        raise AdapterError(
            f"the layout of {place.leaf!r} in PyTorch cannot be known: with three axes it may be a "
            "convolution's or an attention's. Pass a ",
            Argument("name_map"),
            " with a rule for it",
        )


def check_arrays(trainable: Any) -> None:
    """Refuses what no adapter file can hold.

    Raises:
        AdapterError: names the leaves and what they are.
    """
    check_leaves(trainable, AdapterError)
    if not trainable:
        raise AdapterError(
            "trainable is an empty dict: pass the first half that partition_params returned"
        )
    wrong = [f"{name!r} ({_describe(v)})" for name, v in trainable.items() if not _is_storable(v)]
    if wrong:
        raise AdapterError(
            f"trainable holds what is no array of {', '.join(_STORABLE)}: {list_names(wrong, str)}"
        )
    unwritable = [name for name in trainable if name != name.encode(errors="ignore").decode()]
    if unwritable:
        raise AdapterError(f"no file can hold these paths, not Unicode: {list_names(unwritable)}")


def _is_storable(value: Any) -> bool:
    return get_shape(value) is not None and str(value.dtype) in _STORABLE


def _describe(value: Any) -> str:
    return type(value).__name__ if get_shape(value) is None else str(value.dtype)


def _read_tree(
    trainable: Mapping[str, Any],
    config: LNTuningConfig | Selection,
    base: Any,
    norms: Iterable[str] | None,
    name_map: NameMap | None,
) -> Tree:
    """What the base says, or the selection, or the trainable leaves alone.

    Raises:
        AdapterError: trainable is not what the config selects, or PEFT keeps more than what
            trained and nothing says what.
    """
    if base is not None:
        return _read_base(trainable, config, base, norms, name_map)
    if isinstance(config, Selection):
        return _read_selection(trainable, config, name_map)
    tree = name_trainable(trainable, config, name_map)
    frozen = [name for name, role in tree.roles.items() if role not in TRAINABLE_ROLES]
    if frozen:
        raise AdapterError(
            f"trainable holds {list_names(frozen)}, which the config does not select: pass the "
            "config that partition_params was given"
        )
    saved = [name for name, role in tree.roles.items() if role == SAVED_ROLE]
    partial = _find_partial([n for n, role in tree.roles.items() if role == NORM_ROLE], config)
    partial += [name for name in saved if name in tree.saved or config.exclude_modules]
    if partial:
        raise AdapterError(
            f"the config trains leaves of {list_names(partial)} one by one, and PEFT keeps whole "
            "modules: pass ",
            Argument("base", Code("params")),
            ", so that the rest of each module is written too",
        )
    return tree


def _read_selection(
    trainable: Mapping[str, Any], selection: Selection, name_map: NameMap | None
) -> Tree:
    """A selection knows every leaf of its tree, but no values."""
    leaves = [
        Leaf(tuple(x.path.split(".")), x if x.shape is not None else None, x.role != STATE_ROLE)
        for x in selection.leaves
        if not x.is_repeat
    ]
    roles = {x.path: x.role for x in selection.leaves}
    expected = {x.path: x for x in selection.leaves if x.role in TRAINABLE_ROLES}
    check_trainable(trainable, expected, {})
    norms = [tuple(x.path.split(".")) for x in selection.leaves if x.is_norm]
    index = index_tree({}, leaves, name_map, norms=norms)
    return Tree(index, roles, {}, is_whole=True, saved=frozenset())


def name_trainable(
    trainable: Mapping[str, Any], config: LNTuningConfig, name_map: NameMap | None
) -> Tree:
    """The roles of trainable leaves, and their names in transformers, without their tree."""
    leaves = [Leaf(tuple(str(n).split(".")), value, True) for n, value in trainable.items()]
    roles, matches = _assign_roles(leaves, config)
    if name_map is not None and not set(roles.values()) <= set(TRAINABLE_ROLES):
        parts = list_parts(leaves, name_map)
        named = [part for leaf in leaves for part in view(leaf, parts[_name(leaf)])]
        by_name, matches = _assign_roles(named, config)
        roles = dict(zip(map(_name, leaves), fold_roles(leaves, parts, by_name), strict=True))
    norms = {leaf.path[:-1] for leaf in leaves if roles[_name(leaf)] == NORM_ROLE}
    inside = find_norms({}, leaves)  # norms in saved modules, whose scales are called so too
    index = index_tree({}, leaves, name_map, norms={*norms, *inside})
    return Tree(index, roles, {}, is_whole=False, saved=unite(matches.saved))


def _assign_roles(leaves: Sequence[Leaf], config: LNTuningConfig) -> tuple[dict[str, str], Matches]:
    """The roles of leaves, each of which may be a norm's."""
    matches = match_config(config, [leaf.path for leaf in leaves])
    kinds = dict.fromkeys((leaf.path[:-1] for leaf in leaves), NORM)
    return dict(zip(map(_name, leaves), assign_roles(leaves, kinds, matches), strict=True)), matches


def _read_base(
    trainable: Mapping[str, Any],
    config: LNTuningConfig | Selection,
    base: Any,
    norms: Iterable[str] | None,
    name_map: NameMap | None,
) -> Tree:
    params, placeholders = fill_placeholders(base)
    norms = norms if norms is None or isinstance(norms, str) else list(norms)
    selection = _select(params, config, norms, name_map, trainable)
    roles = dict(zip(map(_name, selection.leaves), selection.roles, strict=True))
    check_trainable(trainable, selection.list_trainable(), placeholders)
    if isinstance(config, Selection):
        norms = config.norms
    given = None if norms is None else match_norms(norms, selection.leaves).paths
    index = index_tree(params, selection.leaves, name_map, norms=given)
    values = {_name(leaf): leaf.value for leaf in selection.leaves}
    return Tree(index, roles, values, is_whole=True, saved=frozenset())


def _select(
    params: Any,
    config: LNTuningConfig | Selection,
    norms: Iterable[str] | None,
    name_map: NameMap | None,
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
