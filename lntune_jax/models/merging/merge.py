"""A full Hugging Face checkpoint with an adapter in place, written file by file.

Whatever the adapter does not hold is copied bit for bit; no more than a few megabytes of the base,
and the adapter, are in memory. A record of what was written lies beside the weights: a directory
is replaced only where the record says that it holds nothing else.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lntune_jax.config import TASK_HEADS
from lntune_jax.errors import AdapterError, ModelError
from lntune_jax.messages import Argument, list_names
from lntune_jax.peft.files import PEFT
from lntune_jax.storage.directories import check_target, refuse_url, resolve_path, write_directory
from lntune_jax.storage.sealed import list_files, read_json

from ..loading.safetensors import INDEX_FILE, TYPES, Tensor, Weights, read_weights
from ..loading.sources import CONFIG_FILE, HUB_PATTERNS, find_directory
from .heads import count_labels, find_class, find_unread, is_language_output, untie, with_head
from .parts import find_adapter, read_parts, read_quantization
from .shards import write_file

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Mapping, Sequence

    from lntune_jax.names.maps import NameMap

    from .parts import Parts


# What a checkpoint on the hub may hold beside its weights.
_PATTERNS = (
    *(*HUB_PATTERNS, "*.txt", "*.md", "*.jinja", "*.tiktoken", "*.spm", "*.py", "LICENSE*"),
    "additional_chat_templates/*.jinja",
)


@dataclass(frozen=True)
class MergedCheckpoint:
    """What `merge_checkpoint` wrote.

    Attributes:
        path: the absolute path of the new directory.
        adapter: the adapter's own directory.
        kind: what wrote the adapter: "lntune_jax" or "PEFT".
        tuned: the keys of the tensors that hold the adapter's values.
        added: those of them that the base lacks: a new head.
        left_out: the base's tensors that the class with the new head does not read.
        unused: the adapter's parameters that were not written (`norms_only`).
        compared: how many of the base's tensors were compared with those of the training; 0 where
            the adapter does not say (PEFT's) or its names are not those of the checkpoint.
        architecture: the class in config.json, or None.
        files: the weight files.
        skipped: the base's files that were not copied: other weights, pickles, hidden files.
        quantized: what the kernels were kept as when the adapter was trained, or None. Those of
            the checkpoint are written as they are: the model is then a little another than the
            one whose loss was measured.

    Example:
        >>> from lntune_jax.models import MergedCheckpoint
        >>> sorted(MergedCheckpoint.__dataclass_fields__)[:3]
        ['adapter', 'added', 'architecture']
    """

    path: Path
    adapter: Path
    kind: str
    tuned: tuple[str, ...]
    added: tuple[str, ...]
    left_out: tuple[str, ...]
    unused: tuple[str, ...]
    compared: int
    architecture: str | None
    files: tuple[str, ...]
    skipped: tuple[str, ...]
    quantized: str | None = None


def merge_checkpoint(
    model: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    norms_only: bool = False,
    task: str | None = None,
    labels: Sequence[str] | None = None,
    name_map: str | NameMap | None = None,
    revision: str | None = None,
) -> MergedCheckpoint:
    """Writes a Hugging Face checkpoint with an adapter in place, which transformers loads.

    For any architecture whose checkpoint has the names of transformers' own modules. Files,
    shards, types and keys are the base's; tensors that the adapter does not hold are the same
    bit for bit, the others are rounded once to the base's type. A head that the base lacks is
    added to the last file, and `config.json` names its class and labels; the keys then get the
    prefix that the class has, and tensors that it does not read (an old head) are left out.

    Args:
        model: the base: a directory, or an id on the Hugging Face hub.
        adapter: a directory of `save_adapter` or of PEFT, or a run of `lntune-jax train`.
        output: the directory to make, whole or not at all.
        overwrite: whether a merged checkpoint that is there is replaced. Nothing else ever is.
        norms_only: write the norms alone, and leave a head and other saved modules out.
        task: the task of a new head ("SEQ_CLS", "TOKEN_CLS", ...); None for the adapter's.
        labels: names of the classes, for `config.json`; None for those that the adapter names
            (`task` of `save_adapter`), or numbers.
        name_map: for an adapter of `save_adapter` whose tree had other names than transformers:
            the name of a table (`lntune_jax.peft.NAME_MAPS`) or a `NameMap`.
        revision: a branch, tag or commit on the hub.

    Returns:
        What was written.

    Raises:
        ModelError: the base is quantised, pickled, damaged, or has no class for the new head;
            weights that the head needs are nowhere; or tied embeddings came apart.
        AdapterError: the adapter cannot be read, or is another model's; a value is too large
            for the base's type; the head pools as no class of transformers does; the output
            exists or lies in what is read; or the file system refuses.

    Example:
        >>> import json, pathlib, tempfile
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> from safetensors.flax import load_file, save_file
        >>> place = pathlib.Path(tempfile.mkdtemp())
        >>> (place / "base").mkdir()
        >>> _ = (place / "base/config.json").write_text('{"model_type": "llama"}')
        >>> params = {"model.norm.weight": jnp.ones(2), "lm_head.weight": jnp.ones((3, 2))}
        >>> save_file(dict(params), place / "base/model.safetensors")
        >>> config = lnt.LNTuningConfig()
        >>> tuned = {"model.norm.weight": jnp.array([2.0, 3.0])}
        >>> _ = lnt.save_adapter(place / "adapter", tuned, config, base=params)
        >>> merged = lnt.models.merge_checkpoint(
        ...     place / "base", place / "adapter", place / "merged"
        ... )
        >>> load_file(merged.path / "model.safetensors")["model.norm.weight"].tolist()
        [2.0, 3.0]
    """
    target = resolve_path(output, error=AdapterError)
    refuse_url(adapter, error=AdapterError, what="the adapter")
    directory = find_directory(model, revision, _PATTERNS).resolve()
    found = find_adapter(adapter)
    for what, other in {"base": directory, "adapter": found.directory}.items():
        if target == other or other in target.parents or target in other.parents:
            raise AdapterError(
                f"the output {target} and the {what} {other} must not lie in one another: pass "
                "another output"
            )
    check_target(target, noun=_NOUN, list_own=_list_own, overwrite=overwrite)
    parts = read_parts(directory, Path(adapter), name_map)
    plan = _plan(parts, task, labels, norms_only=norms_only)
    copied, skipped = _sort_files(parts.checkpoint)

    def fill(new: Path) -> None:
        _write_checkpoint(new, parts.checkpoint, plan, copied)

    write_directory(target, fill, noun=_NOUN, list_own=_list_own, overwrite=overwrite)
    return MergedCheckpoint(
        path=target,
        adapter=found.directory,
        kind=found.kind,
        compared=parts.compared,
        architecture=next(iter(plan.fields.get("architectures") or ()), None),
        files=tuple(plan.files),
        skipped=tuple(skipped),
        quantized=read_quantization(found),
        **plan.names,
    )


class _Plan(NamedTuple):
    """A checkpoint to write."""

    files: dict[str, list[Tensor]]  # of each weight file, with their new keys
    values: dict[str, np.ndarray]  # what some have in place of the base's bytes
    fields: dict[str, Any]  # of config.json
    texts: dict[str, Any]  # files of JSON whose content is another than the base's
    names: dict[str, tuple[str, ...]]  # the fields of `MergedCheckpoint` that list tensors


def _plan(
    parts: Parts, task: str | None, labels: Sequence[str] | None, *, norms_only: bool
) -> _Plan:
    tuned, names, base = parts.tuned, parts.names, parts.checkpoint
    arrays = {n: a for n, a in tuned.arrays.items() if n in tuned.norms or not norms_only}
    if not arrays:
        raise AdapterError(
            f"the adapter {parts.found.directory} holds no norms: leave ",
            Argument("norms_only"),
            " out",
        )
    _check_head(parts, arrays)
    fresh = () if norms_only else parts.fresh
    # A head stands beside what the base holds without a prefix, so that all keys get it.
    prefix = names.added if fresh else ""
    tensors = {key: t._replace(key=prefix + key) for key, t in base.tensors.items()}
    placed = {name: tensors[names.keys[name]] for name in arrays if name in names.keys}
    if fresh:
        sizes: Counter[str] = Counter()
        for tensor in base.tensors.values():
            sizes[tensor.kind] += tensor.size if tensor.kind in TYPES else 0
        ((kind, _),) = sizes.most_common(1)  # the type that most of the base's bytes have
        last = list(tensors.values())[-1].file
        for name in fresh:
            array = _cast(name, arrays[name], kind)
            placed[name] = Tensor(last, name, kind, array.shape, 0, array.nbytes)
    values = {t.key: _cast(t.key, arrays[name], t.kind) for name, t in placed.items()}
    every = {**tensors, **{name: placed[name] for name in fresh}}
    fields, unread = parts.fields, frozenset[str]()
    if not norms_only:
        fields, unread = _fit_class(parts, {t.key: t for t in every.values()}, values, task, labels)
    files: dict[str, list[Tensor]] = {}
    for tensor in every.values():
        if tensor.key not in unread:
            files.setdefault(tensor.file.name, []).append(tensor)
    left_out = tuple(key for key, tensor in tensors.items() if tensor.key in unread)
    texts = {} if fields == parts.fields else {CONFIG_FILE: fields}
    if base.listing is not None and (fresh or left_out):
        texts[INDEX_FILE] = _make_listing(base.listing, files)
    unused = tuple(name for name in tuned.arrays if name not in arrays)
    listed = {"tuned": tuple(values), "added": fresh, "left_out": left_out, "unused": unused}
    return _Plan(files, values, fields, texts, listed)


def _check_head(parts: Parts, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse a head of another size than the checkpoint's own.

    Raises:
        AdapterError: the message says how to merge the norms.
    """
    for name, array in arrays.items():
        key = parts.names.keys.get(name)
        if key is None or parts.checkpoint.shape(key) == array.shape:
            continue
        raise AdapterError(
            f"the adapter {parts.found.directory} does not fit {parts.checkpoint.directory}: "
            f"{name!r} has shape {array.shape}, in the checkpoint {parts.checkpoint.shape(key)}. "
            "Pass the checkpoint it was trained on; for a head that was drawn anew, merge the "
            "norms alone with ",
            Argument("norms_only", True),
        )


def _fit_class(
    parts: Parts,
    tensors: dict[str, Tensor],
    values: Collection[str],
    task: str | None,
    labels: Sequence[str] | None,
) -> tuple[dict[str, Any], frozenset[str]]:
    """The fields of config.json for what the adapter holds, and the keys that nothing reads."""
    found, arrays, base = parts.found, parts.tuned.arrays, parts.checkpoint
    heads = {module for modules in TASK_HEADS.values() for module in modules}
    if found.own_reading and any(name.split(".")[0] in heads for name in arrays):
        raise AdapterError(
            f"the head of the adapter {found.directory} reads {found.own_reading}, which its "
            "class in transformers does not: its labels would be wrong. Pass ",
            Argument("norms_only", True),
            " to write the tuned encoder without the head",
        )
    fields = untie(parts.fields, arrays, parts.names.keys, has_copies=found.kind == PEFT)
    name, unread = None, frozenset[str]()
    if any(not is_language_output(parts.fields, fresh) for fresh in parts.fresh):
        task = task or parts.tuned.config.task_type
        name = find_class(fields, task, parts.fresh)
        made = Weights(base.directory, tensors)
        unread = frozenset(find_unread(made, parts.fields, task, values))
        lost = [key for key in values if key in unread]
        if lost:
            raise AdapterError(
                f"the adapter {found.directory} holds {list_names(lost)}, which {name} does not "
                "read: pass another ",
                Argument("task"),
                ", or ",
                Argument("norms_only", True),
            )
    count = count_labels({n: a.shape for n, a in arrays.items() if n not in parts.tuned.norms})
    if labels is not None and count is None:
        raise AdapterError(f"labels are given, but {found.directory} holds no classifier")
    return with_head(fields, name, count, found.labels if labels is None else labels), unread


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


def _make_listing(listing: dict[str, Any], files: dict[str, list[Tensor]]) -> dict[str, Any]:
    tensors = [tensor for each in files.values() for tensor in each]
    totals = {
        "total_size": sum(tensor.size for tensor in tensors),
        "total_parameters": sum(math.prod(tensor.shape) for tensor in tensors),
    }
    metadata = listing.get("metadata") or {}
    counted = {name: number for name, number in totals.items() if name in metadata}
    places = sorted((tensor.key, name) for name, each in files.items() for tensor in each)
    return {**listing, "metadata": {**metadata, **counted}, "weight_map": dict(places)}


_RECORD_FILE = "lntune_merge.json"

_FORMAT, _FORMAT_VERSION = "lntune_jax merged checkpoint", 1

_NOUN = "merged checkpoint"

# Ends of the names of files that hold weights, or announce them: other copies of the base's, which
# would not have the adapter in place, and pickles, which can run any code.
_WEIGHT_SUFFIXES = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".h5"),
    *(".msgpack", ".gguf", ".ggml", ".onnx", ".onnx_data", ".ot", ".pb", ".tflite", ".npy"),
    *(".npz", ".mlmodel", ".nemo", ".tar", ".tar.gz", ".tgz", ".zip", ".index.json"),
    *("openvino_model.xml", "openvino_encoder_model.xml", "openvino_decoder_model.xml"),
    "adapter_config.json",  # which would make transformers look for the adapter's weights
)


def _sort_files(base: Weights) -> tuple[list[str], list[str]]:
    """The base's other files: those to copy, and those not to.

    Hidden files, links to directories and whatever holds weights are not copied.
    """
    own = {tensor.file.name for tensor in base.tensors.values()} | {_RECORD_FILE}
    own |= set() if base.listing is None else {INDEX_FILE}
    copied, left = [], {}
    for name in list_files(base.directory):
        parts = name.split("/")
        hidden = next((n for n, part in enumerate(parts, 1) if part.startswith(".")), None)
        if hidden is not None:  # of a hidden directory, its name alone
            left["/".join(parts[:hidden]) + ("/" if hidden < len(parts) else "")] = None
        elif name not in own:
            is_file = (base.directory / name).is_file()
            whole = is_file and not name.lower().endswith(_WEIGHT_SUFFIXES)
            (copied.append if whole else left.setdefault)(name)
    return copied, list(left)


def _write_checkpoint(new: Path, base: Weights, plan: _Plan, copied: list[str]) -> None:
    """Fill a new directory with the checkpoint, and read its headers back.

    Raises:
        ModelError: what was written does not read back.
    """
    kept = [*copied, *([] if base.listing is None else [INDEX_FILE])]
    for name in kept:
        if name not in plan.texts:
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(base.directory / name, new / name)
    for name, tensors in plan.files.items():
        write_file(new / name, base.directory / name, tensors, plan.values)
    record: dict[str, Any] = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "files": [*sorted([*kept, *plan.files]), _RECORD_FILE],
        **{name: plan.names[name] for name in ("tuned", "added", "left_out")},
    }
    for name, content in {**plan.texts, _RECORD_FILE: record}.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (new / name).write_text(text, encoding="utf-8")
    written = {t.key: (t.kind, t.shape, t.size) for t in read_weights(new).tensors.values()}
    planned = {t.key: (t.kind, t.shape, t.size) for each in plan.files.values() for t in each}
    if written != planned:
        wrong = sorted(dict(written.items() ^ planned.items()))
        raise ModelError(f"{new} does not read back as written: {list_names(wrong)}")


def _list_own(directory: Path) -> list[str]:
    """The files that merging wrote into a directory, by its record; none without one."""
    try:
        fields = read_json(directory / _RECORD_FILE)
        return list(map(str, fields["files"])) if fields["format"] == _FORMAT else []
    except (OSError, ValueError, KeyError, TypeError):
        return []
