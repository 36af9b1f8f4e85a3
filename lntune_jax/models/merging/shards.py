"""Safetensors files at the level of bytes: where each tensor lies, and writing a file as a stream.

A file of any size goes through a few megabytes of memory, and tensors of types that numpy does
not know are copied like all others.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from lntune_jax.errors import ModelError
from lntune_jax.storage.sealed import parse_json, read_json

from ..loading.safetensors import INDEX_FILE, MOST_INDEX_BYTES, WEIGHTS_FILE, open_weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


# How safetensors names the types that an adapter's values can be written in.
TYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}

_CHUNK = 4 * 2**20

_ALIGNMENT = 8  # of the first tensor, as the safetensors library writes it


class Tensor(NamedTuple):
    """One tensor of a file: its key, type and shape, and where in the file its bytes are."""

    file: Path
    key: str
    kind: str
    shape: tuple[int, ...]
    start: int
    end: int


class Entry(NamedTuple):
    """One tensor to write.

    Attributes:
        key: its key in the new file.
        kind: its type, as safetensors names it.
        shape: its shape.
        source: the tensor whose bytes are copied, or None where `value` is written.
        value: the array to write, of that type and shape.
    """

    key: str
    kind: str
    shape: tuple[int, ...]
    source: Tensor | None
    value: np.ndarray | None = None

    @property
    def size(self) -> int:
        """How many bytes it takes."""
        if self.value is not None:
            return self.value.nbytes
        assert self.source is not None
        return self.source.end - self.source.start


class Checkpoint(NamedTuple):
    """The tensors of a model directory.

    Attributes:
        directory: the model directory.
        files: the names of its weight files, in the order of their names.
        tensors: every tensor by its key.
        metadata: for each file, the texts that its header holds beside the tensors.
        listing: the content of the index, or None for a single file.
    """

    directory: Path
    files: tuple[str, ...]
    tensors: dict[str, Tensor]
    metadata: dict[str, dict[str, str]]
    listing: dict[str, Any] | None


def read_checkpoint(directory: Path) -> Checkpoint:
    """Read the headers of all weight files of a model directory, and nothing else of them.

    Raises:
        ModelError: there are none, one is missing, damaged or a pickle, or the index does not fit.
    """
    with open_weights(directory) as weights:  # which checks every file and the index
        keys = weights.keys()
    listing = None
    if (directory / WEIGHTS_FILE).is_file():
        places = dict.fromkeys(keys, WEIGHTS_FILE)
        files = [WEIGHTS_FILE]
    else:
        listing = read_json(directory / INDEX_FILE, MOST_INDEX_BYTES)
        places = listing["weight_map"]
        files = sorted(set(places.values()))
    headers = {name: _read_header(directory / name) for name in files}
    tensors = {
        key: tensor  # in the order of the bytes
        for name in files
        for key, tensor in headers[name][0].items()
        if places.get(key) == name
    }
    metadata = {name: header[1] for name, header in headers.items()}
    return Checkpoint(directory, tuple(files), tensors, metadata, listing)


def map_tensor(tensor: Tensor) -> np.ndarray:
    """The tensor as an array whose bytes stay in the file until they are read.

    Raises:
        ModelError: it holds no floating-point numbers of a known type.
    """
    if tensor.kind not in TYPES:
        raise ModelError(
            f"{tensor.file}: tensor {tensor.key} is stored as {tensor.kind}; supported: "
            f"{', '.join(TYPES)} (weights that are not quantised)"
        )
    octets = np.memmap(tensor.file, np.uint8, "r", tensor.start, (tensor.end - tensor.start,))
    # Not a memmap any more, whose operations would give memmaps again.
    return octets.view(np.ndarray).view(TYPES[tensor.kind]).reshape(tensor.shape)


def write_file(target: Path, entries: Sequence[Entry], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, tensor after tensor.

    Args:
        target: the file, which must not exist.
        entries: what it holds, in this order.
        metadata: the texts that its header holds beside the tensors.
    """
    header = _write_header(entries, metadata)
    with target.open("xb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for entry in entries:
            if entry.value is not None:
                file.write(np.ascontiguousarray(entry.value).reshape(-1).view(np.uint8).data)
            elif entry.source is not None:
                _copy(entry.source, file)


def order_entries(entries: Iterable[Entry]) -> list[Entry]:
    """The order in which the safetensors library writes tensors: wide types first, then by key.

    So each begins at a multiple of its type's size.
    """
    return sorted(entries, key=lambda entry: (-_item_size(entry), entry.key))


def _item_size(entry: Entry) -> float:
    return entry.size / max(math.prod(entry.shape), 1)


def _read_header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > MOST_INDEX_BYTES:
            raise ModelError(f"{path}: its header has {length:,} bytes, more than any model's")
        try:
            fields = parse_json(file.read(length))
        except ValueError as error:
            raise ModelError(f"{path}: its header cannot be used: {error}") from error
    metadata = fields.pop("__metadata__", None) or {}
    first = 8 + length
    tensors = [
        Tensor(
            path,
            key,
            field["dtype"],
            tuple(field["shape"]),
            first + field["data_offsets"][0],
            first + field["data_offsets"][1],
        )
        for key, field in fields.items()
    ]
    return {tensor.key: tensor for tensor in sorted(tensors, key=_place)}, metadata


def _place(tensor: Tensor) -> tuple[int, int]:
    return tensor.start, tensor.end


def _write_header(entries: Sequence[Entry], metadata: Mapping[str, str]) -> bytes:
    fields: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for entry in entries:
        fields[entry.key] = {
            "dtype": entry.kind,
            "shape": list(entry.shape),
            "data_offsets": [start, start + entry.size],
        }
        start += entry.size
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % _ALIGNMENT)


def _copy(source: Tensor, file: BinaryIO) -> None:
    buffer = memoryview(bytearray(min(_CHUNK, source.end - source.start)))
    with source.file.open("rb", buffering=0) as origin:
        origin.seek(source.start)
        left = source.end - source.start
        while left:
            count = origin.readinto(buffer[: min(left, len(buffer))])
            if not count:
                raise ModelError(f"{source.file}: ends inside tensor {source.key}; fetch it again")
            file.write(buffer[:count])
            left -= count
