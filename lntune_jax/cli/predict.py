"""`lntune-jax predict`: labels and probabilities for new texts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..data.tables import read_table
from ..errors import ConfigError, DataError
from ..tasks.scores import probabilities
from .console import TrainingProgress, make_console, make_notes, say, short_path
from .options import PredictSettings
from .trained_model import find_classifier, load_trained


def run(settings: PredictSettings) -> None:
    """Label the texts and print or write the result."""
    console = make_console()
    render = _renderer(settings.output)
    _check_texts(settings)
    described = find_classifier(settings.trained)
    texts = settings.text
    if settings.data is not None:
        column = settings.text_column or described.task.text_column
        texts = read_table(settings.data, column).texts
    trained = load_trained(described)
    with TrainingProgress(make_notes(), "predicting", 1) as progress:
        logits, _ = trained.logits(
            texts, settings.trained.batch_size, settings.trained.buckets, progress.set
        )
    shares = probabilities(logits)
    labels = trained.task.labels
    if settings.output is not None:
        _write(settings.output, render(texts, labels, shares))
        say(console, f"{len(texts):,} predictions in {short_path(settings.output)}")
    elif console.is_terminal:
        for text, row in zip(texts, shares, strict=True):
            best = int(row.argmax())
            line = f"{labels[best]}  {row[best]:.3f}  {' '.join(text.split())}"
            console.print(line, markup=False, no_wrap=True, overflow="ellipsis")
    else:
        say(console, render(texts, labels, shares).rstrip("\n"))


def _check_texts(settings: PredictSettings) -> None:
    if (settings.data is None) == (not settings.text):
        raise ConfigError("give the texts with --text or with --data, one of them")
    if not all(text.strip() for text in settings.text):
        raise DataError("one of the texts of --text is empty")


def _renderer(output: Path | None):
    suffix = ".jsonl" if output is None else output.suffix.lower()
    if suffix not in _RENDERERS:
        raise ConfigError(f"--output {output} must end in .jsonl or .csv")
    return _RENDERERS[suffix]


def _as_json_lines(texts: Sequence[str], labels: Sequence[str], shares: np.ndarray) -> str:
    lines = []
    for text, row in zip(texts, shares, strict=True):
        chances = {label: round(float(share), 6) for label, share in zip(labels, row, strict=True)}
        line = {"text": text, "label": labels[int(row.argmax())], "probabilities": chances}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return "".join(lines)


def _as_csv(texts: Sequence[str], labels: Sequence[str], shares: np.ndarray) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["text", "label", *(f"probability_{label}" for label in labels)])
    for text, row in zip(texts, shares, strict=True):
        writer.writerow([text, labels[int(row.argmax())], *(f"{share:.6f}" for share in row)])
    return buffer.getvalue()


_RENDERERS = {".jsonl": _as_json_lines, ".csv": _as_csv}


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise DataError(f"--output {path} cannot be written: {error.strerror or error}") from error
