"""Leaves on their way to a file and back: compared, cast, placed, and an adapter's arrays on disk.

Adapters, banks, PEFT files and checkpoints ask the same questions of a leaf; each is answered here.
On disk the arrays are a flat Orbax tree of numpy arrays, so that the file does not depend on the
mesh that wrote it. Orbax writes; TensorStore, on which Orbax stands, reads: it tells a shape before
it takes memory, and is faster. Both are imported late, since they take about a second.
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

from ..errors import AdapterError, LNTuningError
from ..messages import Advice, Argument, list_names
from ..paths import get_shape
from .directories import UNWRITABLE
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


def compare_leaf(path: str, leaf: Any, expected: Any, where: str = "") -> list[str]:
    """What keeps a leaf from being like another one: nothing, or one sentence for a message.

    The shapes must be equal, and the dtypes of one kind: floating, or complex.

    Args:
        path: the leaf's.
        leaf: what was found there, of any type.
        expected: an array or `jax.ShapeDtypeStruct` of the shape and kind that it must have.
        where: in which argument it was found, for the message.

    Example:
        >>> compare_leaf("ln.scale", np.ones(3), np.ones(2), "params")
        ["'ln.scale' has shape (3,) in params, expected (2,)"]
        >>> compare_leaf("ln.scale", np.ones(2, np.float16), np.ones(2, np.float32))
        []
    """
    inside = f" in {where}" if where else ""
    if isinstance(getattr(leaf, "whole", leaf), Tracer):
        return [f"{path!r} is being traced{inside}: call this outside jax.jit"]
    shape = get_shape(leaf)
    if shape is None:
        return [f"{path!r} is a {type(leaf).__name__}{inside}, not an array"]
    wrong = compare_shapes(path, shape, expected.shape, where)
    if wrong:
        return wrong
    kind, noun = jnp.inexact, "floating"
    if jnp.issubdtype(expected.dtype, jnp.inexact):
        is_real = jnp.issubdtype(expected.dtype, jnp.floating)
        kind, noun = (jnp.floating, "floating") if is_real else (jnp.complexfloating, "complex")
    if not jnp.issubdtype(leaf.dtype, kind):
        return [f"{path!r} has dtype {leaf.dtype}{inside}, expected a {noun} one"]
    return []


def compare_shapes(path: str, shape: Any, expected: Any, where: str = "") -> list[str]:
    """The same for shapes alone.

    Example:
        >>> compare_shapes("ln.scale", (3,), [3])
        []
    """
    if tuple(shape) == tuple(expected):
        return []
    inside = f" in {where}" if where else ""
    return [f"{path!r} has shape {tuple(shape)}{inside}, expected {tuple(expected)}"]


def list_nonfinite(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """The leaves that hold a value that is not finite, and how many, for a message.

    Example:
        >>> list_nonfinite({"ln.scale": np.array([1.0, np.nan]), "ln.bias": np.zeros(2)})
        ["'ln.scale' (1 of 2 values)"]
    """
    found = []
    for path, array in arrays.items():
        with np.errstate(invalid="ignore"):  # a bfloat16 that signals would be reported besides
            count = int(array.size - np.isfinite(array).sum())
        if count:
            found.append(f"{path!r} ({count:,} of {array.size:,} values)")
    return found


def cast_leaf(value: np.ndarray, dtype: Any) -> np.ndarray:
    """The values in another dtype; the same array where it has it already.

    What is too large for the dtype becomes infinite, which `list_nonfinite` finds.

    Example:
        >>> cast_leaf(np.array([1.0, 1e9], np.float32), np.float16)
        array([ 1., inf], dtype=float16)
    """
    with np.errstate(over="ignore"):
        return value.astype(dtype, copy=False)


def place_leaf(
    path: str, value: np.ndarray, like: Any, error: type[LNTuningError] = AdapterError
) -> Any:
    """The values as a leaf of the kind of another, where that one lies.

    Args:
        path: the leaf's, for messages.
        value: the values; they keep their dtype.
        like: the leaf to replace. The sharding or device of a `jax.Array` is taken over, and an
            array that is free to move stays so; of a `jax.ShapeDtypeStruct` its sharding, if it
            has one; for anything else the values stay a numpy array.
        error: what is raised.

    Raises:
        LNTuningError: JAX has the dtype turned off, and would round.

    Example:
        >>> place_leaf("ln.scale", np.ones(2, np.float32), jnp.zeros(2)).devices() == {
        ...     jax.devices()[0]
        ... }
        True
    """
    if isinstance(like, np.generic):
        return value[()]
    if not isinstance(like, jax.Array | jax.ShapeDtypeStruct):
        return value
    check_enabled(path, value, like, error)
    sharding = like.sharding
    if sharding is None or (isinstance(like, jax.Array) and not like.committed):
        return jnp.asarray(value)  # as free to move as the leaf it replaces
    return jax.device_put(value, sharding)


def check_enabled(
    path: str, value: np.ndarray, like: Any, error: type[LNTuningError] = AdapterError
) -> None:
    """Refuses values that would become a JAX array of a dtype that JAX has turned off.

    Raises:
        LNTuningError: JAX would round; the arguments are those of `place_leaf`.

    Example:
        >>> check_enabled("ln.scale", np.ones(2, np.float32), jnp.zeros(2))
    """
    if not isinstance(like, jax.Array | jax.ShapeDtypeStruct):
        return
    if jax.dtypes.canonicalize_dtype(value.dtype) != value.dtype:
        raise error(
            f"the leaf {path!r} is {value.dtype}, which JAX has turned off: call "
            "jax.config.update('jax_enable_x64', True)",
            Advice((", or let the leaf take the base's dtype (", Argument("cast", True), ")")),
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
            f"Orbax could not write {directory}: {shorten_error(error)}. {UNWRITABLE}"
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
    try:
        held = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    except OSError as error:  # another process took it away
        raise AdapterError(f"cannot read {directory}: {error.strerror}. {_ADVICE}") from error
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
        raise AdapterError(f"cannot read {directory}: {shorten_error(error)}. {_ADVICE}") from error


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


def shorten_error(error: Exception) -> str:
    """What the file system said first, then the beginning of a library's message.

    Example:
        >>> shorten_error(ValueError("NOT_FOUND: a long path [os_error_code='28']"))[:24]
        'No space left on device:'
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    number = re.search(r"os_error_code='(\d{1,5})'", lines[0])  # in TensorStore's long lines
    cause = f"{os.strerror(int(number[1]))}: " if number else ""
    return cause + lines[0][:300]
