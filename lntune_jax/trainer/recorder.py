"""Metrics of each step, fetched while the next step runs.

Reading a figure waits for the device; reading it one step late keeps the device busy meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..cli.console import TrainingProgress
from .history import Evaluation
from .metrics import MetricsWriter
from .nonfinite import MOST_SKIPPED, Fault, check_evaluation, refuse_fault


class Recorder:
    """Writes the metrics of the step before the one that is running."""

    def __init__(
        self,
        writer: MetricsWriter,
        progress: TrainingProgress,
        learning_rates: np.ndarray,
        epoch_steps: int,
        find_checkpoint: Callable[[], Path | None],
        *,
        skips: bool = False,
        skipped: int = 0,
    ):
        """Start timing.

        Args:
            writer: Where figures go.
            progress: Where they are shown.
            learning_rates: Of every step of the run, shape (steps,): asking the schedule for one
                would wait for the device.
            epoch_steps: Steps in an epoch.
            find_checkpoint: Gives the last checkpoint, for messages.
            skips: Whether the step leaves the state as it was where a number is not finite; the
                run then goes on.
            skipped: How many steps in a row were skipped last.
        """
        self.epoch_steps = epoch_steps
        self._writer = writer
        self._progress = progress
        self._learning_rates = learning_rates
        self._find_checkpoint = find_checkpoint
        self._skips = skips
        self.skipped = skipped  # in a row
        self._pending: tuple[int, Any, int, Sequence[int]] | None = None
        self._last = time.monotonic()

    def record_previous_and_keep(
        self, step: int, figures: Any, tokens: int, rows: Sequence[int] = ()
    ) -> None:
        """Write what is kept, which waits for that step only; keep this step for later.

        Args:
            step: Number of the step.
            figures: What the step returned.
            tokens: Tokens in its batch.
            rows: The rows of the data file in its batch.
        """
        self.flush()
        self._pending = (step, figures, tokens, rows)

    def flush(self) -> None:
        """Write what is kept.

        Raises:
            LNTuningError: A number in it is not finite, and such steps are not skipped.
        """
        if self._pending is None:
            return
        step, figures, tokens, rows = self._pending
        self._pending = None
        loss, norm = float(figures["loss"]), float(figures["grad_norm"])
        is_finite = bool(figures["finite"])
        if not is_finite:
            self._note_fault(Fault(step, loss, norm, rows))
        else:
            self.skipped = 0
        now = time.monotonic()
        rate, self._last = tokens / max(now - self._last, 1e-9), now
        self._writer.write(
            "train",
            step,
            {
                "epoch": round(step / self.epoch_steps, 4),
                "loss": loss,
                "gradient_norm": norm,
                "learning_rate": float(self._learning_rates[step - 1]),
                "tokens_per_second": round(rate, 1),
                **({} if is_finite else {"skipped": True}),
            },
        )
        self._progress.update(step, loss, rate)

    def evaluated(self, evaluation: Evaluation) -> None:
        """Write and show an evaluation.

        Raises:
            LNTuningError: Its loss is not finite.
        """
        check_evaluation(evaluation.loss, evaluation.step, self._find_checkpoint())
        self._writer.write("eval", evaluation.step, evaluation.figures())
        self._progress.note(f"step {evaluation.step}: {evaluation.describe()}")
        # The next step's tokens per second shall not count this evaluation.
        self._last = time.monotonic()

    def _note_fault(self, fault: Fault) -> None:
        if not self._skips:
            refuse_fault(fault, self._find_checkpoint(), 0)
        self.skipped += 1
        if self.skipped == MOST_SKIPPED:
            refuse_fault(fault, self._find_checkpoint(), self.skipped)
        self._progress.note(f"{fault.describe()}: skipped")
