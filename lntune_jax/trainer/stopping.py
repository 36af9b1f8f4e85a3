"""When a call of the training loop saves, and when it ends before the run does.

A launcher that takes a machine away sends SIGTERM some seconds before SIGKILL: the loop saves
after the step that is running, and leaves.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


class TerminatedError(Exception):
    """SIGTERM has ended a run; it can be resumed."""


@dataclass(frozen=True)
class Stops:
    """When a call saves and ends; nothing of it changes the run's result.

    Attributes:
        after_steps: End the call after so many steps, with a checkpoint.
        save_every: Save a checkpoint after every so many steps, besides evaluations.
        save_minutes: Save one after so many minutes without.

    Example:
        >>> Stops(after_steps=100).save_every is None
        True
    """

    after_steps: int | None = None
    save_every: int | None = None
    save_minutes: float | None = None


class Watch:
    """Tells the loop after each step whether to save, and whether to end."""

    def __init__(self, stops: Stops, first: int, told: Callable[[int], bool]):
        """Start the clock.

        Args:
            stops: The flags.
            first: The step at which this call goes on.
            told: Whether a signal has asked to end, given the step.
        """
        self.terminated = False
        self._stops, self._first, self._told = stops, first, told
        self._saved = time.monotonic()

    def ends(self, step: int) -> bool:
        """Whether the call ends after this step."""
        self.terminated = self.terminated or self._told(step)
        return self.terminated or step - self._first == self._stops.after_steps

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is due for the flags' sake."""
        every, minutes = self._stops.save_every, self._stops.save_minutes
        waited = time.monotonic() - self._saved
        return (every is not None and step % every == 0) or (
            minutes is not None and waited >= 60 * minutes
        )

    def saved(self) -> None:
        """Start the clock again."""
        self._saved = time.monotonic()


@contextlib.contextmanager
def heed_sigterm(first: int) -> Iterator[Callable[[int], bool]]:
    """Within it, SIGTERM is only noted; in a run of one process a second one ends it.

    Args:
        first: The step at which this call goes on.

    Yields:
        Whether one has come, given the step. In a run of several processes all are told at the
        same step, whichever got the signal (JAX's preemption sync).
    """
    import jax

    if jax.process_count() > 1:
        yield _heed_together(first)
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False  # Python heeds signals in the main thread only.
        return
    came = threading.Event()

    def note(*_: Any) -> None:
        came.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda step: came.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)


def _heed_together(first: int) -> Callable[[int], bool]:
    """JAX stops all processes at the step after the highest that one has told of."""
    import numpy as np
    from jax.experimental.multihost_utils import process_allgather, reached_preemption_sync_point

    # A signal from before the loop, when none had told of a step, means step 1: it would never be
    # reached by a run that goes on from a later one.
    early = bool(np.any(process_allgather(np.asarray(reached_preemption_sync_point(1)))))
    reached_preemption_sync_point(first)
    return lambda step: early or reached_preemption_sync_point(step)
