"""Losses and gradients that are no numbers: what is said of them, and when skipping ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import LNTuningError
from ..messages import Argument, list_names

MOST_SKIPPED = 10  # steps in a row: more, and no batch is to blame
_ADVICE = ("lower the learning rates, or clip the gradient (", Argument("clip_norm", 1), ")")
_MOST_ROWS = 64


class Fault(NamedTuple):
    """A step after which something was no number.

    Attributes:
        step: Its number, from 1.
        loss: The batch's loss.
        norm: The gradient's norm.
        rows: The rows of the data file that were in the batch, from 1.
    """

    step: int
    loss: float
    norm: float
    rows: Sequence[int]
    table: str = "the data"
    unit: str = "row"

    def describe(self) -> str:
        """What was no number, and in which rows.

        Example:
            >>> Fault(7, float("nan"), 1.0, [3, 8]).describe()
            'the loss of step 7 is nan (rows 3, 8 of the data)'
        """
        if not np.isfinite(self.loss):
            what = f"the loss of step {self.step} is {self.loss}"
        elif not np.isfinite(self.norm):
            what = f"the gradient's norm in step {self.step} is {self.norm}"
        else:
            what = f"the update of step {self.step} leaves weights that are NaN or infinite"
        rows = list_names([str(row) for row in self.rows], str, _MOST_ROWS)
        return f"{what} ({self.unit}s {rows} of {self.table})" if rows else what


def refuse_fault(fault: Fault, checkpoint: Path | None, skipped: int) -> None:
    """Ends the run.

    Args:
        fault: What happened.
        checkpoint: The last checkpoint, whose numbers are all finite.
        skipped: How many steps in a row have been skipped.

    Raises:
        LNTuningError: Always.
    """
    if skipped:
        raise LNTuningError(
            f"{skipped} steps in a row were skipped; of the last one, {fault.describe()}: no "
            f"single batch is to blame. {_name_checkpoint(checkpoint)}; ",
            _ADVICE,
        )
    raise LNTuningError(
        f"{fault.describe()}. {_name_checkpoint(checkpoint)}; ",
        _ADVICE,
        ". If it is these rows, mend them, or go on with ",
        Argument("resume", True),
        " and ",
        Argument("on_nan", "skip"),
    )


def check_evaluation(loss: float, step: int, checkpoint: Path | None) -> None:
    """Ends the run where an evaluation's loss is no number.

    Raises:
        LNTuningError: It is NaN or infinite.
    """
    if not np.isfinite(loss):
        raise LNTuningError(
            f"the evaluation loss of step {step} is {loss}. {_name_checkpoint(checkpoint)}; ",
            _ADVICE,
        )


def find_checkpoint(manager: Any) -> Path | None:
    """The directory of the last checkpoint, or None."""
    step = manager.latest_step()
    return None if step is None else Path(manager.directory) / str(step)


def _name_checkpoint(checkpoint: Path | None) -> str:
    if checkpoint is None:
        return "There is no checkpoint yet"
    return f"The last good checkpoint is {checkpoint}"
