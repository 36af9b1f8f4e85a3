"""What several processes of a run do together: an error on one of them is an error on all.

Each collective waits for every process. One that raises before it would leave the others waiting
for ever, so whatever has collectives runs in `together`, and they `meet` before each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from ..errors import AnotherProcessError

_LONGEST = 1000  # bytes of an error's text that the others show


@contextmanager
def together(needed: bool = True) -> Iterator[None]:
    """Leaves the block on all processes of the run, or raises on all.

    Every process must enter it, in a with statement that is not within another one. A collective
    in the block comes right after `meet`.

    Args:
        needed: whether there are collectives in it, such as `spans_processes` tells.

    Raises:
        AnotherProcessError: on the processes that went well, where another one raised.

    Example:
        >>> with together():
        ...     print("done")
        done
    """
    if not needed or jax.process_count() == 1:
        yield
        return
    try:
        yield
    except AnotherProcessError:
        raise  # all know already
    except Exception as error:
        _exchange(f"{type(error).__name__}: {error}")
        raise
    meet()


def meet() -> None:
    """Waits for every process of the run, within `together`.

    Raises:
        AnotherProcessError: one of them has raised.

    Example:
        >>> meet()
    """
    if jax.process_count() == 1:
        return
    texts = _exchange("")
    failed = [(number, text) for number, text in enumerate(texts) if text]
    if failed:
        number, text = failed[0]
        raise AnotherProcessError(
            f"process {number} of {len(texts)} could not do its part, so that nothing was done "
            f"here: {text}"
        )


def write_on_first_process(write: Callable[[], None]) -> None:
    """Calls `write` on the first process, once all are here; within `together`.

    Example:
        >>> write_on_first_process(lambda: print("written"))
        written
    """
    meet()
    if jax.process_index() == 0:
        write()


def gather(value: jax.Array) -> np.ndarray:
    """The values of an array that is spread over several processes, on each of them.

    Example:
        >>> gather(jax.numpy.ones(2)).tolist()
        [1.0, 1.0]
    """
    if value.is_fully_addressable or value.is_fully_replicated:
        return np.asarray(value)
    from jax.experimental import multihost_utils

    meet()
    return np.asarray(multihost_utils.process_allgather(value, tiled=True))


def spans_processes(tree: Any) -> bool:
    """Whether a leaf of a tree, or a sharding in it, lies on devices of other processes too.

    Example:
        >>> spans_processes({"scale": np.ones(2)})
        False
    """
    try:
        leaves = jax.tree_util.tree_leaves(tree)
    except ValueError:  # no tree; what reads it says so
        return False
    shardings = (getattr(leaf, "sharding", leaf) for leaf in leaves)
    return any(
        isinstance(each, jax.sharding.Sharding) and not each.is_fully_addressable
        for each in shardings
    )


def _exchange(text: str) -> list[str]:
    """What each process says, by its number."""
    from jax.experimental import multihost_utils

    row = np.zeros(_LONGEST, np.uint8)
    said = np.frombuffer(text.encode(errors="replace")[:_LONGEST], np.uint8)
    row[: len(said)] = said
    rows = np.asarray(multihost_utils.process_allgather(row))
    return [bytes(each).rstrip(b"\0").decode(errors="ignore") for each in rows]
