"""Whether the fields of a metadata file are of the kinds that its format says.

A checksum shows that a file is whole, not that its writer meant well: nothing later need expect
another kind of value, or a size that no memory holds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

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
