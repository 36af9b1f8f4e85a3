"""`lntune-jax evaluate`: how well a trained adapter labels a table, or predicts texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from ..data.labels import number_labels
from ..data.tables import read_table
from ..tasks import causal_lm
from ..tasks.registry import task_of
from ..tasks.scores import Scores, score
from . import evaluate_language
from .console import TrainingProgress, make_console, make_notes, say
from .described import Described, find_described
from .options import EvaluateSettings
from .output import check_output, write_output
from .trained_model import load_trained

# A wider confusion matrix would not fit into 80 columns.
_MOST_CONFUSION_COLUMNS = 8


def run(settings: EvaluateSettings) -> None:
    """Print accuracy, F1, a row a class and the confusion matrix, or another task's figures."""
    described = find_described(settings.trained)
    task, kind = described.task, task_of(described.task)
    if hasattr(kind, "evaluate_described"):
        _run_own(kind, described, settings)
        return
    if isinstance(task, causal_lm.Record):
        evaluate_language.run(settings, described, task)
        return
    console = make_console()
    check_output(settings.output, [settings.data])
    table = read_table(
        settings.data,
        settings.text_column or task.text_column,
        settings.label_column or task.label_column,
        pair_column=settings.text_pair_column or task.text_pair_column or None,
        bad_rows="skip" if settings.skip_bad_rows else "refuse",
        split=settings.split,
    )
    assert table.labels is not None
    classes = number_labels(table.labels, task.labels, table.path, table.places, table.unit)
    trained = load_trained(described)
    with TrainingProgress(make_notes(), "evaluating", 1) as progress:
        logits, programs = trained.logits(
            table.texts,
            settings.trained.batch_size,
            settings.trained.buckets,
            progress.set,
            table.pairs,
        )
    scores = score(logits, classes)
    # First the file: whoever reads what is printed may leave.
    if settings.output is not None:
        write_output(settings.output, _describe(settings, scores, task.labels))
    _show(console, scores, task.labels)
    say(console, f"rows: {len(table.texts):,}; programs compiled: {programs}")


def _run_own(kind: Any, described: Described, settings: EvaluateSettings) -> None:
    """What a task says of itself."""
    console = make_console()
    check_output(settings.output, [settings.data])
    with console.capture() as printed:
        content = kind.evaluate_described(described, settings, console, make_notes())
    # First the file: whoever reads what is printed may leave.
    if settings.output is not None:
        write_output(settings.output, json.dumps(content, indent=2) + "\n")
    console.out(printed.get(), end="", highlight=False)


def _show(console: Console, scores: Scores, labels: Sequence[str]) -> None:
    say(
        console,
        f"accuracy {scores.accuracy:.4f}, macro F1 {scores.macro_f1:.4f}, loss {scores.loss:.4f}",
    )
    classes = RichTable()
    classes.add_column("label", overflow="fold")
    for name in ("rows", "precision", "recall", "F1"):
        classes.add_column(name, justify="right")
    for number, label in enumerate(labels):
        classes.add_row(
            label,
            f"{scores.confusion[number].sum():,}",
            f"{scores.precision[number]:.4f}",
            f"{scores.recall[number]:.4f}",
            f"{scores.f1[number]:.4f}",
        )
    console.print(classes, markup=False)
    if len(labels) > _MOST_CONFUSION_COLUMNS:
        say(console, "confusion matrix: too wide for the terminal; --output FILE writes it")
        return
    say(console, "Confusion: a row is a true label, a column a predicted one")
    confusion = RichTable()
    confusion.add_column("label", overflow="fold")
    for label in labels:
        confusion.add_column(label, justify="right", overflow="fold")
    for label, counts in zip(labels, scores.confusion, strict=True):
        confusion.add_row(label, *(f"{count:,}" for count in counts))
    console.print(confusion, markup=False)


def _describe(settings: EvaluateSettings, scores: Scores, labels: Sequence[str]) -> str:
    content = {
        "data": str(settings.data),
        "rows": int(scores.confusion.sum()),
        "accuracy": scores.accuracy,
        "macro_f1": scores.macro_f1,
        "loss": scores.loss,
        "labels": list(labels),
        "precision": scores.precision.tolist(),
        "recall": scores.recall.tolist(),
        "f1": scores.f1.tolist(),
        "confusion": scores.confusion.tolist(),
    }
    return json.dumps(content, indent=2) + "\n"
