"""Figures of each step, fetched while the next step runs, and told to the callbacks.

Reading a figure waits for the device; reading it one step late keeps the device busy meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..tasks.base import Metric
from .callbacks import Callback
from .history import Evaluation, Records, rank
from .nonfinite import MOST_SKIPPED, Fault, check_evaluation, refuse_fault


class Recorder:
    """Tells of the step before the one that is running."""

    def __init__(
        self,
        callbacks: Sequence[Callback],
        trials: Sequence[str | None],
        tables: Sequence[tuple[str, str]],
        learning_rates: np.ndarray,
        epoch_steps: Sequence[int],
        *,
        find_checkpoint: Callable[[], Path | None],
        list_rows: Callable[[int, int], Sequence[int]],
        skips: bool,
    ):
        """Start timing.

        Args:
            callbacks: Who is told.
            trials: The adapters' names; `None` for one that trains alone, whose fault ends the run.
            tables: What messages call the table of each, and its "row" or "line".
            learning_rates: Of every adapter and step, shape (adapters, steps): asking the schedule
                for one would wait for the device.
            epoch_steps: Steps in an epoch, of each.
            find_checkpoint: Gives the last checkpoint, for messages.
            list_rows: Gives the rows of the data file in an adapter's step, for messages.
            skips: Whether the step leaves the state as it was where a number is not finite; the
                adapter then goes on.
        """
        self._callbacks, self._trials, self._tables = callbacks, trials, tables
        self._learning_rates, self._epoch_steps = learning_rates, epoch_steps
        self._find_checkpoint, self._list_rows, self._skips = find_checkpoint, list_rows, skips
        self._pending: tuple[int, Any, Sequence[int], np.ndarray] | None = None
        self._last = time.monotonic()

    def keep(self, step: int, figures: Any, tokens: Sequence[int], records: Records) -> Records:
        """Tell of what is kept, which waits for that step only; keep this step for later.

        Args:
            step: Number of the step.
            figures: What the step returned.
            tokens: Tokens in the batch of each adapter.
            records: What is known so far.

        Returns:
            The records without the adapters that diverged in the step that is told of.
        """
        active = records.active()
        records = self.flush(records)
        self._pending = (step, figures, tokens, active)
        return records

    def flush(self, records: Records) -> Records:
        """Tell of what is kept.

        Raises:
            LNTuningError: A number of an adapter that trains alone is not finite, and such steps
                are not skipped.
        """
        if self._pending is None:
            return records
        step, figures, tokens, active = self._pending
        self._pending = None
        losses, norms, finite = (
            np.atleast_1d(np.asarray(figures[name])) for name in ("loss", "grad_norm", "finite")
        )
        # A step that ran before it was known that the one before had failed says nothing.
        counted = np.flatnonzero(active & records.active()).tolist()
        pairs = zip(finite, records.skipped, strict=True)
        records = replace(records, skipped=tuple(0 if ok else n + 1 for ok, n in pairs))
        out = []
        for number in counted:
            if not finite[number] and self._fail(step, number, losses, norms, records):
                out.append(number)
        now = time.monotonic()
        elapsed, self._last = max(now - self._last, 1e-9), now
        for number in counted:
            told = {
                "epoch": round(step / self._epoch_steps[number], 4),
                "loss": float(losses[number]),
                "gradient_norm": float(norms[number]),
                "learning_rate": float(self._learning_rates[number, step - 1]),
                "tokens_per_second": round(tokens[number] / elapsed, 1),
                **({"skipped": True} if self._skips and not finite[number] else {}),
            }
            for callback in self._callbacks:
                callback.stepped(step, told, self._trials[number])
        return records.diverge(out, step)

    def evaluated(
        self, found: Sequence[tuple[int, Evaluation]], metric: Metric, metrics: Sequence[Metric]
    ) -> None:
        """Tell of evaluations, each with its adapter's number."""
        for number, evaluation in found:
            for callback in self._callbacks:
                callback.evaluated(evaluation.step, evaluation.figures, self._trials[number])
        if found:
            number, best = min(found, key=lambda pair: rank(pair[1], metric))
            name = self._trials[number]
            of = "" if name is None else f" ({name}, the best of {len(found)})"
            self._note(f"step {best.step}: {best.describe(metrics)}{of}")
        # The next step's tokens per second shall not count this evaluation.
        self._last = time.monotonic()

    def check_evaluation(self, number: int, evaluation: Evaluation) -> bool:
        """Whether an evaluation's loss is finite.

        Raises:
            LNTuningError: It is not, and the adapter trains alone.
        """
        if np.isfinite(evaluation.loss):
            return True
        name = self._trials[number]
        if name is None:
            check_evaluation(evaluation.loss, evaluation.step, self._find_checkpoint())
        what = f"the evaluation loss of step {evaluation.step} is {evaluation.loss}"
        self._note(f"{name}: {what}; it stops here, the others go on")
        return False

    def _fail(
        self, step: int, number: int, losses: np.ndarray, norms: np.ndarray, records: Records
    ) -> bool:
        """Whether a step without finite numbers puts an adapter out; alone, it ends the run."""
        name, skipped = self._trials[number], records.skipped[number]
        rows, table = self._list_rows(number, step), self._tables[number]
        fault = Fault(step, float(losses[number]), float(norms[number]), rows, *table)
        is_out = not self._skips or skipped >= MOST_SKIPPED
        if name is None and is_out:
            refuse_fault(fault, self._find_checkpoint(), skipped if self._skips else 0)
        outcome = "it stops here, the others go on" if is_out else "skipped"
        if name is None:
            self._note(f"{fault.describe()}: {outcome}")
        else:
            self._note(f"{name}: {fault.describe()}; {outcome}")
        return is_out

    def _note(self, text: str) -> None:
        for callback in self._callbacks:
            callback.note(text)
