"""Which columns and rows of a table are read; the strings below the fields are the help text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DataForm = Literal["auto", "text", "completion", "messages"]


@dataclass(frozen=True)
class Columns:
    """The columns of the table, and the rows to evaluate on.

    Example:
        >>> Columns(label_column="stars").text_column
        'text'
    """

    text_column: str = "text"
    """Name of the column with the text."""
    text_pair_column: str | None = None
    """Name of the column with a second text, where seq_cls tells of two texts."""
    label_column: str = "label"
    """Name of the column with the label (words or numbers)."""
    eval_data: Path | None = None
    """A second table to evaluate on while training."""
    eval_fraction: float | None = None
    """Share of --data kept out of training and evaluated on, the same share of every label."""
    train_split: str | None = None
    """The split to train on, where --data is a dataset: owner/name, or saved by save_to_disk."""
    eval_split: str | None = None
    """The split of --data to evaluate on while training, where it is a dataset."""
    max_train_rows: int | None = None
    """Train on so many rows at most, drawn by --seed once the others are held out."""
    no_eval: bool = False
    """Hold no rows out and evaluate nothing: the last step's adapter is kept."""
    skip_bad_rows: bool = False
    """Leave rows out that cannot be read, or have no text or label, and say how many."""
