"""What a sweep has seen so far, as its checkpoints hold it, and what it writes of each step."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from ..cli.console import TrainingProgress
from ..training.state import TrainState
from .history import Evaluation, History, rank
from .metrics import MetricsWriter
from .nonfinite import MOST_SKIPPED, Fault
from .trials import Trial


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Snapshot:
    """A pytree with the position of a sweep.

    Attributes:
        step: Steps done, which names the checkpoint; an adapter that is done has taken fewer.
        train: The states of all adapters.
        best: Trainable leaves of each one's best evaluation, as numpy arrays.
    """

    step: Any
    train: TrainState
    best: dict[str, Any]


@dataclass(frozen=True)
class Records:
    """The histories of all adapters.

    Attributes:
        histories: One each.
        diverged: The step at which an adapter's loss was no number, or `None`.
        seconds: Time spent.
    """

    histories: tuple[History, ...]
    diverged: tuple[int | None, ...]
    seconds: float = 0.0

    @classmethod
    def new(cls, count: int) -> Records:
        """Those of a sweep that has not begun."""
        return cls((History(),) * count, (None,) * count)

    def active(self) -> np.ndarray:
        """Which adapters go on, booleans of shape (adapters,)."""
        pairs = zip(self.histories, self.diverged, strict=True)
        return np.asarray([not history.stopped and step is None for history, step in pairs])

    def diverge(self, numbers: Iterable[int], step: int) -> Records:
        """The records with these adapters out."""
        diverged = list(self.diverged)
        for number in numbers:
            diverged[number] = step
        return replace(self, diverged=tuple(diverged))

    def with_history(self, number: int, history: History) -> Records:
        """The records with another history of one adapter."""
        histories = list(self.histories)
        histories[number] = history
        return replace(self, histories=tuple(histories))

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain values."""
        return {
            "histories": [history.to_json() for history in self.histories],
            "diverged": list(self.diverged),
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Records:
        """The inverse of `to_json`."""
        histories = tuple(History.from_json(each) for each in content["histories"])
        return cls(histories, tuple(content["diverged"]), content["seconds"])


class SweepRecorder:
    """Writes the metrics of the step before the one that is running, as `Recorder` does."""

    def __init__(
        self,
        writer: MetricsWriter,
        progress: TrainingProgress,
        trials: Sequence[Trial],
        epoch_steps: Sequence[int],
        *,
        skips: bool = False,
        skipped: Sequence[int],
    ):
        """Start timing; with `skips`, an adapter's step without numbers does not end it."""
        self._writer = writer
        self._progress = progress
        self._trials = trials
        self._epoch_steps = epoch_steps
        self._skips = skips
        self._skipped = np.array(skipped)  # in a row
        self._pending: tuple[int, Any, int, np.ndarray, Sequence[Sequence[int]]] | None = None
        self._last = time.monotonic()

    @property
    def skipped(self) -> list[int]:
        """How many steps in a row each adapter has skipped."""
        return self._skipped.tolist()

    def record_previous_and_keep(
        self,
        step: int,
        figures: Any,
        tokens: int,
        records: Records,
        rows: Sequence[Sequence[int]],
    ) -> Records:
        """Write what is kept, keep this step, and give the records without those that diverged."""
        active = records.active()
        records = self.flush(records)
        self._pending = (step, figures, tokens, active, rows)
        return records

    def flush(self, records: Records) -> Records:
        """Write what is kept."""
        if self._pending is None:
            return records
        step, figures, tokens, active, rows = self._pending
        self._pending = None
        losses, norms = np.asarray(figures["loss"]), np.asarray(figures["grad_norm"])
        finite = np.asarray(figures["finite"])
        now = time.monotonic()
        rate, self._last = tokens / max(now - self._last, 1e-9), now
        # A step that ran before it was known that the one before had failed says nothing.
        counted = np.flatnonzero(active & records.active()).tolist()
        for number in counted:
            figures = {
                "epoch": round(step / self._epoch_steps[number], 4),
                "loss": float(losses[number]),
                "gradient_norm": float(norms[number]),
                **({"skipped": True} if self._skips and not finite[number] else {}),
            }
            self._writer.write("train", step, figures, self._trials[number].name)
        broken = [number for number in counted if not finite[number]]
        self._skipped = np.where(finite, 0, self._skipped + 1)
        out = [n for n in broken if not self._skips or self._skipped[n] >= MOST_SKIPPED]
        for number in broken:
            table = str(self._trials[number].values.get("data", "--data"))
            fault = Fault(step, float(losses[number]), float(norms[number]), rows[number], table)
            self.failed(number, fault.describe(), is_out=number in out)
        if len(counted) > len(broken):
            self._progress.update(step, float(np.nanmin(losses[counted])), rate)
        return records.diverge(out, step)

    def failed(self, number: int, what: str, *, is_out: bool = True) -> None:
        """Show that an adapter is out, or that a step of it was skipped."""
        outcome = "it stops here, the others go on" if is_out else "skipped"
        self._progress.note(f"{self._trials[number].name}: {what}; {outcome}")

    def evaluated(self, number: int, evaluation: Evaluation) -> None:
        """Write an evaluation."""
        name = self._trials[number].name
        self._writer.write("eval", evaluation.step, evaluation.figures(), name)

    def note(self, records: Records, metric: str, step: int) -> None:
        """Show where the sweep stands: the best adapter of this evaluation."""
        pairs = enumerate(records.histories)
        numbers = [n for n, each in pairs if each.evaluations and each.evaluations[-1].step == step]
        if numbers:
            latest = {n: records.histories[n].evaluations[-1] for n in numbers}
            best = min(latest, key=lambda n: rank(latest[n], metric))
            self._progress.note(
                f"step {step}: {latest[best].describe()} ({self._trials[best].name}, the best of "
                f"{len(numbers)})"
            )
        # The next step's tokens per second shall not count this evaluation.
        self._last = time.monotonic()
