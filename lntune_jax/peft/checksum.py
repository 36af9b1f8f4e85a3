"""A checksum of the tensors of a PEFT adapter, in the header of the file that holds them.

The format has none: a flipped bit in a weight is just another weight. PEFT and safetensors keep
what they do not know in the header, and do not look at it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

FIELD = "lntune_jax_sha256"


def hash_tensors(tensors: Mapping[str, np.ndarray]) -> str:
    """The sha256 over names, types, shapes and bytes, whatever the order.

    Example:
        >>> one, two = {"a": np.ones(1), "b": np.ones(2)}, {"b": np.ones(2), "a": np.ones(1)}
        >>> hash_tensors(one) == hash_tensors(two) != hash_tensors({"a": np.ones(1)})
        True
    """
    digest = hashlib.sha256()
    for key in sorted(tensors):
        value = np.ascontiguousarray(tensors[key])
        digest.update(f"{key!r} {value.dtype.name} {value.shape}\n".encode())
        digest.update(value.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def sort_header(file: Path) -> None:
    """Puts the texts in a header in order: safetensors writes them in another one each time."""
    with file.open("r+b") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:
            stream.seek(8)
            stream.write(text.ljust(length))
