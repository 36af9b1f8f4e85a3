"""The parameters of transformers that an adapter in PEFT's format must hold.

More than what trained, sometimes: PEFT keeps norms and saved modules whole, and wants the head of
a classification task in every file. The base gives what is missing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..adapters.checks import check_values
from ..config import TASK_HEADS, LNTuningConfig
from ..errors import AdapterError
from ..messages import list_names
from ..names.maps import NameMap, Place, take
from ..selection.roles import NORM_ROLE
from ..selection.selection import Selection, get_config
from ..storage.arrays import to_numpy
from .config import is_in, is_saved_by_peft, make_peft_config
from .tied import check_untied
from .trainable import Tree, check_arrays, read_base, read_trainable
from .tree import Index

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
