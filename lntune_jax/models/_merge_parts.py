"""A checkpoint and an adapter brought together: every value of the adapter has its place."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from lntune_jax.adapters.fingerprint import explain_values, list_sampled
from lntune_jax.errors import AdapterError, TreeError
from lntune_jax.messages import list_names
from lntune_jax.peft.load import load_peft
from lntune_jax.peft.tree import find_place

from ._merge_adapter import PEFT, Found, Tuned, find_adapter, read_adapter
from ._merge_config import read_fields
from ._merge_head import is_head
from ._merge_names import Names, add_prefix, match_names
from ._names import ARCHITECTURES
from ._shards import TYPES, Checkpoint, Tensor, map_tensor, read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lntune_jax.names.maps import NameMap

# What old checkpoints hold that is no parameter: GPT-2's masks, and rotary frequencies.
_BUFFERS = (r"\.attn\.(masked_)?bias$", r"\.rotary_emb\.inv_freq$")


class Parts(NamedTuple):
    """What there is to merge.

    Attributes:
        checkpoint: the base's tensors.
        fields: its config.json.
        found: the adapter's place and kind.
        tuned: its parameters.
        names: the base's keys by the names that the adapter has.
        fresh: the parameters that the base lacks.
        compared: how many of the base's tensors were compared with those of the training.
    """

    checkpoint: Checkpoint
    fields: dict[str, Any]
    found: Found
    tuned: Tuned
    names: Names
    fresh: tuple[str, ...]
    compared: int


def read_parts(directory: Path, adapter: Path, name_map: str | NameMap | None = None) -> Parts:
    """Read a base's headers and an adapter, and find the place of every parameter.

    Raises:
        LNTuningError: one of them cannot be read, or they do not fit.
    """
    fields = read_fields(directory)
    checkpoint = read_checkpoint(directory)
    found = find_adapter(adapter)
    tuned = read_adapter(found, name_map)
    norms = [name for name in tuned.arrays if name in tuned.norms]
    wanted = {name: tuned.names.get(name, (name,)) for name in norms}
    model_type = str(fields.get("model_type"))
    names = match_names(directory, checkpoint.tensors, found.directory, wanted, model_type)
    if not tuned.norms:
        names = _match_without_norms(checkpoint, fields, names)
    if found.kind == PEFT:
        tuned = _resolve(found, tuned, names, checkpoint)
    _check_shapes(found, tuned, names, checkpoint)
    fresh = tuple(name for name in tuned.arrays if name not in names.keys)
    if fresh and names.dropped:
        raise AdapterError(
            f"the adapter {found.directory} holds {list_names(fresh)}, which {directory} lacks"
        )
    compared = _compare_base(found, tuned, names, checkpoint)
    return Parts(checkpoint, fields, found, tuned, names, fresh, compared)


def map_parameters(parts: Parts) -> dict[str, np.ndarray]:
    """The parameters of the model that was tuned, as a flat dict in the names of transformers.

    The base's stay in their files until they are read; what it lacks has the adapter's values.
    """
    # A new head takes the place of another one.
    tensors = _list_tensors(parts.tuned, parts.names, parts.checkpoint, other_heads=not parts.fresh)
    mapped = {
        name: map_tensor(tensor)
        for name, tensor in tensors.items()
        if not any(re.search(pattern, name) for pattern in _BUFFERS)
    }
    return mapped | {name: parts.tuned.arrays[name] for name in parts.fresh}


def _list_tensors(
    tuned: Tuned, names: Names, checkpoint: Checkpoint, *, other_heads: bool
) -> dict[str, Tensor]:
    """The base's floating-point tensors that belong to the model that was tuned."""
    held = {name.split(".")[0] for name in tuned.arrays}
    found = {}
    for name, key in names.keys.items():
        tensor = checkpoint.tensors[key]
        is_other = is_head(name) and name.split(".")[0] not in held and not other_heads
        if tensor.kind in TYPES and key.startswith(names.dropped) and not is_other:
            found[name] = tensor
    return found


def _match_without_norms(checkpoint: Checkpoint, fields: Mapping[str, Any], names: Names) -> Names:
    """A head alone says nothing about the prefix; the architecture does."""
    known = ARCHITECTURES.get(str(fields.get("model_type")))
    if known is None or any(name.startswith(known.prefix + ".") for name in names.keys):
        return names
    return add_prefix(checkpoint.directory, names, known.prefix + ".")


def _resolve(found: Found, tuned: Tuned, names: Names, checkpoint: Checkpoint) -> Tuned:
    """PEFT's parameters as `load_peft` reads them, with all that it refuses."""
    known: dict[str, Any] = {
        name: jax.ShapeDtypeStruct(tensor.shape, TYPES[tensor.kind])
        for name, tensor in _list_tensors(tuned, names, checkpoint, other_heads=False).items()
    }
    for name, array in tuned.arrays.items():
        if name not in tuned.norms and name not in known:
            known[name] = jax.ShapeDtypeStruct(array.shape, array.dtype)
    trainable, config = load_peft(found.directory, known)
    norms = frozenset(name for name in trainable if _is_norm(name, tuned))
    return Tuned(trainable, norms, config, {}, None)


def _is_norm(name: str, tuned: Tuned) -> bool:
    return any(name in tuned.names.get(norm, (norm,)) for norm in tuned.norms)


def _check_shapes(found: Found, tuned: Tuned, names: Names, checkpoint: Checkpoint) -> None:
    wrong = []
    for name, array in tuned.arrays.items():
        if name in names.keys and checkpoint.tensors[names.keys[name]].shape != array.shape:
            shape = checkpoint.tensors[names.keys[name]].shape
            wrong.append(f"{name!r} has shape {array.shape}, in the checkpoint {shape}")
    if wrong:
        raise AdapterError(
            f"the adapter {found.directory} does not fit {checkpoint.directory}: "
            f"{list_names(wrong, str)}. Pass the checkpoint it was trained on"
        )


def _compare_base(found: Found, tuned: Tuned, names: Names, checkpoint: Checkpoint) -> int:
    """Compare the values that the adapter remembers of its base; how many tensors that were."""
    if tuned.fingerprint is None:
        return 0
    found_at = {
        path: _map_leaf(path, names, checkpoint) for path in list_sampled(tuned.fingerprint)
    }
    values = {path: value for path, value in found_at.items() if value is not None}
    # The list of all leaves is the tree's, which a checkpoint does not have: the values count.
    difference = explain_values(tuned.fingerprint, values)
    if difference:
        raise AdapterError(
            f"the adapter {found.directory} was trained on another base than "
            f"{checkpoint.directory}: {difference}. Pass the base it was trained on"
        )
    return len(values)


def _map_leaf(path: str, names: Names, checkpoint: Checkpoint) -> np.ndarray | None:
    """A leaf of the tree that was tuned, as it lies in the checkpoint, if its name says where."""
    try:
        key = names.keys.get(find_place(path, (1, 1), is_norm=False).parameter)
        if key is None or checkpoint.tensors[key].kind not in TYPES:
            return None
        value = map_tensor(checkpoint.tensors[key])
        axes = find_place(path, value.shape, is_norm=False).axes
    except TreeError:  # a layout that only the library which made the tree knows
        return None
    return value if axes is None else value.transpose(np.argsort(axes))
