"""`lntune-jax predict`: labels and probabilities for new texts, or what another task gives."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data.tables import BadRow, describe_bad_rows, read_table
from ..errors import ConfigError, DataError
from ..messages import warn
from ..tasks.registry import task_of
from ..tasks.scores import probabilities
from .console import TrainingProgress, make_console, make_notes, say, short_path
from .described import Described, find_described
from .options import PredictSettings
from .output import check_output, write_output
from .trained_model import check_classifier, load_trained


class Row(NamedTuple):
    """A row of the output: the probabilities of its labels, or why it has none."""

    text: str | None
    shares: np.ndarray | None
    error: str = ""
    pair: str | None = None


def run(settings: PredictSettings) -> None:
    """Label the texts and print or write the result."""
    console = make_console()
    render = _renderer(settings.output)
    _check_texts(settings)
    check_output(settings.output, [settings.data])
    described = find_described(settings.trained)
    kind = task_of(described.task)
    if hasattr(kind, "predict_described"):
        _run_own(kind, described, settings)
        return
    check_classifier(described)
    texts, bad = settings.text, ()
    places: Sequence[int] = range(len(texts))
    second = settings.text_pair_column or described.task.text_pair_column or None
    pairs = settings.text_pair or None
    if settings.data is not None:
        column = settings.text_column or described.task.text_column
        table = read_table(settings.data, column, pair_column=second, bad_rows="mark")
        texts, pairs, places, bad = table.texts, table.pairs, table.places, table.bad
        _warn_of(bad, settings.data)
    elif (second is None) != (pairs is None):
        what = "one text" if second is None else "two texts: give the second with --text-pair"
        raise ConfigError(f"the classifier {described.directory} tells of {what}")
    trained = load_trained(described)
    with TrainingProgress(make_notes(), "predicting", 1) as progress:
        logits, _ = trained.logits(
            texts, settings.trained.batch_size, settings.trained.buckets, progress.set, pairs
        )
    labels = trained.task.labels
    rows = _join(texts, pairs, places, probabilities(logits), bad)
    if settings.output is not None:
        write_output(settings.output, render(rows, labels))
        marked = f", {len(bad):,} rows marked as bad" if bad else ""
        say(console, f"{len(texts):,} predictions in {short_path(settings.output)}{marked}")
    elif console.is_terminal:
        for row in rows:
            text = " ".join(f"{row.text or ''} {row.pair or ''}".split())
            line = f"no label  {row.error}  {text}"
            if row.shares is not None:
                best = int(row.shares.argmax())
                line = f"{labels[best]}  {row.shares[best]:.3f}  {text}"
            console.print(line, markup=False, no_wrap=True, overflow="ellipsis")
    else:
        say(console, render(rows, labels).rstrip("\n"))


def _run_own(kind: Any, described: Described, settings: PredictSettings) -> None:
    """What a task itself gives for each text, as lines of JSON."""
    if settings.output is not None and settings.output.suffix.lower() != ".jsonl":
        raise ConfigError(
            f"--output {settings.output} must end in .jsonl: {described.directory} is of the task "
            f"{kind.NAME}"
        )
    console, count, bad, lines = make_console(), 0, 0, list[str]()
    for row in kind.predict_described(described, settings):
        count, bad = count + 1, bad + ("error" in row)
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    if settings.output is None:
        say(console, "".join(lines).rstrip("\n"))
        return
    write_output(settings.output, "".join(lines))
    marked = f", {bad:,} rows marked as bad" if bad else ""
    say(console, f"{count - bad:,} predictions in {short_path(settings.output)}{marked}")


def _join(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    places: Sequence[int],
    shares: np.ndarray,
    bad: Sequence[BadRow],
) -> list[Row]:
    """All rows in the file's order, those that could not be read among them."""
    seconds = [None] * len(texts) if pairs is None else pairs
    found = {
        place: Row(text, own, pair=pair)
        for place, text, pair, own in zip(places, texts, seconds, shares, strict=True)
    }
    found |= {row.place: Row(row.text, None, describe_bad_rows([row])) for row in bad}
    return [found[place] for place in sorted(found)]


def _warn_of(bad: Sequence[BadRow], path: Path) -> None:
    if bad:
        count = f"{len(bad):,} bad row{'s' * (len(bad) > 1)}"
        warn(
            f"--data {path} has {count}: {describe_bad_rows(bad)}; marked in the output, the "
            "others are labelled",
            UserWarning,
        )


def _check_texts(settings: PredictSettings) -> None:
    if (settings.data is None) == (not settings.text):
        raise ConfigError("give the texts with --text or with --data, one of them")
    if settings.text_pair and len(settings.text_pair) != len(settings.text):
        raise ConfigError(
            f"--text has {len(settings.text)} texts and --text-pair {len(settings.text_pair)}; "
            "give a second text for each"
        )
    if not all(text.strip() for text in (*settings.text, *settings.text_pair)):
        raise DataError("one of the texts of --text is empty")


def _renderer(output: Path | None):
    suffix = ".jsonl" if output is None else output.suffix.lower()
    if suffix not in _RENDERERS:
        raise ConfigError(f"--output {output} must end in .jsonl or .csv")
    return _RENDERERS[suffix]


def _as_json_lines(rows: Sequence[Row], labels: Sequence[str]) -> str:
    return "".join(json.dumps(_describe(row, labels), ensure_ascii=False) + "\n" for row in rows)


def _describe(row: Row, labels: Sequence[str]) -> dict[str, object]:
    if row.shares is None:
        return {"text": row.text, "error": row.error}
    pair = {} if row.pair is None else {"text_pair": row.pair}
    chances = {
        label: round(float(share), 6) for label, share in zip(labels, row.shares, strict=True)
    }
    label = labels[int(row.shares.argmax())]
    return {"text": row.text, **pair, "label": label, "probabilities": chances}


def _as_csv(rows: Sequence[Row], labels: Sequence[str]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    errors = ["error"] if any(row.error for row in rows) else []
    second = ["text_pair"] if any(row.pair is not None for row in rows) else []
    chances = (f"probability_{label}" for label in labels)
    writer.writerow(["text", *second, "label", *chances, *errors])
    for row in rows:
        own = [""] * (1 + len(labels))
        if row.shares is not None:
            own = [labels[int(row.shares.argmax())], *(f"{share:.6f}" for share in row.shares)]
        pair = [row.pair or ""] if second else []
        writer.writerow([row.text or "", *pair, *own, *([row.error] if errors else [])])
    return buffer.getvalue()


_RENDERERS = {".jsonl": _as_json_lines, ".csv": _as_csv}
