"""A batch of which each process assembles its own rows only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..messages import Argument
from .batches import PlannedBatch, Rows, assemble_span
from .packing import LanguageRows, assemble_language


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
                Argument(name),
                f" is {size}, which {row_devices(mesh)} devices cannot share alike; take a "
                "multiple",
            )


def spread_rows(
    make: Callable[[int, int], Mapping[str, np.ndarray]], batch_size: int, mesh: Any
) -> dict[str, Any]:
    """The arrays of one batch; on a mesh divided over its devices along their first axis.

    Every process makes the rows of its own devices only.

    Args:
        make: Gives rows `start` to `stop` of every array.
        batch_size: Rows in all.
        mesh: The devices that share them, or `None` for one device.
    """
    if mesh is None:
        return dict(make(0, batch_size))
    import jax

    sharding = jax.sharding.NamedSharding(mesh, jax.P(_row_axes(mesh)))
    indices = sharding.addressable_devices_indices_map((batch_size,)).values()
    spans = {_span(index, batch_size) for index in indices}
    parts = {span: make(*span) for span in spans}
    return {
        name: jax.make_array_from_callback(
            (batch_size, *array.shape[1:]),
            sharding,
            lambda index, name=name: parts[_span(index, batch_size)][name],
        )
        for name, array in next(iter(parts.values())).items()
    }


def place_batch(
    planned: PlannedBatch, rows: Rows, batch_size: int, padding: int, mesh: Any
) -> dict[str, Any]:
    """The arrays of one batch as `assemble` makes them, spread over a mesh."""

    def make(start: int, stop: int) -> dict[str, Any]:
        return assemble_span(planned, rows, (start, stop), padding)

    return spread_rows(make, batch_size, mesh)


def place_language_batch(
    planned: PlannedBatch, rows: LanguageRows, batch_size: int, padding: int, mesh: Any
) -> dict[str, Any]:
    """The arrays of one batch as `assemble_language` makes them, spread over a mesh."""

    def make(start: int, stop: int) -> dict[str, Any]:
        part = PlannedBatch(planned.rows[start:stop], planned.length)
        return assemble_language(part, rows, stop - start, padding)

    return spread_rows(make, batch_size, mesh)


def _span(index: Any, size: int) -> tuple[int, int]:
    start, stop, _ = index[0].indices(size)
    return start, stop


def _row_axes(mesh: Any) -> tuple[str, ...]:
    return tuple(name for name in ("data", "fsdp") if name in mesh.shape)
