"""Settings of the commands that use a trained model: `evaluate` and `predict`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from ._help import shown


@dataclass(frozen=True)
class Trained:
    """Which trained model to use."""

    run: Annotated[Path | None, shown("none", "DIR")] = None
    """Output directory of `lntune-jax train`."""
    adapter: Annotated[Path | None, shown("RUN/adapter", "DIR")] = None
    """An adapter directory, if not the one of --run."""
    labels: Annotated[Path | None, shown("labels.json beside the adapter", "FILE")] = None
    """The labels.json that belongs to --adapter."""
    model: Annotated[str | None, shown("the one trained on", "MODEL")] = None
    """The base model, if it has moved since training."""
    batch_size: int = 64
    """Rows a batch."""
    buckets: int = 4
    """Batches are padded to at most so many lengths: one compiled program each."""


@dataclass(frozen=True)
class EvaluateSettings:
    """Measure a trained adapter on a table: accuracy, F1, a row a class, confusion.

    Of a language model: perplexity, with the adapter and without it.
    """

    data: Path
    """Table of texts and labels: .csv, .tsv, .jsonl or .parquet; for a language model as in
    training."""
    text_column: Annotated[str | None, shown("as in training", "NAME")] = None
    """Name of the column with the text."""
    label_column: Annotated[str | None, shown("as in training", "NAME")] = None
    """Name of the column with the label."""
    output: Annotated[Path | None, shown("none", "FILE")] = None
    """Also write the figures to this .json file."""
    trained: Trained = field(default_factory=Trained)


@dataclass(frozen=True)
class PredictSettings:
    """Label new texts with a trained adapter."""

    text: Annotated[tuple[str, ...], shown("none", "TEXT ...")] = ()
    """Texts to label."""
    data: Annotated[Path | None, shown("none", "FILE")] = None
    """Table of texts: .csv, .tsv, .jsonl or .parquet."""
    text_column: Annotated[str | None, shown("as in training", "NAME")] = None
    """Name of the column with the text."""
    output: Annotated[Path | None, shown("the terminal", "FILE")] = None
    """Where predictions go: .jsonl or .csv."""
    trained: Trained = field(default_factory=Trained)
