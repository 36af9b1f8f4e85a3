"""Metrics of a run: one JSON line a step in a file, and the same figures for TensorBoard."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from ..storage.directories import write_text


class MetricsWriter:
    """Appends figures to `metrics.jsonl` and `tensorboard/`; a context that closes both."""

    def __init__(self, lines: Path, tensorboard: Path, after_step: int):
        """Open both files.

        Args:
            lines: The JSON lines file; lines of later steps than `after_step` are dropped.
            tensorboard: Directory of TensorBoard event files.
            after_step: The step at which the run goes on; 0 for a new run.
        """
        from tensorboardX import SummaryWriter

        kept = [line for line in read_metrics(lines) if line["step"] <= after_step]
        write_text(lines, "".join(_as_line(line) for line in kept))
        self._lines = lines.open("a", encoding="utf-8")
        self._tensorboard = SummaryWriter(str(tensorboard), purge_step=after_step + 1)

    def write(
        self, split: str, step: int, figures: dict[str, float], trial: str | None = None
    ) -> None:
        """Record figures of one step.

        Args:
            split: `train` or `eval`.
            step: Number of the step, from 1.
            figures: Names and values.
            trial: Whose they are, where several adapters train at once.
        """
        named = {} if trial is None else {"trial": trial}
        self._lines.write(_as_line({"split": split, "step": step, **named, **figures}))
        # A killed run shall lose no line that its checkpoint counts on.
        self._lines.flush()
        for name, value in figures.items():
            tag = f"{split}/{name}" if trial is None else f"{split}/{name}/{trial}"
            self._tensorboard.add_scalar(tag, value, step)

    def sync(self) -> None:
        """Have every line on the disk, before a checkpoint that counts on them."""
        os.fsync(self._lines.fileno())

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._tensorboard.close()


def read_metrics(lines: Path, trial: str | None = None) -> list[dict[str, Any]]:
    """The lines of a metrics file, or those of one trial; empty if there is none.

    A last line that a killed run left half written is skipped.
    """
    if not lines.exists():
        return []
    figures = []
    for line in lines.read_text(encoding="utf-8").splitlines():
        try:
            figures.append(json.loads(line))
        except ValueError:
            break
    return [each for each in figures if trial is None or each.get("trial") == trial]


def _as_line(figures: dict[str, Any]) -> str:
    # JSON has no infinity; a gradient norm that overflowed becomes null.
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in figures.items()
    }
    return json.dumps(plain, allow_nan=False) + "\n"
