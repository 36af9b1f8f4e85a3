"""The file that completes an adapter directory: what the directory holds, and checksums of it all.

It is written last, so a directory without it is unfinished; its own text must be exactly what its
fields give, so no bit anywhere can flip unseen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..config import CONFIG_FILE
from ..errors import AdapterError
from ..storage.arrays import hash_array
from ..storage.checksums import METADATA_FILE
from ..storage.json_files import parse_json, read_bounded
from .fields import check_fields, check_size

FORMAT_VERSION = 1
# For json.dumps: how the file is written, and how it was before (a fifth longer); both are read.
_COMPACT: dict[str, Any] = {"separators": (",", ":")}
_INDENTED: dict[str, Any] = {"indent": 1}


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
        norms: the paths of modules or leaves that the caller named as norms, or None.
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
        >>> from lntune_jax.adapters.fingerprint import make_fingerprint
        >>> write_metadata(directory, Metadata({}, {}, make_fingerprint({}), None))
        >>> read_metadata(directory).base["leaves"]
        0
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
        AdapterError: it is absent, damaged, or of another format or version; or what it says is of
            another kind than its format has.
    """
    file = directory / METADATA_FILE
    try:
        text = read_bounded(file)
        fields = parse_json(text)
    except FileNotFoundError:
        raise AdapterError(
            f"{directory} holds no {METADATA_FILE}, which is written last: it is no {kind.noun} of "
            "lntune_jax, or saving it was interrupted. Save it again; a PEFT directory is read by "
            "import_peft"
        ) from None
    except OSError as error:
        raise AdapterError(f"cannot read {file}: {error.strerror}") from None
    except ValueError as error:
        raise AdapterError(
            f"{file} is damaged: {error}. Copy the directory anew from where it came from"
        ) from None
    if not isinstance(fields, dict) or fields.get("format") != kind.format:
        found = fields.get("format") if isinstance(fields, dict) else fields
        raise AdapterError(f"{file} has format {str(found)[:80]!r}, expected {kind.format!r}")
    found = fields.get("format_version")
    if found != FORMAT_VERSION or type(found) is not int:
        raise AdapterError(
            f"{file} has format version {str(found)[:40]}, expected {FORMAT_VERSION}: it was "
            f"written by lntune_jax {str(fields.get('library_version'))[:40]!r}. Install that "
            "version or a later one"
        )
    fields.pop("sha256", None)
    if text not in (_render(fields, style).encode() for style in (_COMPACT, _INDENTED)):
        raise AdapterError(
            f"{file} has a wrong checksum: it was changed or damaged after it was saved. Copy the "
            "directory anew from where it came from"
        )
    return _parse(file, fields)


def describe_leaf(value: np.ndarray, base_dtype: Any) -> LeafRecord:
    """The record of a leaf."""
    base_name = np.dtype(base_dtype).name
    return LeafRecord(value.shape, value.dtype.name, base_name, hash_array(value))


def _render(fields: Mapping[str, Any], style: Mapping[str, Any] = _COMPACT) -> str:
    """The text of the file: the fields, and a checksum over the text without it."""
    digest = hashlib.sha256(json.dumps(fields, **style).encode()).hexdigest()
    return json.dumps({**fields, "sha256": digest}, **style) + "\n"


def _parse(file: Path, fields: Mapping[str, Any]) -> Metadata:
    try:
        check_fields(fields)
        check_size(fields)
    except KeyError as error:
        raise AdapterError(f"{file} lacks a field of its format: {error}") from None
    except ValueError as error:
        raise AdapterError(
            f"{file} does not hold what its format has: {error}. Copy the directory anew from "
            "where it came from"
        ) from None
    leaves = {
        path: LeafRecord(**{**record, "shape": tuple(record["shape"])})
        for path, record in fields["leaves"].items()
    }
    return Metadata(leaves, fields["files"], fields["base"], fields["norms"])


def _get_library_version() -> str:
    try:
        return version("lntune-jax")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"
