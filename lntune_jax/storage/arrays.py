"""The arrays of an adapter, as a flat Orbax tree of numpy arrays.

Numpy on the way in and out makes the file independent of the mesh that wrote it. Orbax is
imported here only, and late, since it takes about a second.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from ..errors import AdapterError
from ..messages import list_names
from .directories import UNWRITABLE
from .processes import gather


def write_arrays(directory: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes `{name: array}` as an Orbax tree; Orbax's version 0 API reads it.

    Raises:
        AdapterError: Orbax could not write it.

    Example:
        >>> import tempfile
        >>> directory = Path(tempfile.mkdtemp()) / "arrays"
        >>> write_arrays(directory, {"ln.scale": np.ones(2, np.float32)})
        >>> read_arrays(directory, {"ln.scale": (2,)})
        {'ln.scale': array([1., 1.], dtype=float32)}
    """
    import orbax.checkpoint as ocp

    try:
        with _open_checkpointer() as checkpointer:
            checkpointer.save(directory, args=ocp.args.PyTreeSave(dict(arrays)))
    except Exception as error:
        raise AdapterError(
            f"Orbax could not write {directory}: {_shorten(error)}. {UNWRITABLE}"
        ) from error


def read_arrays(directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Reads `{name: array}`, as numpy.

    Args:
        directory: what `write_arrays` wrote.
        shapes: of each array; none of another shape is given memory.

    Raises:
        AdapterError: Orbax could not read it, or it holds other names or shapes.
    """
    import orbax.checkpoint as ocp

    wanted = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in shapes}
    try:
        with _open_checkpointer() as checkpointer:
            _check_shapes(checkpointer.metadata(directory).item_metadata.tree, shapes)
            args = ocp.args.PyTreeRestore(restore_args=wanted)
            found = checkpointer.restore(directory, args=args)
    except Exception as error:
        raise AdapterError(
            f"Orbax could not read {directory}: {_shorten(error)}. The directory is damaged: copy "
            "it anew from where it came from"
        ) from error
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


def _check_shapes(tree: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compares shapes before memory is taken for any."""
    names = tree.keys() if isinstance(tree, Mapping) else ()
    if set(names) != set(shapes):
        raise ValueError(f"it holds the arrays {list_names(sorted(names))}")
    for name, shape in shapes.items():
        found = getattr(tree[name], "shape", None)
        if found is None or tuple(found) != shape:
            raise ValueError(f"the leaf {name[:80]!r} has shape {found}, expected {shape}")


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
    number = re.search(r"os_error_code='(\d{1,5})'", lines[0])  # in TensorStore's long lines
    cause = f"{os.strerror(int(number[1]))}: " if number else ""
    return cause + lines[0][:300]
