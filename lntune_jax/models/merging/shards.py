"""A weight file of the base, with other values in it.

It is copied whole, and new values are laid over its bytes. It is written anew only where tensors
come, go or change their names. Either way a few megabytes of memory do, and tensors of types that
numpy does not know are copied like all others.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from lntune_jax.errors import ModelError

from ..loading.safetensors import read_header

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ..loading.safetensors import Tensor


_CHUNK = 2**20

_ALIGNMENT = 8  # of the first tensor, as the safetensors library writes it


def write_file(
    target: Path, base: Path, tensors: Sequence[Tensor], values: Mapping[str, np.ndarray]
) -> None:
    """Write one weight file of a checkpoint in place of one of the base.

    It holds `tensors`, by their new keys. Their bytes are copied from where they are, but for those
    that are among `values`, arrays of the same type and shape.
    """
    own, metadata = read_header(base)
    if [_describe(tensor) for tensor in own] == [_describe(tensor) for tensor in tensors]:
        shutil.copyfile(base, target)
        with target.open("r+b") as file:
            for tensor in own:
                if tensor.key in values:
                    file.seek(tensor.start)
                    file.write(_view_bytes(values[tensor.key]))
        return
    # As the safetensors library orders them, so that each begins at a multiple of its type's size.
    ordered = sorted(tensors, key=lambda t: (-t.size / max(math.prod(t.shape), 1), t.key))
    header = _make_header(ordered, metadata)
    with target.open("xb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for tensor in ordered:
            if tensor.key in values:
                file.write(_view_bytes(values[tensor.key]))
            else:
                _copy(tensor, file)


def _describe(tensor: Tensor) -> tuple[str, str, tuple[int, ...], int]:
    return tensor.key, tensor.kind, tensor.shape, tensor.size


def _view_bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _make_header(tensors: Sequence[Tensor], metadata: dict[str, str]) -> bytes:
    fields: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    start = 0
    for tensor in tensors:
        offsets = [start, start + tensor.size]
        fields[tensor.key] = {"dtype": tensor.kind, "shape": tensor.shape, "data_offsets": offsets}
        start += tensor.size
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % _ALIGNMENT)


def _copy(source: Tensor, file: BinaryIO) -> None:
    left = source.size
    with source.file.open("rb", buffering=0) as origin:
        origin.seek(source.start)
        while left:
            octets = origin.read(min(left, _CHUNK))
            if not octets:
                raise ModelError(f"{source.file}: ends inside tensor {source.key}; fetch it again")
            file.write(octets)
            left -= len(octets)
