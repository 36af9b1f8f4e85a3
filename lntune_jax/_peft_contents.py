"""What a PEFT adapter holds, compared with what the tree has and what the config selects.

PEFT itself loads with `strict=False`: a key that fits nothing is dropped there without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ._adapter_messages import list_names
from ._config import LNTuningConfig
from ._errors import AdapterError
from ._name_maps import Place
from ._norms import NORM
from ._paths import Leaf, get_shape
from ._peft_config import is_in, is_saved_by_peft
from ._peft_files import Key, read_key
from ._peft_tree import Index
from ._roles import NORM_ROLE, SAVED_ROLE, assign_roles, match_config, unite


class Contents(NamedTuple):
    """The parameters of an adapter, by the names that transformers has for them.

    Attributes:
        arrays: their values.
        norms: those that belong to copied norms.
        copies: the modules that were copied and are no norms.
        saved: the other parameters: of copies, and of saved modules.
    """

    arrays: dict[str, np.ndarray]
    norms: frozenset[str]
    copies: tuple[str, ...]
    saved: frozenset[str]


def check_contents(
    directory: Path,
    tensors: Mapping[str, np.ndarray],
    config: LNTuningConfig,
    index: Index,
    values: Mapping[str, Any],
) -> Contents:
    """Sorts the keys of a file, and refuses what does not fit.

    Args:
        directory: the adapter's, for messages.
        tensors: by the file's keys.
        config: the file's.
        index: the tree's parameters.
        values: the tree's leaves by leaf path.

    Raises:
        AdapterError: lists the keys that belong to nothing, are missing, or are otherwise.
    """
    keys = {key: _resolve(read_key(key), index) for key in tensors}
    copies = {read.copied for read in keys.values() if not read.is_base}
    strange = [
        key
        for key, read in keys.items()
        if read.parameter not in index.parameters or (read.is_base and read.copied not in copies)
    ]
    if strange:
        raise AdapterError(_explain_strange(directory, strange, keys, index))
    arrays: dict[str, np.ndarray] = {}
    wrong: list[str] = []
    for key, read in keys.items():
        assert read.parameter is not None
        wrong += _check_tensor(key, tensors[key], index.parameters[read.parameter], values)
        if read.is_base:
            continue
        if read.parameter in arrays:
            wrong.append(f"{key!r} is {read.parameter!r}, which another key holds too")
        arrays[read.parameter] = tensors[key]
    if wrong:
        raise AdapterError(_explain(directory, wrong))
    copied = {
        read.parameter: read.copied for read in keys.values() if read.copied and not read.is_base
    }
    norms = frozenset(str(name) for name in copied if name in index.norms)
    others = tuple(dict.fromkeys(m for name, m in copied.items() if m and name not in index.norms))
    contents = Contents(arrays, norms, others, frozenset(arrays) - norms)
    _check_selected(directory, config, index, contents, values)
    return contents


def _resolve(read: Key, index: Index) -> Key:
    """Drops the adapter's name, which PEFT writes into the keys of copied containers."""
    if read.copied is None or read.parameter in index.parameters or read.parameter is None:
        return read
    rest = read.parameter.removeprefix(read.copied + ".").partition(".")[2]
    name = f"{read.copied}.{rest}"
    return read._replace(parameter=name) if name in index.parameters else read


def _check_tensor(
    key: str, tensor: np.ndarray, place: Place, values: Mapping[str, Any]
) -> list[str]:
    shape = tuple(get_shape(values[place.leaf]) or ())
    if place.layer_axis is not None:
        shape = shape[: place.layer_axis] + shape[place.layer_axis + 1 :]
    if place.axes is not None:
        shape = tuple(shape[axis] for axis in place.axes)
    if tensor.shape != shape:
        return [f"{key!r} has shape {tensor.shape}, expected {shape} (leaf {place.leaf!r})"]
    broken = int(tensor.size - np.isfinite(tensor.astype(np.float64)).sum())
    return [f"{key!r} holds {broken:,} values that are not finite"] if broken else []


def _check_selected(
    directory: Path,
    config: LNTuningConfig,
    index: Index,
    contents: Contents,
    values: Mapping[str, Any],
) -> None:
    """Compares the file with what its config selects, in the names of transformers."""
    leaves = [
        Leaf(tuple(name.split(".")), jax.ShapeDtypeStruct((1,), values[place.leaf].dtype), True)
        for name, place in index.parameters.items()
    ]
    modules = {tuple(name.split("."))[:-1]: NORM for name in index.norms}
    matches = match_config(config, [leaf.path for leaf in leaves])
    roles = dict(zip(index.parameters, assign_roles(leaves, modules, matches), strict=True))
    selected = [name for name, role in roles.items() if role in (NORM_ROLE, SAVED_ROLE)]
    targets = unite(matches.targets)
    wrong = []
    missing = [name for name in selected if name not in contents.arrays]
    if missing:
        wrong.append(f"missing keys, which its config selects: {list_names(missing)}")
    stray = [name for name in sorted(contents.norms) if roles[name] != NORM_ROLE]
    stray += [module for module in contents.copies if module not in targets]
    stray += [
        name
        for name in sorted(contents.saved)
        if roles[name] != SAVED_ROLE
        and not is_saved_by_peft(name, config.modules_to_save or ())
        and not any(is_in(name, module) for module in contents.copies)
    ]
    if stray:
        wrong.append(f"unexpected keys, which its config does not select: {list_names(stray)}")
    partial = [
        place.parameter
        for places in index.places.values()
        if any(place.parameter in contents.arrays for place in places)
        for place in places
        if place.parameter not in contents.arrays
    ]
    if partial:
        wrong.append(
            f"missing keys of layers that are stacked in one leaf of params: {list_names(partial)}"
        )
    if wrong:
        raise AdapterError(_explain(directory, wrong))


def _explain_strange(
    directory: Path, strange: list[str], keys: Mapping[str, Key], index: Index
) -> str:
    unclear = [text for name, text in index.unclear.items() if _holds(keys, name)]
    if unclear:
        return f"the adapter {directory} cannot be read: {unclear[0]}"
    text = (
        f"the adapter {directory} does not fit params: {len(strange):,} of {len(keys):,} keys "
        f"belong to nothing: {list_names(strange)}"
    )
    if any("lora_" in key for key in strange):
        return f"{text}. They are of a LoRA adapter; only LN tuning can be imported"
    firsts = [name for name in list(index.parameters) if name in index.norms][:3]
    return (
        f"{text}. The norms of params are called {list_names(firsts) or 'nothing that is known'}: "
        "pass the model that the adapter was trained on, with the same head, and a name_map if "
        "its module paths are not those of transformers"
    )


def _holds(keys: Mapping[str, Key], leaf: str) -> bool:
    module = leaf.rpartition(".")[0]
    return any(read.parameter == f"{module}.weight" for read in keys.values())


def _explain(directory: Path, wrong: list[str]) -> str:
    return (
        f"the adapter {directory} does not fit params: {list_names(wrong, str)}. Pass the model "
        "that it was trained on, or fetch the adapter anew"
    )
