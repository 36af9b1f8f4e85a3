"""From trainable leaves to a PEFT adapter.

The values go over bit for bit (a name map with an offset apart); only names, the layout of
kernels, and stacks of layers change.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..adapters.fit import check_trainable, check_values, fill_placeholders
from ..config import TASK_HEADS, LNTuningConfig
from ..errors import AdapterError, SelectionError
from ..messages import list_names
from ..names.layers import fold_roles, list_parts, view
from ..names.maps import NameMap, Place, get_name_map, take
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
from ..storage.arrays import to_numpy
from ..storage.directories import resolve_path
from ..storage.processes import write_on_first_process
from .config import is_in, is_saved_by_peft, make_peft_config
from .files import write_key, write_peft_directory
from .heads import check_untied
from .tree import Index, index_tree


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
    target = resolve_path(path, error=AdapterError)
    parameters = collect_parameters(
        trainable, config, base=base, norms=norms, name_map=get_name_map(name_map)
    )
    if not parameters.norms:
        raise AdapterError(
            "the adapter holds saved modules alone, and PEFT loads none without a norm: train at "
            "least one (target_modules), or keep the leaves with save_adapter"
        )

    def write() -> None:
        tensors = _make_tensors(parameters)
        write_peft_directory(target, tensors, parameters.config, overwrite=overwrite)

    write_on_first_process(write)
    return target


def _make_tensors(parameters: Parameters) -> dict[str, np.ndarray]:
    return {
        write_key(name, is_norm=name in parameters.norms): array
        for name, array in parameters.arrays.items()
    }


# Modules that PEFT saves with a head because their names end alike, by the first segment of the
# model's paths. They are outside the head, so the base has to give them.
SAVED_WITH_HEAD = {"distilbert": "pre_classifier"}


class Parameters(NamedTuple):
    """What is written to a PEFT adapter.

    Attributes:
        arrays: parameters by the names that transformers has for them, in PyTorch's layout.
        norms: the names of those that belong to norms.
        config: the config with which PEFT finds them.
    """

    arrays: dict[str, np.ndarray]
    norms: frozenset[str]
    config: LNTuningConfig


def collect_parameters(
    trainable: Mapping[str, Any],
    config: LNTuningConfig | Selection,
    *,
    base: Any = None,
    norms: Iterable[str] | None = None,
    name_map: NameMap | None = None,
) -> Parameters:
    """Names the trainable leaves as transformers does, and adds what PEFT keeps beside them.

    Args:
        trainable: `{leaf path: array}`.
        config: the config that `partition_params` was given, or the `Selection`.
        base: the parameters that were tuned, or the frozen half; None where nothing is needed.
        norms: as given to `partition_params`, if it was.
        name_map: for trees whose module paths are not those of transformers.

    Raises:
        AdapterError: a leaf has no name in transformers or no values; a value is not finite; or
            the base is needed and not given.
        TreeError: two leaves are one parameter.
    """
    check_arrays(trainable)
    selected, config = config, get_config(config)
    if base is None:
        tree = read_trainable(trainable, selected, name_map)
    else:
        tree = read_base(trainable, selected, base, norms, name_map)
    arrays = {name: to_numpy(name, value) for name, value in trainable.items()}
    _check_names(tree.names, arrays)
    wanted = _list_parameters(tree, arrays)
    is_renamed = name_map is not None
    written = _write_config(config, wanted, tree.names, is_renamed)
    while base is not None and _add_saved(tree.names, written, wanted):
        written = _write_config(config, wanted, tree.names, is_renamed)
    if base is None:
        _check_head(written, wanted, tree.saved)
    check_untied(wanted, config.task_type, tree.names.parameters if base is not None else None)
    tensors: dict[str, np.ndarray] = {}
    for parameter, is_norm in wanted.items():
        place = tree.names.parameters[parameter]
        value = arrays[place.leaf] if place.leaf in arrays else tree.values[place.leaf]
        tensors[parameter] = np.asarray(take(place, to_numpy(place.leaf, value)))
        _check_layout(place, tensors[parameter], is_norm, is_renamed)
    check_values(tensors)
    return Parameters(tensors, frozenset(n for n, is_norm in wanted.items() if is_norm), written)


def _check_names(names: Index, leaves: Collection[str]) -> None:
    nowhere = [place.leaf for place in names.parameters.values() if "." not in place.parameter]
    nowhere = sorted(set(nowhere) & set(leaves))
    if nowhere:
        raise AdapterError(
            f"these leaves lie in no module, and PEFT keeps modules only: {list_names(nowhere)}. "
            "Leave them out of the training, or keep the adapter with save_adapter"
        )
    nameless = [name for name in leaves if name not in names.places]
    if nameless:
        reasons = [names.unclear.get(name, repr(name)) for name in nameless]
        raise AdapterError(
            f"these leaves have no name in transformers: {list_names(reasons, str)}. Pass the "
            "name_map of the library that made the tree"
        )


def _list_parameters(tree: Tree, leaves: Iterable[str]) -> dict[str, bool]:
    """The parameters that trained and the rest of their norms, and whether each is a norm's."""
    wanted = {
        place.parameter: tree.roles[name] == NORM_ROLE
        for name in leaves
        for place in tree.names.places[name]
    }
    modules = {name.rpartition(".")[0] for name, is_norm in wanted.items() if is_norm}
    for parameter in tree.names.parameters:
        if parameter in tree.names.norms and parameter.rpartition(".")[0] in modules:
            wanted.setdefault(parameter, True)
    return wanted


def _write_config(
    config: LNTuningConfig, wanted: Mapping[str, bool], names: Index, is_renamed: bool
) -> LNTuningConfig:
    norms = [name for name, is_norm in wanted.items() if is_norm]
    saved = [name for name, is_norm in wanted.items() if not is_norm]
    known = names.parameters
    return make_peft_config(config, norms, saved, known=known, is_renamed=is_renamed)


def _add_saved(names: Index, written: LNTuningConfig, wanted: dict[str, bool]) -> bool:
    """Adds to `wanted` what PEFT saves besides by that config; whether there was any."""
    entries = (*(written.modules_to_save or ()), *TASK_HEADS.get(written.task_type or "", ()))
    found = [p for p in names.parameters if p not in wanted and is_saved_by_peft(p, entries)]
    wanted |= dict.fromkeys(found, False)
    return bool(found)


def _check_head(written: LNTuningConfig, wanted: Iterable[str], saved: Iterable[str]) -> None:
    """Whether what PEFT saves beside what trained is there, as far as that can be known."""
    heads = TASK_HEADS.get(written.task_type or "", ())
    entries = (*heads, *(written.modules_to_save or ()))
    if heads and not any(f".{name}".endswith(f".{head}") for name in saved for head in heads):
        raise AdapterError(
            f"PEFT saves the head ({' or '.join(heads)}) with every {written.task_type} adapter "
            "and cannot load one without it: pass base=params, so that it is written as it is in "
            "the base, or clear the task with config.replace(task_type=None)"
        )
    for root in {name.partition(".")[0] for name in wanted} & SAVED_WITH_HEAD.keys():
        beside = SAVED_WITH_HEAD[root]
        if beside.endswith(entries) and not any(is_in(name, beside) for name in saved):
            raise AdapterError(
                f"PEFT also saves {beside!r}, whose name ends like a saved module's, and cannot "
                "load an adapter without it: pass base=params, so that it is written as it is in "
                "the base"
            )


def _check_layout(place: Place, tensor: np.ndarray, is_norm: bool, is_renamed: bool) -> None:
    if is_norm and tensor.ndim != 1:
        raise AdapterError(
            f"the norm leaf {place.leaf!r} has shape {tensor.shape}, a stack of layers, which "
            "PEFT keeps one by one: pass a name_map that says along which axis they lie"
        )
    if not is_renamed and len(place.axes or ()) == 3:
        raise AdapterError(
            f"the layout of {place.leaf!r} in PyTorch cannot be known: with three axes it may be a "
            "convolution's or an attention's. Pass a name_map with a rule for it"
        )


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
