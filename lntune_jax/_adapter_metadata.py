"""The file that completes an adapter directory: what the directory holds, and checksums of it all.

It is written last, so a directory without it is unfinished; its own text must be exactly what its
fields give, so no bit anywhere can flip unseen.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ._adapter_arrays import hash_array
from ._adapter_messages import list_names
from ._config import CONFIG_FILE
from ._errors import AdapterError

METADATA_FILE = "lntune.json"
_ADVICE = "copy it anew from where it came from, and move files that are not its own elsewhere"
FORMAT_VERSION = 1
# What the Hugging Face hub puts beside an adapter's own files; nothing in them is read.
_HUB_FILES = frozenset({"README.md", ".gitattributes"})
_HUB_FOLDER = ".cache/huggingface/"


class Kind(NamedTuple):
    """What a directory is: its format's name, what messages call it, and what is in it."""

    format: str
    noun: str
    writer: str  # the function that writes it
    entries: frozenset[str]


ADAPTER = Kind(
    "lntune_jax adapter",
    "adapter",
    "save_adapter",
    frozenset({CONFIG_FILE, METADATA_FILE, "arrays"}),
)


class LeafRecord(NamedTuple):
    """One leaf in the file: shape, dtype, the base leaf's dtype, and the sha256 of its bytes."""

    shape: tuple[int, ...]
    dtype: str
    base_dtype: str
    sha256: str


class Metadata(NamedTuple):
    """What the file says.

    Attributes:
        leaves: leaf path to its record.
        files: relative path of every other file to its size and sha256.
        base: the base's fingerprint.
        norms: the module paths that the caller named as norms, or None.
    """

    leaves: dict[str, LeafRecord]
    files: dict[str, dict[str, Any]]
    base: dict[str, Any]
    norms: list[str] | None


def write_metadata(directory: Path, metadata: Metadata, kind: Kind = ADAPTER) -> None:
    """Writes the metadata file.

    Example:
        >>> import tempfile
        >>> directory = Path(tempfile.mkdtemp())
        >>> write_metadata(directory, Metadata({}, {}, {}, None))
        >>> read_metadata(directory)
        Metadata(leaves={}, files={}, base={}, norms=None)
    """
    fields = {
        "format": kind.format,
        "format_version": FORMAT_VERSION,
        "library_version": _get_library_version(),
        "leaves": {path: record._asdict() for path, record in metadata.leaves.items()},
        "files": metadata.files,
        "base": metadata.base,
        "norms": metadata.norms,
    }
    (directory / METADATA_FILE).write_text(_render(fields), encoding="utf-8")


def read_metadata(directory: Path, kind: Kind = ADAPTER) -> Metadata:
    """Reads the metadata file.

    Raises:
        AdapterError: it is absent, damaged, or of another format or version.
    """
    file = directory / METADATA_FILE
    try:
        text = file.read_bytes().decode("utf-8")
        fields = json.loads(text)
    except FileNotFoundError:
        raise AdapterError(
            f"{directory} holds no {METADATA_FILE}, which is written last: it is no {kind.noun} of "
            "lntune_jax, or saving it was interrupted. Save it again; a PEFT directory is read by "
            "import_peft"
        ) from None
    except OSError as error:
        raise AdapterError(f"cannot read {file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise AdapterError(
            f"{file} is damaged: {error}. Copy the directory anew from where it came from"
        ) from None
    if not isinstance(fields, dict) or fields.get("format") != kind.format:
        found = fields.get("format") if isinstance(fields, dict) else fields
        raise AdapterError(f"{file} has format {str(found)[:80]!r}, expected {kind.format!r}")
    found = fields.get("format_version")
    if found != FORMAT_VERSION or type(found) is not int:
        raise AdapterError(
            f"{file} has format version {found!r}, expected {FORMAT_VERSION}: it was written by "
            f"lntune_jax {fields.get('library_version')!r}. Install that version or a later one"
        )
    fields.pop("sha256", None)
    if _render(fields) != text:
        raise AdapterError(
            f"{file} has a wrong checksum: it was changed or damaged after it was saved. Copy the "
            "directory anew from where it came from"
        )
    return _parse(file, fields)


def describe_leaf(value: np.ndarray, base_dtype: Any) -> LeafRecord:
    """The record of a leaf."""
    base_name = np.dtype(base_dtype).name
    return LeafRecord(value.shape, value.dtype.name, base_name, hash_array(value))


def describe_files(directory: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file below `directory`, except the metadata file itself."""
    files: dict[str, dict[str, Any]] = {}
    for path in list_files(directory):
        if path == METADATA_FILE:
            continue
        if not (directory / path).is_file():  # a pipe or a dangling link: not to be opened
            files[path] = {"size": 0, "sha256": ""}
            continue
        with (directory / path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[path] = {"size": file.tell(), "sha256": digest}
    return files


def check_files(
    directory: Path,
    expected: Mapping[str, Mapping[str, Any]],
    advice: str = _ADVICE,
    *,
    from_hub: bool = False,
) -> None:
    """Compares every file below `directory` with its record.

    Args:
        directory: where the files are.
        expected: what `describe_files` gave.
        advice: what the message says to do.
        from_hub: whether a model card and the hub's own files may lie beside them.

    Raises:
        AdapterError: a file is missing, unexpected, of another size or has other contents.
    """
    try:
        found = describe_files(directory)
    except OSError as error:
        raise AdapterError(f"cannot read {error.filename}: {error.strerror}") from None
    wrong = [f"{path} is missing" for path in expected if path not in found]
    unexpected = [path for path in found if path not in expected]
    wrong += [f"{path} is unexpected" for path in unexpected if not (from_hub and _is_of_hub(path))]
    for path in expected.keys() & found.keys():
        if found[path]["size"] != expected[path]["size"]:
            sizes = f"{expected[path]['size']:,} bytes expected, {found[path]['size']:,} found"
            wrong.append(f"{path} has another size ({sizes})")
        elif found[path]["sha256"] != expected[path]["sha256"]:
            wrong.append(f"{path} has a wrong checksum")
    if wrong:
        raise AdapterError(
            f"{directory} is not what was saved: {list_names(sorted(wrong), str)}. It is damaged: "
            f"{advice}"
        )


def _is_of_hub(path: str) -> bool:
    return path in _HUB_FILES or path.startswith(_HUB_FOLDER)


def list_files(directory: Path) -> list[str]:
    """Relative paths of all files below `directory`, with forward slashes."""
    return sorted(
        (Path(parent) / name).relative_to(directory).as_posix()
        for parent, _, names in os.walk(directory)
        for name in names
    )


def _render(fields: Mapping[str, Any]) -> str:
    """The text of the file: the fields, and a checksum over the text without it."""
    digest = hashlib.sha256(json.dumps(fields, indent=1).encode()).hexdigest()
    return json.dumps({**fields, "sha256": digest}, indent=1) + "\n"


def _parse(file: Path, fields: Mapping[str, Any]) -> Metadata:
    try:
        leaves = {
            path: LeafRecord(**{**record, "shape": tuple(record["shape"])})
            for path, record in fields["leaves"].items()
        }
        return Metadata(leaves, dict(fields["files"]), dict(fields["base"]), fields["norms"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AdapterError(f"{file} lacks a field of its format: {error!r}") from None


def _get_library_version() -> str:
    try:
        return version("lntune-jax")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"
