"""What a merged checkpoint will hold, tensor by tensor and file by file, before any is written."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lntune_jax.config import TASK_HEADS
from lntune_jax.errors import AdapterError, ModelError
from lntune_jax.messages import list_names

from ._merge_adapter import PEFT
from ._merge_config import is_language_output, untie, with_head
from ._merge_head import count_labels, find_class, find_unread
from ._shards import TYPES, Entry, order_entries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._merge_parts import Parts


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
