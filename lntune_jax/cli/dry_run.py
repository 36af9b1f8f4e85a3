"""`lntune-jax train --dry-run`: what would train, on what, and what one row looks like."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from rich.console import Console

from ..data.encode import load_tokenizer
from ..trainer.schedules import total_steps
from .console import say
from .options import TrainSettings

_MOST_TOKENS = 60


def describe_run(task: Any, settings: TrainSettings, console: Console) -> None:
    """Print the norms that train, the rows' lengths, the steps, the memory, and a row."""
    import lntune_jax as lnt

    recipe = settings.recipe
    report = lnt.report_params(task.params, task.config, name_map=task.name_map)
    say(console, report.table(fold=True))
    lengths = task.training.lengths
    quartiles = ", ".join(f"{int(each):,}" for each in np.quantile(lengths, (0.5, 0.9, 1.0)))
    say(console, f"tokens in a row, at the median, 9 in 10 and at most: {quartiles}")
    say(console, f"padded to: {', '.join(map(str, task.buckets))}")
    total, each = total_steps(task, recipe), task.epoch_steps(recipe.batch_size)
    say(console, f"steps: {total:,}, {each:,} an epoch")
    for line in _describe_memory(task, settings):
        say(console, line)
    for line in describe_row(task, settings):
        say(console, line)
    say(console, "nothing was trained or written (--dry-run)")


def _describe_memory(task: Any, settings: TrainSettings) -> list[str]:
    from ..models.estimating import estimate_memory

    estimate = estimate_memory(
        task.model,
        "ln",
        config=task.config,
        batch_size=settings.recipe.batch_size,
        length=max(task.buckets),
        remat=settings.encoding.remat,
    )
    return [
        f"memory of a step, estimated: {estimate.total / 1e6:,.1f} MB, "
        f"{estimate.weights / 1e6:,.1f} of them weights"
    ]


def describe_row(task: Any, settings: TrainSettings) -> list[str]:
    """The first row of the first batch, as the model gets it; `[...]` is what the loss counts."""
    planned = task.planner(settings.recipe.seed, settings.recipe.batch_size)(0)
    batch, _ = task.assemble(planned, settings.recipe.batch_size)
    if "input_ids" not in batch:
        return []
    ids = np.asarray(batch["input_ids"])[0]
    labels = np.asarray(batch["labels"])[0] if "labels" in batch else None
    tokenizer = load_tokenizer(settings.model, settings.revision)
    shown = len(task.training.tokens[int(planned.rows[0])])
    tokens = tokenizer.convert_ids_to_tokens(ids[: min(shown, _MOST_TOKENS)].tolist())
    counted = [
        labels is not None and label != -100 for label in (ids if labels is None else labels)
    ]
    words = [f"[{word}]" if yes else word for word, yes in zip(tokens, counted, strict=False)]
    rest = f" ... and {shown - _MOST_TOKENS:,} more" if shown > _MOST_TOKENS else ""
    place = ", ".join(map(str, task.list_rows(planned)[:1]))
    row = f"a row ({task.unit} {place}): {' '.join(words)}{rest}"
    lines = textwrap.wrap(row, 80, subsequent_indent="  ", break_on_hyphens=False)
    if labels is not None:
        lines.append("the loss counts what is in brackets")
    elif "classes" in batch:
        name = task.record["labels"][int(np.asarray(batch["classes"])[0])]
        lines.append(f"its label: {name}")
    return lines
