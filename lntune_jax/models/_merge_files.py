"""The files of a merged checkpoint beside its weights, and the directory that it may take.

A record of what was written lies among them: a directory is replaced only where the record says
that it holds nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lntune_jax.errors import AdapterError, ModelError
from lntune_jax.messages import list_names
from lntune_jax.storage.sealed import list_files, read_json

from ._merge_config import CONFIG_FILE, write_fields
from ._names import INDEX_FILE, WEIGHTS_FILE
from ._shards import read_checkpoint, write_file

if TYPE_CHECKING:
    from ._merge_plan import Plan
    from ._shards import Checkpoint, Entry

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
