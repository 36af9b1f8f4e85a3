"""A walk over the head of a GGUF file before the package `gguf` reads it.

That reader trusts every count: it follows a list of 2**60 numbers past the end of the file until
the memory is full. Here each count must fit into what is left of the file.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

MOST_ENTRIES = 2**23  # in all lists together: several times the largest vocabulary's

_MOST_FIELDS = 2**20

_MOST_AXES = 8

_MOST_NESTED = 4

_STRING, _LIST = 8, 9

# Bytes of one value of each other type, by the number that the format gives the type.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def check_header(path: Path) -> None:
    """Checks that every count in a file's head fits the file.

    Raises:
        OSError: it cannot be read.
        ValueError: says what does not fit.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "model.gguf"
        >>> _ = path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0))
        >>> try:
        ...     check_header(path)
        ... except ValueError as error:
        ...     print(error)
        it is said to have 1152921504606846976 tensors
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        _Walk(stream, size).walk()


class _Walk:
    """A position in a file, and what has been counted so far."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._left = size
        self._order = "<"
        self._entries = 0

    def walk(self) -> None:
        magic, version = self._take(4), self._take(4)
        if magic != b"GGUF":
            raise ValueError("it does not begin with 'GGUF'")
        if int.from_bytes(version, "little") & 0xFFFF == 0:
            self._order = ">"  # written for machines of the other byte order
        tensors, fields = self._number("Q"), self._number("Q")
        for count, what in ((tensors, "tensors"), (fields, "fields")):
            if count > min(_MOST_FIELDS, self._left):
                raise ValueError(f"it is said to have {count} {what}")
        for _ in range(fields):
            self._skip(self._number("Q"))
            self._value(self._number("I"), 0)
        for _ in range(tensors):
            self._skip(self._number("Q"))
            axes = self._number("I")
            if axes > _MOST_AXES:
                raise ValueError(f"a tensor is said to have {axes} axes")
            self._skip(8 * axes + 4 + 8)

    def _value(self, kind: int, depth: int) -> None:
        if kind in _SIZES:
            self._skip(_SIZES[kind])
        elif kind == _STRING:
            self._skip(self._number("Q"))
        elif kind == _LIST and depth < _MOST_NESTED:
            inner, count = self._number("I"), self._number("Q")
            self._entries += count
            if count > self._left or self._entries > MOST_ENTRIES:
                raise ValueError(f"a list is said to have {count} entries")
            if inner in _SIZES:
                self._skip(_SIZES[inner] * count)
                return
            for _ in range(count):
                self._value(inner, depth + 1)
        else:
            raise ValueError(f"a value has the type {kind}, or lists are nested too deeply")

    def _number(self, kind: str) -> int:
        return struct.unpack(self._order + kind, self._take(struct.calcsize(kind)))[0]

    def _take(self, count: int) -> bytes:
        self._count(count)
        return self._stream.read(count)

    def _skip(self, count: int) -> None:
        self._count(count)
        self._stream.seek(count, 1)

    def _count(self, count: int) -> None:
        if count > self._left:
            raise ValueError(f"it ends where {count} more bytes are announced")
        self._left -= count
