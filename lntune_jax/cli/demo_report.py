"""What `lntune-jax demo --task causal_lm` shows at its end: the table, the samples, the figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from ..tasks.causal_lm import LanguageWork, perplexity_of
from ..trainer.finish import Summary, movements_of
from ..trainer.fit import Fitted
from ..trainer.metrics import read_metrics
from ..trainer.run_files import RunFiles
from .console import duration, say
from .figures import SHOWN, Curves, draw_figure


@dataclass(frozen=True)
class LanguageOutcome:
    """One run.

    Attributes:
        work: What was trained.
        fitted: The outcome of the training loop.
        summary: Its figures.
        files: Where everything lies.
        loss_before: Mean loss on the test rows before training.
        loss_after: The same with the adapter.
        samples: A text before and after, or nothing.
    """

    work: LanguageWork
    fitted: Fitted
    summary: Summary
    files: RunFiles
    loss_before: float
    loss_after: float
    samples: tuple[str, ...]


def moved_share(fitted: Fitted) -> float:
    """The share of the trained entries that are not what they were."""
    moved = [np.asarray(fitted.best[path]) != start for path, start in fitted.start.items()]
    return sum(int(each.sum()) for each in moved) / sum(each.size for each in moved)


def show(console: Console, outcomes: Mapping[str, Sequence[LanguageOutcome]], tokens: int) -> None:
    """Print the runs side by side, means where there are several seeds."""
    runs = list(outcomes.values())
    title = f"{tokens:,} test tokens" + (f", {len(runs[0])} seeds" if len(runs[0]) > 1 else "")
    table = RichTable(title=title, title_justify="left")
    table.add_column("")
    for name in outcomes:
        table.add_column(name, justify="right")
    before = [perplexity_of(float(np.mean([each.loss_before for each in part]))) for part in runs]
    after = [perplexity_of(float(np.mean([each.loss_after for each in part]))) for part in runs]
    moved = [np.mean([moved_share(each.fitted) for each in part]) for part in runs]
    seconds = [float(np.mean([each.summary.seconds for each in part])) for part in runs]
    table.add_row("perplexity before", *(f"{value:.2f}" for value in before))
    table.add_row("perplexity after", *(f"[bold]{value:.2f}[/bold]" for value in after))
    table.add_row("norm entries that moved", *(f"{value:.0%}" for value in moved))
    table.add_row("trainable", *(f"{part[0].summary.trainable:,}" for part in runs))
    table.add_row("training time", *(duration(value) for value in seconds))
    table.add_row("adapter bytes", *(f"{part[0].summary.adapter_bytes:,}" for part in runs))
    say(console, "")
    console.print(table)


def show_samples(console: Console, prompt: str, outcome: LanguageOutcome) -> None:
    """Print how the model goes on from the prompt, before and after."""
    for when, text in zip(("before", "after"), outcome.samples, strict=True):
        say(console, "")
        say(console, f"{when}: {prompt}{text}")


def draw(path: Path, outcomes: Mapping[str, Sequence[LanguageOutcome]]) -> None:
    """Draw the curves of all precisions, and how far the norms of the first one moved."""
    firsts = {name: part[0] for name, part in outcomes.items()}
    curves = [
        Curves(name, read_metrics(each.files.metrics), each.summary.best_step)
        for name, each in firsts.items()
    ]
    first = next(iter(firsts.values()))
    movements = movements_of(first.work, first.fitted)
    draw_figure(path, "SmolLM2-135M on imdb reviews", curves, movements, SHOWN["perplexity"])
