"""Safetensors files at the level of bytes: where each tensor lies, and files with other values.

A file of the base is copied whole, and new values are laid over its bytes. It is written anew only
where tensors come, go or change their names. Either way a few megabytes of memory do, and tensors
of types that numpy does not know are copied like all others.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from lntune_jax.errors import ModelError
from lntune_jax.storage.sealed import parse_json, read_json

from ..loading.safetensors import INDEX_FILE, MOST_INDEX_BYTES, WEIGHTS_FILE, open_weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


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
    """One tensor to write: its key, type and shape, and the bytes of the base or the new values."""

    key: str
    kind: str
    shape: tuple[int, ...]
    source: Tensor | np.ndarray

    @property
    def size(self) -> int:
        """How many bytes it takes."""
        source = self.source
        return source.end - source.start if isinstance(source, Tensor) else source.nbytes


class Checkpoint(NamedTuple):
    """The tensors of a model directory.

    Attributes:
        directory: the model directory.
        tensors: every tensor by its key, file by file, in the order of the bytes.
        listing: the content of the index, or None for a single file.
    """

    directory: Path
    tensors: dict[str, Tensor]
    listing: dict[str, Any] | None

    def keys(self) -> list[str]:
        """Every tensor's key."""
        return list(self.tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self.tensors[key].shape


def read_checkpoint(directory: Path) -> Checkpoint:
    """Read the headers of all weight files of a model directory, and nothing else of them.

    Raises:
        ModelError: there are none, one is missing, damaged or a pickle, or the index does not fit.
    """
    with open_weights(directory) as weights:  # which checks every file and the index
        places = dict.fromkeys(weights.keys(), WEIGHTS_FILE)
    listing = None
    if not (directory / WEIGHTS_FILE).is_file():
        listing = read_json(directory / INDEX_FILE, MOST_INDEX_BYTES)
        places = listing["weight_map"]
    found = (t for name in sorted(set(places.values())) for t in _read_header(directory / name)[0])
    tensors = {tensor.key: tensor for tensor in found if places.get(tensor.key) == tensor.file.name}
    return Checkpoint(directory, tensors, listing)


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


def write_file(target: Path, base: Path, entries: Sequence[Entry]) -> None:
    """Write one weight file of a checkpoint.

    Args:
        target: the file, which must not exist.
        base: the file of the base in whose place it stands.
        entries: what it holds, in this order.
    """
    tensors, metadata = _read_header(base)
    if [tensor[1:4] for tensor in tensors] == [entry[:3] for entry in entries]:
        shutil.copyfile(base, target)
        with target.open("r+b") as file:
            for tensor, entry in zip(tensors, entries, strict=True):
                if isinstance(entry.source, np.ndarray):
                    file.seek(tensor.start)
                    file.write(_view_bytes(entry.source))
        return
    header = _make_header(entries, metadata)
    with target.open("xb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for entry in entries:
            if isinstance(entry.source, np.ndarray):
                file.write(_view_bytes(entry.source))
            else:
                _copy(entry.source, file)


def order_entries(entries: Iterable[Entry]) -> list[Entry]:
    """The order in which the safetensors library writes tensors: wide types first, then by key.

    So each begins at a multiple of its type's size.
    """
    return sorted(
        entries, key=lambda entry: (-entry.size / max(math.prod(entry.shape), 1), entry.key)
    )


def _view_bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _read_header(path: Path) -> tuple[list[Tensor], dict[str, str]]:
    """The tensors in the order of their bytes, and the texts beside them."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > MOST_INDEX_BYTES:
            raise ModelError(f"{path}: its header has {length:,} bytes, more than any model's")
        try:
            fields = parse_json(file.read(length))
        except ValueError as error:
            raise ModelError(f"{path}: its header cannot be used: {error}") from error
    metadata = fields.pop("__metadata__", None) or {}
    tensors = []
    for key, field in fields.items():
        start, end = (8 + length + offset for offset in field["data_offsets"])
        tensors.append(Tensor(path, key, field["dtype"], tuple(field["shape"]), start, end))
    return sorted(tensors, key=lambda tensor: (tensor.start, tensor.end)), metadata


def _make_header(entries: Sequence[Entry], metadata: dict[str, str]) -> bytes:
    fields: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    start = 0
    for entry in entries:
        offsets = [start, start + entry.size]
        fields[entry.key] = {"dtype": entry.kind, "shape": entry.shape, "data_offsets": offsets}
        start += entry.size
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % _ALIGNMENT)


def _copy(source: Tensor, file: BinaryIO) -> None:
    left = source.end - source.start
    with source.file.open("rb", buffering=0) as origin:
        origin.seek(source.start)
        while left:
            octets = origin.read(min(left, _CHUNK))
            if not octets:
                raise ModelError(f"{source.file}: ends inside tensor {source.key}; fetch it again")
            file.write(octets)
            left -= len(octets)
