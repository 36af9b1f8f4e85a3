"""The file that completes an adapter directory: what the directory holds, and checksums of it all.

It is written last, so a directory without it is unfinished; its own text must be exactly what its
fields give, so no bit anywhere can flip unseen.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ..config import CONFIG_FILE, WEIGHTS_FILE
from ..errors import AdapterError
from ..storage.arrays import hash_array
from ..storage.checksums import METADATA_FILE, list_files
from ..storage.json_files import parse_json, read_bounded

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
        if (directory / WEIGHTS_FILE).is_file():
            raise AdapterError(
                f"{directory} is an adapter of PEFT, not of {kind.writer}: read it with "
                "import_peft or load_peft"
            ) from None
        raise AdapterError(
            f"{directory} holds no {METADATA_FILE}, which is written last: it is no {kind.noun} of "
            "lntune_jax, or saving it was interrupted. Save it again"
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


def list_own(directory: Path, kind: Kind = ADAPTER) -> list[str]:
    """The files that `save_adapter` wrote into a directory, the metadata last; none without that.

    Of a damaged one, or one of another version, these are the files where it has its own.

    Example:
        >>> list_own(Path("no/such/directory"))
        []
    """
    if not (directory / METADATA_FILE).is_file():
        return []
    try:
        own = list(read_metadata(directory, kind).files)
    except AdapterError:
        own = [path for path in list_files(directory) if path.partition("/")[0] in kind.entries]
    return [*(path for path in own if path != METADATA_FILE), METADATA_FILE]


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


# As many as numpy once allowed.
MOST_AXES = 32
# A file of a few bytes can stand for an array of any size; a trained one hardly compresses.
MOST_BYTES_UNQUESTIONED = 2**30
MOST_TIMES_THE_FILES = 256
_DTYPE = re.compile(r"(bfloat|float|complex)[0-9][0-9a-z_]*")


def check_fields(fields: Mapping[str, Any]) -> None:
    """Checks the fields that `write_metadata` writes.

    Raises:
        ValueError: says which field is not of its kind.

    Example:
        >>> try:
        ...     check_fields({"leaves": {"ln.scale": {"shape": [-1]}}})
        ... except ValueError as error:
        ...     print(error)
        leaves: 'ln.scale' has no 'base_dtype'
    """
    for name, record in _get_records(fields, "leaves", _LEAF):
        if math.prod(record["shape"]) >= 2**63:
            raise ValueError(f"leaves: {name!r} has the shape {str(record['shape'])[:80]}")
    list(_get_records(fields, "files", _FILE))
    norms = fields["norms"]
    if norms is not None and not _is_list_of(norms, str):
        raise ValueError("norms: expected a list of module paths, or null")
    check_fingerprint(fields["base"])


def check_fingerprint(base: Any) -> None:
    """Checks a fingerprint.

    Raises:
        ValueError: says which part of it is not of its kind.
    """
    if not isinstance(base, dict):
        raise ValueError("base: expected an object")
    for name, holds in _BASE.items():
        if name not in base or not holds(base[name]):
            raise ValueError(f"base: {name!r} is missing, or not what a fingerprint has")
    if not isinstance(base.get("quantized"), str | None):
        raise ValueError("base: 'quantized' is no text")


def check_size(fields: Mapping[str, Any]) -> None:
    """Refuses arrays far larger than the files that are said to hold them.

    Raises:
        ValueError: says how large.
    """
    records = fields["leaves"].values()
    size = sum(math.prod(r["shape"]) * jnp.dtype(r["dtype"]).itemsize for r in records)
    held = sum(record["size"] for record in fields["files"].values())
    if size > max(MOST_BYTES_UNQUESTIONED, MOST_TIMES_THE_FILES * held):
        raise ValueError(f"leaves: {size:,} bytes of arrays in {held:,} bytes of files")


def _get_records(
    fields: Mapping[str, Any], field: str, kinds: Mapping[str, Callable[[Any], bool]]
) -> Any:
    records = fields[field]
    if not isinstance(records, dict):
        raise ValueError(f"{field}: expected an object")
    for name, record in records.items():
        shown = repr(name if len(name) <= 80 else name[:77] + "...")
        if not isinstance(record, dict):
            raise ValueError(f"{field}: {shown} is no object")
        for part in sorted(kinds.keys() ^ record.keys()):
            raise ValueError(f"{field}: {shown} has {'no' if part in kinds else 'a'} {part!r}")
        for part, holds in kinds.items():
            if not holds(record[part]):
                raise ValueError(f"{field}: {shown} has the {part} {str(record[part])[:80]!r}")
        yield name, record


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_floating_name(value: Any) -> bool:
    if not isinstance(value, str) or not _DTYPE.fullmatch(value):
        return False
    try:
        return jnp.issubdtype(jnp.dtype(value), jnp.inexact) and jnp.dtype(value).name == value
    except TypeError:
        return False


def _is_number_name(value: Any) -> bool:
    if not isinstance(value, str) or not re.fullmatch(r"[a-z]{3,12}[0-9][0-9a-z_]*", value):
        return False
    try:
        return jnp.issubdtype(jnp.dtype(value), jnp.number)
    except TypeError:
        return False


def _is_sample(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _is_text(value.get("path"))
        and _is_number_name(value.get("dtype"))
        and _is_list_of(value.get("values"), str)
        and all(_NUMBER.fullmatch(text) for text in value["values"])
    )


def _are_samples(value: Any) -> bool:
    return isinstance(value, list) and all(_is_sample(each) for each in value)


# An integer, or a float as `float.hex` writes it.
_NUMBER = re.compile(r"-?([0-9]{1,20}|0x[01]\.?[0-9a-f]{0,13}p[+-][0-9]{1,4}|inf)|nan")
_LEAF = {
    "shape": lambda value: (
        _is_list_of(value, int) and len(value) <= MOST_AXES and all(map(_is_size, value))
    ),
    "dtype": _is_floating_name,
    "base_dtype": _is_number_name,
    "sha256": _is_text,
}
_FILE = {"size": _is_size, "sha256": _is_text}
_BASE: dict[str, Callable[[Any], bool]] = {
    "leaves": _is_size,
    "sha256": _is_text,
    "list": lambda value: value is None or _is_text(value),
    "samples": _are_samples,
}
