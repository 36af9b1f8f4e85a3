"""Settings of the commands that use a trained model: `evaluate` and `predict`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from .help import shown
from .options import Pooling


@dataclass(frozen=True)
class Trained:
    """Which trained model to use."""

    run: Annotated[Path | None, shown("none", "DIR")] = None
    """Output directory of `lntune-jax train`, whose adapter is used."""
    adapter: Annotated[Path | None, shown("none", "DIR")] = None
    """An adapter directory; nothing beside it is read."""
    model: Annotated[str | None, shown("the one trained on", "MODEL")] = None
    """The base model, if it has moved since training."""
    labels: Annotated[tuple[str, ...], shown("the adapter's", "NAME ...")] = ()
    """Names of a classifier's classes in their order, where the adapter does not say them."""
    pooling: Annotated[Pooling | None, shown("the adapter's", "POOLING")] = None
    """How a classifier pools, where the adapter does not say: as `train --pooling`."""
    max_length: Annotated[int | None, shown("the adapter's", "INT")] = None
    """Tokens in a row at most, where the adapter does not say."""
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
    split: str = "test"
    """The split, where --data is a dataset: owner/name, or saved by save_to_disk."""
    skip_bad_rows: bool = False
    """Leave rows out that cannot be read, or have no text or label, and say how many."""
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
