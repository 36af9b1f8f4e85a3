"""Metrics of each step, fetched while the next step runs.

Reading a figure waits for the device; reading it one step late keeps the device busy meanwhile.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from .._errors import LNTuningError
from ._history import Evaluation
from ._metrics import MetricsWriter
from ._progress import TrainingProgress


class Recorder:
    """Writes the metrics of the step before the one that is running."""

    def __init__(
        self,
        writer: MetricsWriter,
        progress: TrainingProgress,
        learning_rates: np.ndarray,
        epoch_steps: int,
    ):
        """Start timing.

        Args:
            writer: Where figures go.
            progress: Where they are shown.
            learning_rates: Of every step of the run, shape (steps,): asking the schedule for one
                would wait for the device.
            epoch_steps: Steps in an epoch.
        """
        self.epoch_steps = epoch_steps
        self._writer = writer
        self._progress = progress
        self._learning_rates = learning_rates
        self._pending: tuple[int, Any, int] | None = None
        self._last = time.monotonic()

    def record_previous_and_keep(self, step: int, figures: Any, tokens: int) -> None:
        """Write what is kept, which waits for that step only; keep this step for later."""
        self.flush()
        self._pending = (step, figures, tokens)

    def flush(self) -> None:
        """Write what is kept."""
        if self._pending is None:
            return
        step, figures, tokens = self._pending
        self._pending = None
        loss = float(figures["loss"])
        _refuse_nonsense("loss", step, loss)
        now = time.monotonic()
        rate, self._last = tokens / max(now - self._last, 1e-9), now
        self._writer.write(
            "train",
            step,
            {
                "epoch": round(step / self.epoch_steps, 4),
                "loss": loss,
                "gradient_norm": float(figures["grad_norm"]),
                "learning_rate": float(self._learning_rates[step - 1]),
                "tokens_per_second": round(rate, 1),
            },
        )
        self._progress.update(step, loss, rate)

    def evaluated(self, evaluation: Evaluation) -> None:
        """Write and show an evaluation."""
        _refuse_nonsense("evaluation loss", evaluation.step, evaluation.loss)
        self._writer.write("eval", evaluation.step, evaluation.figures())
        self._progress.note(f"step {evaluation.step}: {evaluation.describe()}")
        # The next step's tokens per second shall not count this evaluation.
        self._last = time.monotonic()


def _refuse_nonsense(name: str, step: int, loss: float) -> None:
    if not np.isfinite(loss):
        raise LNTuningError(
            f"the {name} of step {step} is {loss}; lower --learning-rate or "
            "--head-learning-rate, or set --clip-norm 1"
        )
