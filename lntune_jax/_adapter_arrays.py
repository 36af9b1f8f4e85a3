"""The arrays of an adapter, as a flat Orbax tree of numpy arrays.

Numpy on the way in and out makes the file independent of the mesh that wrote it. Orbax is
imported here only, and late, since it takes about a second.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from ._errors import AdapterError


def write_arrays(directory: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes `{name: array}` as an Orbax tree; Orbax's version 0 API reads it.

    Raises:
        AdapterError: Orbax could not write it.

    Example:
        >>> import tempfile
        >>> directory = Path(tempfile.mkdtemp()) / "arrays"
        >>> write_arrays(directory, {"ln.scale": np.ones(2, np.float32)})
        >>> read_arrays(directory, ["ln.scale"])
        {'ln.scale': array([1., 1.], dtype=float32)}
    """
    import orbax.checkpoint as ocp

    try:
        with _open_checkpointer() as checkpointer:
            checkpointer.save(directory, args=ocp.args.PyTreeSave(dict(arrays)))
    except Exception as error:
        raise AdapterError(f"Orbax could not write {directory}: {_shorten(error)}") from error


def read_arrays(directory: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Reads `{name: array}`, as numpy.

    Raises:
        AdapterError: Orbax could not read it, or it holds other names.
    """
    import orbax.checkpoint as ocp

    wanted = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
    try:
        with _open_checkpointer() as checkpointer:
            args = ocp.args.PyTreeRestore(restore_args=wanted)
            found = checkpointer.restore(directory, args=args)
    except Exception as error:
        raise AdapterError(
            f"Orbax could not read {directory}: {_shorten(error)}. The directory is damaged: copy "
            "it anew from where it came from"
        ) from error
    if set(found) != set(wanted):
        raise AdapterError(
            f"{directory} holds the arrays {sorted(found)[:5]}, expected {sorted(wanted)[:5]}"
        )
    # Orbax gives read-only views in an order of its own; callers get arrays they may change.
    return {name: np.array(found[name], copy=True) for name in wanted}


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
        if not value.is_fully_addressable and not value.is_fully_replicated:
            from jax.experimental import multihost_utils

            value = multihost_utils.process_allgather(value, tiled=True)
    array = np.asarray(value)
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


def hash_array(array: np.ndarray) -> str:
    """The sha256 of an array's bytes, row by row.

    Example:
        >>> hash_array(np.zeros(1, np.float32)) == hash_array(-np.zeros(1, np.float32))
        False
    """
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def _open_checkpointer() -> Any:
    """An Orbax checkpointer of this process alone: it waits for no other."""
    import orbax.checkpoint as ocp

    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"lntune{process}"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _shorten(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
