"""What a PEFT adapter holds, compared with what the tree has and what the config selects.

PEFT itself loads with `strict=False`: a key that fits nothing is dropped there without a word.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ..config import LNTuningConfig
from ..errors import AdapterError
from ..messages import list_names
from ..names.maps import Place
from ..paths import Leaf, get_shape
from ..selection.norms import NORM
from ..selection.roles import NORM_ROLE, SAVED_ROLE, assign_roles, match_config, unite
from .config import is_in, is_saved_by_peft
from .files import Key, read_key
from .tied import check_untied, is_embedding
from .tree import Index


class Contents(NamedTuple):
    """The parameters of an adapter, by the names that transformers has for them.

    Attributes:
        keys: the file's keys.
        norms: those that belong to copied norms.
        copies: the modules that were copied, or saved as embeddings, and are no norms.
        saved: the other parameters: of copies, and of saved modules.
    """

    keys: dict[str, str]
    norms: frozenset[str]
    copies: tuple[str, ...]
    saved: frozenset[str]


def check_contents(
    directory: Path,
    shapes: Mapping[str, tuple[int, ...]],
    config: LNTuningConfig,
    index: Index,
    values: Mapping[str, Any],
) -> Contents:
    """Sorts the keys of a file, and refuses what does not fit.

    Args:
        directory: the adapter's, for messages.
        shapes: of the file's tensors, by their keys.
        config: the file's.
        index: the tree's parameters.
        values: the tree's leaves by leaf path.

    Raises:
        AdapterError: lists the keys that belong to nothing, are missing, or are otherwise.
    """
    read = {key: _resolve(read_key(key), index) for key in shapes}
    copied = {key.copied for key in read.values() if not key.is_base}
    strange = [
        key
        for key, found in read.items()
        if found.parameter not in index.parameters or (found.is_base and found.copied not in copied)
    ]
    if strange:
        raise AdapterError(_explain_strange(directory, strange, read, index))
    keys: dict[str, str] = {}
    wrong: list[str] = []
    for key, found in read.items():
        assert found.parameter is not None
        wrong += _check_shape(key, shapes[key], index.parameters[found.parameter], values)
        if not found.is_base and keys.setdefault(found.parameter, key) != key:
            wrong.append(f"{key!r} is {found.parameter!r}, which another key holds too")
    if wrong:
        raise AdapterError(_explain(directory, wrong))
    owners = {name: read[key].copied for name, key in keys.items()}
    norms = frozenset(name for name in keys if owners[name] and name in index.norms)
    saved = frozenset(keys) - norms
    others = dict.fromkeys(m for name, m in owners.items() if m and name in saved)
    # PEFT saves embeddings beside an adapter by itself (`save_embedding_layers`).
    entries = config.modules_to_save or ()
    unowned = [name for name in keys if is_embedding(name) and not owners[name]]
    own = [name for name in unowned if not is_saved_by_peft(name, entries)]
    others |= dict.fromkeys(name.rpartition(".")[0] for name in own)
    contents = Contents(keys, norms, tuple(others), saved)
    _check_selected(directory, config, index, contents, values, own)
    check_untied(saved, config.task_type, index.parameters)
    return contents


def check_finite(directory: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Refuses values that are not finite.

    Raises:
        AdapterError: lists the keys.
    """
    wrong = []
    for key, tensor in tensors.items():
        broken = int(tensor.size - np.isfinite(tensor.astype(np.float64)).sum())
        wrong += [f"{key!r} holds {broken:,} values that are not finite"] if broken else []
    if wrong:
        raise AdapterError(_explain(directory, wrong))


def _resolve(read: Key, index: Index) -> Key:
    """Drops the adapter's name, which PEFT writes into the keys of copied containers."""
    if read.copied is None or read.parameter in index.parameters or read.parameter is None:
        return read
    rest = read.parameter.removeprefix(read.copied + ".").partition(".")[2]
    name = f"{read.copied}.{rest}"
    return read._replace(parameter=name) if name in index.parameters else read


def _check_shape(
    key: str, found: tuple[int, ...], place: Place, values: Mapping[str, Any]
) -> list[str]:
    shape = tuple(get_shape(values[place.leaf]) or ())
    if place.layer_axis is not None:
        shape = shape[: place.layer_axis] + shape[place.layer_axis + 1 :]
    if place.axes is not None:
        shape = tuple(shape[axis] for axis in place.axes)
    if found != shape:
        return [f"{key!r} has shape {found}, expected {shape} (leaf {place.leaf!r})"]
    return []


def _check_selected(
    directory: Path,
    config: LNTuningConfig,
    index: Index,
    contents: Contents,
    values: Mapping[str, Any],
    embeddings: Collection[str],
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
    missing = [name for name in selected if name not in contents.keys]
    if missing:
        wrong.append(f"missing keys, which its config selects: {list_names(missing)}")
    stray = [name for name in sorted(contents.norms) if roles[name] != NORM_ROLE]
    own = {name.rpartition(".")[0] for name in embeddings}
    stray += [module for module in contents.copies if module not in targets | own]
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
        if any(place.parameter in contents.keys for place in places)
        for place in places
        if place.parameter not in contents.keys
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
        "pass the model that the adapter was trained on, with the same head (not tied, where the "
        "adapter holds it), and a name_map if its module paths are not those of transformers"
    )


def _holds(keys: Mapping[str, Key], leaf: str) -> bool:
    module = leaf.rpartition(".")[0]
    return any(read.parameter == f"{module}.weight" for read in keys.values())


def _explain(directory: Path, wrong: list[str]) -> str:
    return (
        f"the adapter {directory} does not fit params: {list_names(wrong, str)}. Pass the model "
        "that it was trained on, or fetch the adapter anew"
    )
