"""A full Hugging Face checkpoint with an adapter in place, written file by file.

Whatever the adapter does not hold is copied bit for bit; no more than one tensor's piece of a few
megabytes, and the adapter, is in memory. A record of what was written lies beside the weights: a
directory is replaced only where the record says that it holds nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lntune_jax.errors import AdapterError, ModelError
from lntune_jax.messages import list_names
from lntune_jax.storage.directories import check_target, refuse_url, resolve_path, write_directory
from lntune_jax.storage.sealed import list_files, read_json

from ..loading.safetensors import INDEX_FILE, WEIGHTS_FILE
from ..loading.sources import HUB_PATTERNS, find_directory
from .adapter import find_adapter, read_quantization
from .config import CONFIG_FILE, write_fields
from .plan import plan_merge, read_parts
from .shards import read_checkpoint, write_file

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from lntune_jax.names.maps import NameMap

    from .plan import Plan
    from .shards import Checkpoint, Entry


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
    others = {"base": directory, "adapter": found.directory}
    check_apart(target, others)
    check_target(target, noun="merged checkpoint", list_own=list_own, overwrite=overwrite)
    parts = read_parts(directory, Path(adapter), name_map)
    plan = plan_merge(parts, task=task, labels=labels, norms_only=norms_only)
    copied, skipped = sort_files(parts.checkpoint)

    def fill(new: Path) -> None:
        write_checkpoint(new, parts.checkpoint, plan, copied)

    write_directory(target, fill, noun="merged checkpoint", list_own=list_own, overwrite=overwrite)
    fields = parts.fields if plan.fields is None else plan.fields
    return MergedCheckpoint(
        path=target,
        adapter=parts.found.directory,
        kind=parts.found.kind,
        tuned=plan.tuned,
        added=plan.added,
        left_out=plan.left_out,
        unused=plan.unused,
        compared=parts.compared,
        architecture=next(iter(fields.get("architectures") or ()), None),
        files=tuple(plan.files),
        skipped=tuple(skipped),
        quantized=read_quantization(parts.found),
    )


RECORD_FILE = "lntune_merge.json"

_FORMAT, _FORMAT_VERSION = "lntune_jax merged checkpoint", 1

# Ends of the names of files that hold weights, or announce them: other copies of the base's, which
# would not have the adapter in place, and pickles, which can run any code.
_WEIGHT_SUFFIXES = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".h5"),
    *(".msgpack", ".gguf", ".ggml", ".onnx", ".onnx_data", ".ot", ".pb", ".tflite", ".npy"),
    *(".npz", ".mlmodel", ".nemo", ".tar", ".tar.gz", ".tgz", ".zip", ".index.json"),
    *("openvino_model.xml", "openvino_encoder_model.xml", "openvino_decoder_model.xml"),
    "adapter_config.json",  # which would make transformers look for the adapter's weights
)


def check_apart(target: Path, others: dict[str, Path]) -> None:
    """Refuse a path that holds, or lies in, what is read.

    Args:
        target: the directory to make.
        others: directories that are read, by what they are.

    Raises:
        AdapterError: the message says which.
    """
    for what, other in others.items():
        if target == other or other in target.parents or target in other.parents:
            raise AdapterError(
                f"the output {target} and the {what} {other} must not lie in one another: pass "
                "another output"
            )


def sort_files(checkpoint: Checkpoint) -> tuple[list[str], list[str]]:
    """The base's other files: those to copy, and those not to.

    Hidden files, links to directories and whatever holds weights are not copied.
    """
    own = {*checkpoint.files, INDEX_FILE if checkpoint.listing is not None else WEIGHTS_FILE}
    copied, left = [], []
    for parent, directories, names in os.walk(checkpoint.directory):
        here = Path(parent)
        for name in sorted(directories):
            path = here / name
            if name.startswith(".") or path.is_symlink():
                directories.remove(name)
                left.append(path.relative_to(checkpoint.directory).as_posix() + "/")
        directories.sort()
        for name in sorted(names):
            place = (here / name).relative_to(checkpoint.directory).as_posix()
            if place in own or place in (CONFIG_FILE, RECORD_FILE):
                continue
            hidden = name.startswith(".")
            whole = (here / name).is_file() and not name.lower().endswith(_WEIGHT_SUFFIXES)
            (copied if whole and not hidden else left).append(place)
    return copied, left


def write_checkpoint(new: Path, checkpoint: Checkpoint, plan: Plan, copied: list[str]) -> None:
    """Fill a new directory with the checkpoint, and read its headers back.

    Raises:
        ModelError: what was written does not read back.
    """
    for name in copied:
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint.directory / name, new / name)
    if plan.fields is not None:
        write_fields(new / CONFIG_FILE, plan.fields)
    else:
        shutil.copyfile(checkpoint.directory / CONFIG_FILE, new / CONFIG_FILE)
    for name, entries in plan.files.items():
        write_file(new / name, entries, checkpoint.metadata[name])
    if plan.listing is not None:
        text = json.dumps(plan.listing, indent=2, ensure_ascii=False) + "\n"
        (new / INDEX_FILE).write_text(text, encoding="utf-8")
    elif checkpoint.listing is not None:
        shutil.copyfile(checkpoint.directory / INDEX_FILE, new / INDEX_FILE)
    _write_record(new, plan)
    _check_written(new, [entry for entries in plan.files.values() for entry in entries])


def _check_written(new: Path, entries: list[Entry]) -> None:
    found = read_checkpoint(new).tensors
    wrong = [
        entry.key
        for entry in entries
        if entry.key not in found
        or (entry.kind, entry.shape) != (found[entry.key].kind, found[entry.key].shape)
        or entry.size != found[entry.key].end - found[entry.key].start
    ]
    if wrong or len(found) != len(entries):
        raise ModelError(f"{new} does not read back as written: {list_names(wrong)}")


def _write_record(new: Path, plan: Plan) -> None:
    fields: dict[str, Any] = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "files": [*list_files(new), RECORD_FILE],
        "tuned": list(plan.tuned),
        "added": list(plan.added),
        "left_out": list(plan.left_out),
    }
    text = json.dumps(fields, indent=1, ensure_ascii=False) + "\n"
    (new / RECORD_FILE).write_text(text, encoding="utf-8")


def list_own(directory: Path) -> list[str]:
    """The files that merging wrote into a directory, by its record; none without one."""
    try:
        fields = read_json(directory / RECORD_FILE)
        return list(map(str, fields["files"])) if fields["format"] == _FORMAT else []
    except (OSError, ValueError, KeyError, TypeError):
        return []
