"""The arrays of an adapter, as a flat Orbax tree of numpy arrays.

Numpy on the way in and out makes the file independent of the mesh that wrote it. Orbax writes;
TensorStore, on which Orbax stands, reads: it tells a shape before it takes memory, and is faster.
Both are imported here only, and late, since they take about a second.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..errors import AdapterError
from ..messages import list_names
from .directories import UNWRITABLE
from .leaves import compare_shapes
from .processes import gather

ARRAYS_DIRECTORY = "arrays"
# A file of a few bytes can stand for an array of any size; a trained one hardly compresses.
MOST_BYTES_UNQUESTIONED = 2**30
MOST_TIMES_THE_FILES = 256
_ADVICE = "The directory is damaged: copy it anew from where it came from"
# The files of an Orbax tree, all of whose names Orbax chooses.
_FILES = re.compile(
    r"_METADATA|_CHECKPOINT_METADATA|_sharding|commit_success\.txt|array_metadatas/process_\d+"
    r"|(ocdbt\.process_\d+/)?(manifest\.ocdbt|d/[0-9a-f]+)"
)


def write_arrays(directory: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes `{name: array}` as an Orbax tree; Orbax's version 0 API reads it.

    Raises:
        AdapterError: Orbax could not write it.

    Example:
        >>> import tempfile
        >>> directory = Path(tempfile.mkdtemp()) / "arrays"
        >>> write_arrays(directory, {"ln.scale": np.ones(2, np.float32)})
        >>> read_arrays(directory, {"ln.scale": jax.ShapeDtypeStruct((2,), np.float32)})
        {'ln.scale': array([1., 1.], dtype=float32)}
    """
    import orbax.checkpoint as ocp

    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(  # of this process: it waits for no other
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"lntune{process}"
    )
    # The handler alone: a `Checkpointer` adds what makes a directory whole, which ours is already.
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=True, use_zarr3=False, multiprocessing_options=alone
    )
    try:
        directory.mkdir()
        handler.save(directory, args=ocp.args.PyTreeSave(dict(arrays)))  # pyright: ignore[reportArgumentType]
        handler.finalize(directory)  # pyright: ignore[reportArgumentType]
        handler.close()
    except Exception as error:
        raise AdapterError(
            f"Orbax could not write {directory}: {_shorten(error)}. {UNWRITABLE}"
        ) from error


def read_arrays(directory: Path, likes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Reads `{name: array}`, as numpy arrays that a caller may change.

    Args:
        directory: what `write_arrays` wrote.
        likes: for each name something with the array's `shape` and `dtype`; none of another shape
            is given memory.

    Raises:
        AdapterError: it cannot be read, or holds other names, shapes or dtypes.
    """
    import tensorstore

    for name, like in likes.items():
        if math.prod(like.shape) >= 2**63:
            raise AdapterError(f"the leaf {name!r} in {directory} has no possible shape")
    size = sum(math.prod(like.shape) * jnp.dtype(like.dtype).itemsize for like in likes.values())
    held = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    if size > max(MOST_BYTES_UNQUESTIONED, MOST_TIMES_THE_FILES * held):
        raise AdapterError(f"{directory}: {size:,} bytes of arrays in {held:,} bytes of files")
    context = tensorstore.Context()
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{directory}/"}}
    try:
        keys = tensorstore.KvStore.open(store, context=context).result().list().result()
        names = {key.decode().removesuffix("/.zarray") for key in keys if key.endswith(b"/.zarray")}
        if names != set(likes):
            raise ValueError(f"it holds {list_names(sorted(names)) or 'no arrays'}")
        specs = {
            name: {"driver": "zarr", "kvstore": store | {"path": f"{name}/"}} for name in likes
        }
        opening = {
            name: tensorstore.open(spec, open=True, read=True, context=context)
            for name, spec in specs.items()
        }
        opened = {name: future.result() for name, future in opening.items()}
        for name, like in likes.items():
            _check_like(name, opened[name], like)
        reading = {name: each.read(order="C") for name, each in opened.items()}
        return {name: np.asarray(future.result()) for name, future in reading.items()}
    except Exception as error:
        raise AdapterError(f"cannot read {directory}: {_shorten(error)}. {_ADVICE}") from error


def is_array_file(path: str) -> bool:
    """Whether a file of an adapter's directory is one that Orbax writes, by its relative path.

    Example:
        >>> is_array_file("arrays/manifest.ocdbt"), is_array_file("arrays/results.csv")
        (True, False)
    """
    folder, _, rest = path.partition("/")
    return folder == ARRAYS_DIRECTORY and _FILES.fullmatch(rest) is not None


def to_numpy(name: str, value: Any) -> np.ndarray:
    """The values of one leaf on the host, in native byte order and row by row.

    In a run of several processes each must call this, since a leaf may be spread over all of them.

    Raises:
        AdapterError: the leaf has no values: it is abstract, traced, or was donated.
    """
    if isinstance(value, jax.ShapeDtypeStruct):
        raise AdapterError(f"the leaf {name!r} is a jax.ShapeDtypeStruct, which has no values")
    if isinstance(value, Tracer):
        raise AdapterError(f"the leaf {name!r} is being traced: call this outside jax.jit")
    if isinstance(value, jax.Array):
        if value.is_deleted():
            raise AdapterError(
                f"the leaf {name!r} was donated to a jitted function and is gone: pass the arrays "
                "that the function returned"
            )
        value = gather(value)
    array = np.asarray(value)
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


def hash_array(array: np.ndarray) -> str:
    """The sha256 of an array's bytes, row by row.

    Example:
        >>> hash_array(np.zeros(1, np.float32)) == hash_array(-np.zeros(1, np.float32))
        False
    """
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def _check_like(name: str, opened: Any, like: Any) -> None:
    """Compares an array on the disk with what it must be, before memory is taken for it."""
    wrong = compare_shapes(name, opened.shape, like.shape)
    found, expected = np.dtype(opened.dtype.numpy_dtype), jnp.dtype(like.dtype)
    if found != expected:
        wrong.append(f"{name!r} has dtype {found}, expected {expected}")
    chunk = opened.chunk_layout.read_chunk.shape or ()
    if math.prod(chunk) > max(math.prod(like.shape), 1):
        wrong.append(f"{name!r} is stored in pieces of the shape {tuple(chunk)}")
    if wrong:
        raise ValueError(f"the leaf {wrong[0]}")


def _shorten(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    number = re.search(r"os_error_code='(\d{1,5})'", lines[0])  # in TensorStore's long lines
    cause = f"{os.strerror(int(number[1]))}: " if number else ""
    return cause + lines[0][:300]
