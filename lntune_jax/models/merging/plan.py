"""A checkpoint and an adapter brought together, and every tensor to write planned."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from lntune_jax.adapters.fingerprint import explain_values, list_sampled
from lntune_jax.config import TASK_HEADS
from lntune_jax.errors import AdapterError, ModelError, TreeError
from lntune_jax.messages import list_names
from lntune_jax.peft.files import PEFT
from lntune_jax.peft.load import load_peft
from lntune_jax.peft.tree import find_place

from ..families.encoders import ENCODER
from ..families.registry import FAMILIES
from .adapter import Found, Tuned, find_adapter, read_adapter
from .config import is_language_output, read_fields, untie, with_head
from .heads import count_labels, find_class, find_unread, is_head
from .names import Names, add_prefix, match_names
from .shards import TYPES, Checkpoint, Entry, Tensor, map_tensor, order_entries, read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
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
    known = FAMILIES.get(str(fields.get("model_type")))
    if known is None or known.kind is not ENCODER:
        return names
    prefix = f"{known.checkpoint_names.prefix}."
    if any(name.startswith(prefix) for name in names.keys):
        return names
    return add_prefix(checkpoint.directory, names, prefix)


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


class Plan(NamedTuple):
    """A checkpoint to write.

    Attributes:
        files: the tensors of each weight file.
        fields: the new content of config.json, or None where it stays.
        listing: the new content of the index, or None where it stays or there is none.
        tuned: the keys that get the adapter's values.
        added: those of them that the base lacks.
        left_out: the base's keys that the new class does not read.
        unused: the adapter's parameters that are not written.
    """

    files: dict[str, list[Entry]]
    fields: dict[str, Any] | None
    listing: dict[str, Any] | None
    tuned: tuple[str, ...]
    added: tuple[str, ...]
    left_out: tuple[str, ...]
    unused: tuple[str, ...]


def plan_merge(
    parts: Parts,
    *,
    task: str | None = None,
    labels: Sequence[str] | None = None,
    norms_only: bool = False,
) -> Plan:
    """Decide what goes where.

    Raises:
        AdapterError: a value is too large for the base's type; the head pools as no class of
            transformers does; the labels do not fit.
        ModelError: no class fits the base with its new head; tied weights; quantised weights.
    """
    if norms_only:
        return _plan_norms(parts)
    _check_pooling(parts)
    arrays, fields = parts.tuned.arrays, parts.fields
    task = task or parts.tuned.config.task_type
    fields = untie(fields, arrays, parts.names.keys, has_copies=parts.found.kind == PEFT)
    needs_class = any(not is_language_output(parts.fields, name) for name in parts.fresh)
    name = find_class(fields, task, parts.fresh) if needs_class else None
    # A head stands beside what the base holds without a prefix, so that all keys get it.
    prefix = parts.names.added if parts.fresh else ""
    keys = {key: prefix + key for key in parts.checkpoint.tensors}
    values = {keys[parts.names.keys[n]]: arrays[n] for n in arrays if n in parts.names.keys}
    added = {n: arrays[n] for n in parts.fresh}
    left_out: list[str] = []
    if needs_class:
        shapes = {keys[key]: tensor.shape for key, tensor in parts.checkpoint.tensors.items()}
        shapes |= {key: value.shape for key, value in added.items()}
        own = [*values, *added]
        directory = parts.checkpoint.directory
        unread = set(find_unread(directory, parts.fields, task, shapes, own))
        left_out = [key for key, new in keys.items() if new in unread]
        lost = [key for key in own if key in unread]
        if lost:
            raise AdapterError(
                f"the adapter {parts.found.directory} holds {list_names(lost)}, which {name} does "
                "not read: pass another task, or norms_only=True"
            )
    shapes = {n: value.shape for n, value in arrays.items() if n not in parts.tuned.norms}
    count = count_labels(shapes)
    if labels is not None and count is None:
        raise AdapterError(f"labels are given, but {parts.found.directory} holds no classifier")
    fields = with_head(fields, name, count, parts.found.labels if labels is None else labels)
    return _assemble(parts, keys, values, added, left_out, fields)


def _plan_norms(parts: Parts) -> Plan:
    if not parts.tuned.norms:
        raise AdapterError(f"the adapter {parts.found.directory} holds no norms: {_ADVICE}")
    keys = {key: key for key in parts.checkpoint.tensors}
    values = {parts.names.keys[n]: parts.tuned.arrays[n] for n in sorted(parts.tuned.norms)}
    plan = _assemble(parts, keys, values, {}, [], parts.fields)
    unused = [name for name in parts.tuned.arrays if name not in parts.tuned.norms]
    return plan._replace(unused=tuple(unused))


_ADVICE = "leave norms_only out"


def _check_pooling(parts: Parts) -> None:
    heads = {module for modules in TASK_HEADS.values() for module in modules}
    held = [name for name in parts.tuned.arrays if name.split(".")[0] in heads]
    if held and parts.found.pooling == "mean":
        raise AdapterError(
            f"the head of the adapter {parts.found.directory} reads the mean over tokens, "
            "which no classifier of transformers does: its labels would be wrong. Pass "
            "norms_only=True to write the tuned encoder without the head"
        )


def _assemble(
    parts: Parts,
    keys: dict[str, str],
    values: dict[str, np.ndarray],
    added: dict[str, np.ndarray],
    left_out: list[str],
    fields: dict[str, Any],
) -> Plan:
    files: dict[str, list[Entry]] = {name: [] for name in parts.checkpoint.files}
    for key, tensor in parts.checkpoint.tensors.items():
        if key in left_out:
            continue
        entry = Entry(keys[key], tensor.kind, tensor.shape, tensor)
        if entry.key in values:
            value = _cast(entry.key, values[entry.key], tensor.kind)
            entry = entry._replace(value=value, source=None)
        files[tensor.file.name].append(entry)
    files = {name: entries for name, entries in files.items() if entries}
    if added:
        kind = _get_main_kind(parts)
        last = list(files)[-1]
        new = [Entry(n, kind, v.shape, None, _cast(n, v, kind)) for n, v in added.items()]
        files[last] = order_entries([*files[last], *new])
    listing = parts.checkpoint.listing
    changed = bool(added or left_out)
    return Plan(
        files=files,
        fields=fields if fields != parts.fields else None,
        listing=_write_listing(listing, files) if listing is not None and changed else None,
        tuned=(*values, *added),
        added=tuple(added),
        left_out=tuple(left_out),
        unused=(),
    )


def _cast(name: str, value: np.ndarray, kind: str) -> np.ndarray:
    if kind not in TYPES:
        raise ModelError(
            f"the tensor {name} of the base is stored as {kind}; supported: {', '.join(TYPES)} "
            "(weights that are not quantised)"
        )
    with np.errstate(over="ignore"):
        narrow = value.astype(TYPES[kind])
    if not np.isfinite(narrow).all():
        raise AdapterError(
            f"{name!r} holds values too large for {TYPES[kind].name}, the type it has in the base "
            f"(the largest is {np.abs(value).max():.6g}): merge into the base in a wider type"
        )
    return narrow


def _get_main_kind(parts: Parts) -> str:
    """The type that most of the base's bytes have, for tensors that it lacks."""
    sizes: Counter[str] = Counter()
    for tensor in parts.checkpoint.tensors.values():
        if tensor.kind in TYPES:
            sizes[tensor.kind] += tensor.end - tensor.start
    return sizes.most_common(1)[0][0]


def _write_listing(listing: dict[str, Any], files: dict[str, list[Entry]]) -> dict[str, Any]:
    entries = [entry for each in files.values() for entry in each]
    totals = {
        "total_size": sum(entry.size for entry in entries),
        "total_parameters": sum(int(np.prod(entry.shape)) for entry in entries),
    }
    metadata = listing.get("metadata") or {}
    counted = {name: number for name, number in totals.items() if name in metadata}
    places = dict(sorted((entry.key, name) for name, each in files.items() for entry in each))
    return {**listing, "metadata": {**metadata, **counted}, "weight_map": places}
