"""The file that completes an adapter directory: what the directory holds, and checksums of it.

It is written last, so a directory without it is unfinished. A person can read it; it ends with a
checksum of its own text. The same adapter gives the same text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ..config import CONFIG_FILE, WEIGHTS_FILE
from ..errors import AdapterError
from ..storage.leaves import ARRAYS_DIRECTORY, hash_array, is_array_file, read_arrays
from ..storage.sealed import (
    METADATA_FILE,
    MOST_BYTES,
    describe_files,
    list_files,
    open_sealed,
    read_bounded,
    seal_json,
)
from .fingerprint import check_fingerprint

FORMAT_VERSION = 2
_MOST_AXES = 32  # as many as numpy once allowed
_DTYPE = re.compile(r"(bfloat|float|complex)[0-9][0-9a-z_]*")
_FORMAT = re.compile(rb'{\s*"format": "([^"]*)"')
_ADVICE = "Copy the directory anew from where it came from"


class Kind(NamedTuple):
    """What a directory is: its format's name, what messages call it, and what is in it."""

    format: str
    noun: str
    writer: str  # the function that writes it
    entries: frozenset[str]
    most_bytes: int = MOST_BYTES  # of the metadata file


ADAPTER = Kind(
    "lntune_jax adapter",
    "adapter",
    "save_adapter",
    frozenset({CONFIG_FILE, METADATA_FILE, ARRAYS_DIRECTORY}),
)


class LeafRecord(NamedTuple):
    """One leaf in the file: its shape, its dtype, and the sha256 of its bytes."""

    shape: tuple[int, ...]
    dtype: str
    sha256: str


class Metadata(NamedTuple):
    """What the file says.

    Attributes:
        leaves: leaf path to its record.
        base: the base's fingerprint.
        norms: the modules or leaves that trained as norms, by their paths; None in a bank.
        task: what the adapter is for: the labels of a classifier, how it pools, a prompt's form,
            the base; whatever its maker wants kept. None where nothing was said.
        files: relative path of every other file, the arrays' excepted, to its size and sha256.
        rows: what a bank keeps of its rows, which it checks itself; None in an adapter.
    """

    leaves: dict[str, LeafRecord]
    base: dict[str, Any]
    norms: list[str] | None = None
    task: dict[str, Any] | None = None
    files: dict[str, dict[str, Any]] = {}  # noqa: RUF012
    rows: Any = None


def write_metadata(directory: Path, metadata: Metadata, kind: Kind = ADAPTER) -> None:
    """Writes the metadata file of a directory that holds all else, whose files it describes.

    Example:
        >>> import tempfile
        >>> directory = Path(tempfile.mkdtemp())
        >>> write_metadata(directory, Metadata({}, {"leaves": {}}, task={"labels": ["no", "yes"]}))
        >>> read_metadata(directory).task
        {'labels': ['no', 'yes']}
    """
    fields = {
        "format": kind.format,
        "format_version": FORMAT_VERSION,
        "library_version": _get_library_version(),
        "task": metadata.task,
        "norms": metadata.norms,
        **({} if metadata.rows is None else {"rows": metadata.rows}),
        "leaves": {path: record._asdict() for path, record in metadata.leaves.items()},
        "base": metadata.base,
        "files": describe_files(directory, is_array_file),
    }
    (directory / METADATA_FILE).write_text(seal_json(fields), encoding="utf-8")


def read_metadata(directory: Path, kind: Kind = ADAPTER) -> Metadata:
    """Reads the metadata file.

    Raises:
        AdapterError: it is absent, damaged, or of another format or version; or what it says is of
            another kind than its format has.
    """
    file = directory / METADATA_FILE
    try:
        fields, is_intact = open_sealed(read_bounded(file, kind.most_bytes))
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
        raise AdapterError(f"{file} is damaged: {error}. {_ADVICE}") from None
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
    if not is_intact:
        raise AdapterError(
            f"{file} has a wrong checksum: it was changed or damaged after it was saved. {_ADVICE}"
        )
    try:
        check_fields(fields)
    except KeyError as error:
        raise AdapterError(f"{file} lacks a field of its format: {error}") from None
    except ValueError as error:
        raise AdapterError(
            f"{file} does not hold what its format has: {error}. {_ADVICE}"
        ) from None
    leaves = {
        path: LeafRecord(**{**record, "shape": tuple(record["shape"])})
        for path, record in fields["leaves"].items()
    }
    base, norms, task, files = (fields[name] for name in ("base", "norms", "task", "files"))
    return Metadata(leaves, base, norms, task, files, fields.get("rows"))


def list_own(directory: Path, kind: Kind = ADAPTER) -> list[str]:
    """The files that `save_adapter` wrote into a directory, the metadata last; none without that.

    Of a damaged one, or one of another version, these are the files where it has its own. In a
    directory of another kind none is.

    Example:
        >>> list_own(Path("no/such/directory"))
        []
    """
    if not (directory / METADATA_FILE).is_file():
        return []
    with (directory / METADATA_FILE).open("rb") as file:
        found = _FORMAT.match(file.read(200))
    if found and found[1] != kind.format.encode():
        return []
    there = list_files(directory)
    try:
        files = read_metadata(directory, kind).files
        own = [*files, *filter(is_array_file, there)]
    except AdapterError:
        own = [path for path in there if path.partition("/")[0] in kind.entries]
    return [*(path for path in own if path != METADATA_FILE), METADATA_FILE]


def describe_leaf(value: np.ndarray) -> LeafRecord:
    """The record of a leaf.

    Example:
        >>> describe_leaf(np.ones(3, np.float32)).shape
        (3,)
    """
    return LeafRecord(value.shape, value.dtype.name, hash_array(value))


def read_leaves(directory: Path, metadata: Metadata) -> dict[str, np.ndarray]:
    """Reads the arrays of a directory, each against its record.

    Raises:
        AdapterError: names the leaf, what was expected and what was found.
    """
    arrays = read_arrays(directory / ARRAYS_DIRECTORY, metadata.leaves)
    for name, record in metadata.leaves.items():
        found = hash_array(arrays[name])
        if found != record.sha256:
            raise AdapterError(
                f"the leaf {name!r} in {directory} has sha256 {found}, expected "
                f"{record.sha256[:80]}: copy the directory anew from where it came from"
            )
    return arrays


def check_fields(fields: Mapping[str, Any]) -> None:
    """Checks that the fields of a file are of the kinds that its format says.

    A checksum shows that a file is whole, not that its writer meant well: nothing later need
    expect another kind of value.

    Raises:
        ValueError: says which field is not of its kind.

    Example:
        >>> try:
        ...     check_fields({"leaves": {"ln.scale": {"shape": [-1]}}})
        ... except ValueError as error:
        ...     print(error)
        leaves: 'ln.scale' has no 'dtype'
    """
    _check_records(fields, "leaves", _LEAF)
    _check_records(fields, "files", _FILE)
    if fields["norms"] is not None and not _is_list_of(fields["norms"], str):
        raise ValueError("norms: expected a list of module paths, or null")
    if not isinstance(fields["task"], dict | None):
        raise ValueError("task: expected an object, or null")
    check_fingerprint(fields["base"])


def _check_records(
    fields: Mapping[str, Any], field: str, kinds: Mapping[str, Callable[[Any], bool]]
) -> None:
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


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_shape(value: Any) -> bool:
    return _is_list_of(value, int) and len(value) <= _MOST_AXES and all(map(_is_size, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_floating_name(value: Any) -> bool:
    if not isinstance(value, str) or not _DTYPE.fullmatch(value):
        return False
    try:
        return jnp.issubdtype(jnp.dtype(value), jnp.inexact) and jnp.dtype(value).name == value
    except TypeError:
        return False


_LEAF = {"dtype": _is_floating_name, "shape": _is_shape, "sha256": _is_text}
_FILE = {"size": _is_size, "sha256": _is_text}


def _get_library_version() -> str:
    try:
        return version("lntune-jax")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"
