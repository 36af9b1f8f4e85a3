"""Rows of which each process of a run tokenises a share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def share_rows(
    make: Callable[[Sequence[int]], Sequence[np.ndarray]], count: int, mesh: Any
) -> list[np.ndarray]:
    """Rows of which each process makes a share, and every one gets all.

    Args:
        make: Gives the rows with these numbers, int32 arrays of shape (tokens,).
        count: Rows in all.
        mesh: `None` in a run of one process.
    """
    import jax

    processes = 1 if mesh is None else jax.process_count()
    if processes == 1:
        return list(make(range(count)))
    from jax.experimental.multihost_utils import process_allgather

    own = list(make(range(jax.process_index(), count, processes)))
    # Arrays of one shape cross: sizes, and then all tokens in a line, both filled up with zeros.
    sizes = np.zeros(-(-count // processes), np.int32)
    sizes[: len(own)] = [len(row) for row in own]
    all_sizes = np.asarray(process_allgather(sizes))
    line = np.zeros(int(all_sizes.sum(axis=1).max()), np.int32)
    line[: int(sizes.sum())] = np.concatenate([*own, np.zeros(0, np.int32)])
    lines = np.asarray(process_allgather(line))
    starts = np.cumsum(all_sizes, axis=1) - all_sizes
    rows = []
    for number in range(count):
        place, process = divmod(number, processes)
        start = int(starts[process, place])
        rows.append(lines[process, start : start + int(all_sizes[process, place])])
    return rows
