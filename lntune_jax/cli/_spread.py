"""A batch of which each process assembles its own rows only."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._errors import ConfigError
from ._batches import PlannedBatch, Rows, assemble


def row_devices(mesh: Any) -> int:
    """Over how many groups of devices the rows of a batch are divided.

    Example:
        >>> row_devices(None)
        1
    """
    return 1 if mesh is None else math.prod(mesh.shape[name] for name in _row_axes(mesh))


def check_batch_sizes(mesh: Any, **sizes: int) -> None:
    """Refuse batches whose rows the devices cannot share alike.

    Raises:
        ConfigError: One does not divide; the message names the flag.
    """
    for name, size in sizes.items():
        if size % row_devices(mesh):
            raise ConfigError(
                f"--{name.replace('_', '-')} is {size}, which {row_devices(mesh)} devices cannot "
                "share alike; give a multiple"
            )


def place_batch(
    planned: PlannedBatch, rows: Rows, batch_size: int, padding: int, mesh: Any
) -> dict[str, Any]:
    """The arrays of one batch, as `assemble` makes them; on a mesh spread over its devices.

    Every process plans the same batches, and pads and hands over only the rows of its own devices.
    """
    if mesh is None:
        return assemble(planned, rows, batch_size, padding)
    import jax

    sharding = jax.sharding.NamedSharding(mesh, jax.P(_row_axes(mesh)))
    parts: dict[tuple[int, int], dict[str, Any]] = {}

    def part(index: Any) -> dict[str, Any]:
        start, stop, _ = index[0].indices(batch_size)
        if (start, stop) not in parts:
            parts[start, stop] = _assemble_part(planned, rows, (start, stop), padding)
        return parts[start, stop]

    shapes = {
        "input_ids": (batch_size, planned.length),
        "attention_mask": (batch_size, planned.length),
        "classes": (batch_size,),
        "weights": (batch_size,),
    }
    return {
        name: jax.make_array_from_callback(shape, sharding, lambda at, name=name: part(at)[name])
        for name, shape in shapes.items()
    }


def _assemble_part(
    planned: PlannedBatch, rows: Rows, span: tuple[int, int], padding: int
) -> dict[str, Any]:
    """Rows `span` of the batch; past the last one, the first with weight 0."""
    places = np.arange(*span)
    real = places < len(planned.rows)
    numbers = planned.rows[np.where(real, places, 0)]
    found = assemble(PlannedBatch(numbers, planned.length), rows, len(numbers), padding)
    return found | {"weights": real.astype(np.float32)}


def _row_axes(mesh: Any) -> tuple[str, ...]:
    return tuple(name for name in ("data", "fsdp") if name in mesh.shape)
