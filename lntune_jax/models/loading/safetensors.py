"""Safetensors files of a model directory: what they hold, and where in them each tensor lies.

The package `safetensors` checks every file. Its headers are then read here, since the package says
nothing of places, which a merge writes to. Values stay in their file until they are read.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lntune_jax.errors import ModelError
from lntune_jax.messages import shorten
from lntune_jax.storage.sealed import parse_json, read_json

# How safetensors names the types of numbers that weights can be read from, and written in.
TYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}

WEIGHTS_FILE, WEIGHTS_PATTERN = "model.safetensors", "*.safetensors"

INDEX_FILE = "model.safetensors.index.json"

_MOST_BYTES = 2**26  # of a header or an index; that of a model of 100,000 tensors takes 10 MB


class Tensor(NamedTuple):
    """One tensor of a file: its key, type and shape, and where in the file its bytes are."""

    file: Path
    key: str
    kind: str
    shape: tuple[int, ...]
    start: int
    size: int


class Weights(NamedTuple):
    """The tensors of a model directory.

    Attributes:
        directory: the model directory.
        tensors: every tensor by its key, file by file, in the order of the bytes.
        listing: the content of the index, or None for a single file.
        alone: whether what lies around a part is not wanted, as another process reads it.
    """

    directory: Path
    tensors: dict[str, Tensor]
    listing: dict[str, Any] | None = None
    alone: bool = False

    def keys(self) -> list[str]:
        """Every tensor's key."""
        return list(self.tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """A tensor's shape, from the header alone."""
        return self.tensors[key].shape

    def read(self, key: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Give one tensor, or a part of it; nothing is read but what is then copied.

        Args:
            key: the tensor's.
            index: slices with a start and a stop, one for each axis. Nothing stands for the whole.

        Raises:
            ModelError: it holds no floating-point numbers of a known type.
        """
        tensor = self.tensors[key]
        if not index or index[0] == slice(0, tensor.shape[0]):
            return map_tensor(tensor, alone=self.alone)[index]
        start, stop = index[0].start, index[0].stop
        row = tensor.size // tensor.shape[0]
        rows = tensor._replace(
            shape=(stop - start, *tensor.shape[1:]),
            start=tensor.start + start * row,
            size=(stop - start) * row,
        )
        return map_tensor(rows, alone=self.alone)[:, *index[1:]]


def read_weights(directory: Path) -> Weights:
    """Read the headers of all weight files of a model directory, and nothing else of them.

    Raises:
        ModelError: there are none, one is missing, damaged or a pickle, or the index does not fit.
    """
    single, index = directory / WEIGHTS_FILE, directory / INDEX_FILE
    if single.is_file():
        return Weights(directory, {tensor.key: tensor for tensor in read_header(single)[0]})
    if not index.is_file():
        raise ModelError(_absence(directory))
    places = read_index(index)
    found = [t for name in sorted(set(places.values())) for t in read_header(directory / name)[0]]
    tensors = {tensor.key: tensor for tensor in found if places.get(tensor.key) == tensor.file.name}
    for key, name in places.items():
        if key not in tensors:
            raise ModelError(f"{index}: {shorten(key)} should be in {name}, which does not hold it")
    return Weights(directory, tensors, read_json(index, _MOST_BYTES))


def map_tensor(tensor: Tensor, *, alone: bool = False) -> np.ndarray:
    """The tensor as an array whose bytes stay in the file until they are read.

    Args:
        tensor: where it is.
        alone: whether what lies around it is not wanted. Otherwise the system reads ahead, by
            megabytes on some disks.

    Raises:
        ModelError: it holds no floating-point numbers of a known type.
    """
    if tensor.kind not in TYPES:
        raise ModelError(
            f"{tensor.file}: tensor {tensor.key} is stored as {tensor.kind}; supported: "
            f"{', '.join(TYPES)} (weights that are not quantised)"
        )
    if not tensor.size:  # no file maps nothing
        return np.empty(tensor.shape, TYPES[tensor.kind])
    octets = np.memmap(tensor.file, np.uint8, "r", tensor.start, (tensor.size,))
    if alone and isinstance(octets.base, mmap.mmap) and hasattr(mmap, "MADV_WILLNEED"):
        octets.base.madvise(mmap.MADV_RANDOM)
        octets.base.madvise(mmap.MADV_WILLNEED)  # at once, rather than page by page
    # Not a memmap any more, whose operations would give memmaps again.
    return octets.view(np.ndarray).view(TYPES[tensor.kind]).reshape(tensor.shape)


def read_header(path: Path) -> tuple[list[Tensor], dict[str, str]]:
    """The tensors of a file in the order of their bytes, and the texts beside them.

    Raises:
        ModelError: the file is missing, damaged or cut short.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ModelError(f"{path}: no such file, though the index beside it names it")
    try:
        with safe_open(path, framework="numpy"):
            pass  # it has checked the file
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MOST_BYTES:
                raise ValueError(f"its header has {length:,} bytes, more than any model's")
            fields = parse_json(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        reason = shorten(str(error))
        raise ModelError(f"{path}: damaged or cut short ({reason}); fetch it again") from error
    metadata = fields.pop("__metadata__", None) or {}
    tensors = []
    for key, field in fields.items():
        start, end = field["data_offsets"]
        kind, shape = field["dtype"], tuple(field["shape"])
        tensors.append(Tensor(path, key, kind, shape, 8 + length + start, end - start))
    return sorted(tensors, key=lambda tensor: (tensor.start, tensor.size)), metadata


def read_index(index: Path) -> dict[str, str]:
    """The name of the file that holds each tensor, by an index of several.

    Raises:
        ModelError: it is damaged, or leads out of its own directory.
    """
    try:
        names = read_json(index, _MOST_BYTES)["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{index}: not an index with a weight_map ({error})") from error
    if not isinstance(names, dict):
        raise ModelError(f"{index}: weight_map is no object of keys and file names")
    for key, name in names.items():
        # An index comes from elsewhere: it may not lead out of its own directory.
        if not isinstance(name, str) or not _is_plain(name):
            raise ModelError(
                f"{index}: {shorten(key)} is in {shorten(repr(name))}, which is no plain file name"
            )
    return names


def _is_plain(name: str) -> bool:
    """Whether a name is that of a file in the same directory, and of weights."""
    return Path(name).name == name and name.endswith(".safetensors") and name.isprintable()


def _absence(directory: Path) -> str:
    pickled = sorted(path.name for path in directory.glob("pytorch_model*.bin"))
    if pickled:
        return (
            f"{directory}: the weights are only in {pickled[0]}, a pickle, which can run any code "
            f"when it is read; convert them to {WEIGHTS_FILE} first"
        )
    return f"{directory}: no weights; expected {WEIGHTS_FILE} or {INDEX_FILE}"
