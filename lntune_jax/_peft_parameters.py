"""The parameters of transformers that an adapter in PEFT's format must hold.

More than what trained, sometimes: PEFT keeps norms and saved modules whole, and wants the head of
a classification task in every file. The base gives what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ._adapter_arrays import to_numpy
from ._adapter_checks import check_trainable, check_values, fill_holes
from ._adapter_messages import list_names
from ._config import LNTuningConfig
from ._errors import AdapterError
from ._name_maps import NameMap, Place, take
from ._norm_names import BIAS_NAMES, SCALE_NAMES
from ._norms import NORM, split_modules
from ._paths import Leaf, Path, join
from ._peft_config import is_in, is_saved_by_peft, make_peft_config
from ._peft_tree import Index, index_tree
from ._roles import NORM_ROLE, SAVED_ROLE, assign_roles, match_config, unite
from ._selection import select_leaves
from ._task_heads import SAVED_WITH_HEAD, TASK_HEADS


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


class _Tree(NamedTuple):
    """What is known of the tree: its parameters, its leaves' roles, and the base's values."""

    names: Index
    roles: dict[str, str]
    values: Mapping[str, Any]


def collect_parameters(
    trainable: Mapping[str, Any],
    config: LNTuningConfig,
    *,
    base: Any = None,
    norms: Iterable[str] | None = None,
    name_map: NameMap | None = None,
) -> Parameters:
    """Names the trainable leaves as transformers does, and adds what PEFT keeps beside them.

    Args:
        trainable: `{leaf path: array}`.
        config: the config that `partition_params` was given.
        base: the parameters that were tuned, or the frozen half; None where nothing is needed.
        norms: as given to `partition_params`, if it was.
        name_map: for trees whose module paths are not those of transformers.

    Raises:
        AdapterError: a leaf has no name in transformers or no values; a value is not finite; or
            the base is needed and not given.
        TreeError: two leaves are one parameter.
    """
    if base is None:
        tree = _read_trainable(trainable, config, name_map)
    else:
        tree = _read_base(trainable, config, base, norms, name_map)
    arrays = {name: to_numpy(name, value) for name, value in trainable.items()}
    check_values(arrays)
    _check_names(tree.names, arrays)
    wanted = _list_parameters(tree, arrays)
    is_renamed = name_map is not None
    written = _write_config(config, wanted, is_renamed)
    while base is not None and _add_saved(tree.names, written, wanted):
        written = _write_config(config, wanted, is_renamed)
    if base is None:
        _check_head(written, wanted)
    tensors: dict[str, np.ndarray] = {}
    for parameter, is_norm in wanted.items():
        place = tree.names.parameters[parameter]
        value = arrays[place.leaf] if place.leaf in arrays else tree.values[place.leaf]
        tensors[parameter] = np.asarray(take(place, to_numpy(place.leaf, value)))
        _check_layout(place, tensors[parameter], is_norm, is_renamed)
    return Parameters(tensors, frozenset(n for n, is_norm in wanted.items() if is_norm), written)


def _read_trainable(trainable: Any, config: LNTuningConfig, name_map: NameMap | None) -> _Tree:
    """What the trainable half alone says, for an adapter that needs nothing of the base."""
    if not isinstance(trainable, Mapping) or not trainable:
        raise AdapterError(
            f"trainable must be a dict of leaf paths, not {type(trainable).__name__}: pass the "
            "first half that partition_params returned"
        )
    leaves = [Leaf(tuple(str(n).split(".")), value, True) for n, value in trainable.items()]
    matches = match_config(config, [leaf.path for leaf in leaves])
    kinds = dict.fromkeys((leaf.path[:-1] for leaf in leaves), NORM)
    roles = dict(zip(map(_name, leaves), assign_roles(leaves, kinds, matches), strict=True))
    frozen = [name for name, role in roles.items() if role not in (NORM_ROLE, SAVED_ROLE)]
    if frozen:
        raise AdapterError(
            f"trainable holds {list_names(frozen)}, which the config does not select: pass the "
            "config that partition_params was given"
        )
    norms = [leaf.path[:-1] for leaf in leaves if roles[_name(leaf)] == NORM_ROLE]
    saved = [name for name, role in roles.items() if role == SAVED_ROLE]
    named = unite(matches.saved)
    partial = _find_partial(norms, config) + [name for name in saved if name in named]
    partial += saved if config.exclude_modules else []
    if partial:
        raise AdapterError(
            f"the config trains leaves of {list_names(partial)} one by one, and PEFT keeps whole "
            "modules: pass base=params, so that the rest of each module is written too"
        )
    return _Tree(index_tree({}, leaves, name_map, norms=norms), roles, {})


def _read_base(
    trainable: Mapping[str, Any],
    config: LNTuningConfig,
    base: Any,
    norms: Iterable[str] | None,
    name_map: NameMap | None,
) -> _Tree:
    params, holes = fill_holes(base)
    norms = None if norms is None else list(norms)
    selection = select_leaves(params, config, norms, warn=False)
    roles = dict(zip(map(_name, selection.leaves), selection.roles, strict=True))
    values = {_name(leaf): leaf.value for leaf in selection.leaves}
    expected = {
        name: values[name] for name, role in roles.items() if role in (NORM_ROLE, SAVED_ROLE)
    }
    check_trainable(trainable, expected, holes)
    index = index_tree(params, selection.leaves, name_map, norms=split_modules(norms))
    return _Tree(index, roles, values)


def _check_names(names: Index, leaves: Iterable[str]) -> None:
    nameless = [name for name in leaves if name not in names.places]
    if nameless:
        reasons = [names.unclear.get(name, repr(name)) for name in nameless]
        raise AdapterError(
            f"these leaves have no name in transformers: {list_names(reasons, str)}. Pass the "
            "name_map of the library that made the tree"
        )


def _list_parameters(tree: _Tree, leaves: Iterable[str]) -> dict[str, bool]:
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
    config: LNTuningConfig, wanted: Mapping[str, bool], is_renamed: bool
) -> LNTuningConfig:
    norms = [name for name, is_norm in wanted.items() if is_norm]
    saved = [name for name, is_norm in wanted.items() if not is_norm]
    return make_peft_config(config, norms, saved, is_renamed=is_renamed)


def _add_saved(names: Index, written: LNTuningConfig, wanted: dict[str, bool]) -> bool:
    """Adds to `wanted` what PEFT saves besides by that config; whether there was any."""
    entries = (*(written.modules_to_save or ()), *TASK_HEADS.get(written.task_type or "", ()))
    found = [p for p in names.parameters if p not in wanted and is_saved_by_peft(p, entries)]
    wanted |= dict.fromkeys(found, False)
    return bool(found)


def _check_head(written: LNTuningConfig, wanted: Iterable[str]) -> None:
    heads = TASK_HEADS.get(written.task_type or "", ())
    missing = "" if _has(written, heads) else " or ".join(heads)
    for root in {name.partition(".")[0] for name in wanted} & SAVED_WITH_HEAD.keys():
        entries = (*heads, *(written.modules_to_save or ()))
        beside = SAVED_WITH_HEAD[root]
        if beside.endswith(tuple(entries)) and not _has(written, [beside]):
            missing = missing or beside
    if missing:
        raise AdapterError(
            f"PEFT saves the head ({missing}) with every {written.task_type} adapter of this model "
            "and cannot load one without it: pass base=params, so that it is written as it is in "
            "the base, or clear the task with config.replace(task_type=None)"
        )


def _has(written: LNTuningConfig, heads: Iterable[str]) -> bool:
    entries = written.modules_to_save or ()
    return not heads or any(is_in(entry, head) for entry in entries for head in heads)


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


def _find_partial(modules: Iterable[Path], config: LNTuningConfig) -> list[str]:
    """The modules of which the config would leave a scale or a bias out."""
    unique = list(dict.fromkeys(modules))
    likely = [Leaf((*m, n), np.empty(1), True) for m in unique for n in SCALE_NAMES | BIAS_NAMES]
    matches = match_config(config, [leaf.path for leaf in likely])
    roles = assign_roles(likely, dict.fromkeys(unique, NORM), matches)
    left_out = [
        leaf.path[:-1] for leaf, role in zip(likely, roles, strict=True) if role != NORM_ROLE
    ]
    return [join(module) for module in dict.fromkeys(left_out)]


def _name(leaf: Leaf) -> str:
    return join(leaf.path)
