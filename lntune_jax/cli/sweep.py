"""`lntune-jax train --sweep`: many adapters at once, the best of them kept as the run's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from ..errors import ConfigError, LNTuningError
from ..storage.directories import write_text
from ..tasks.base import Work, metric_of, share_steps, total_steps
from ..trainer.finish import Summary, finish
from ..trainer.fit_many import FittedMany, fit_many
from ..trainer.history import rank
from ..trainer.run_files import RunFiles, read_fields
from ..trainer.stopping import say_stopped, stops_of
from ..trainer.trials import Trial, list_trials, start_leaves, write_value
from .console import duration, say, short_path
from .options import TrainSettings
from .sweep_figure import draw_sweep

_SHOWN = 20


def run_sweep(
    settings: TrainSettings, works: Sequence[Work], files: RunFiles, console: Console
) -> Summary | None:
    """Train every trial, save all adapters, and give the summary of the best one.

    Args:
        settings: The flags.
        works: One for each table.
        files: The run.
        console: Where progress is shown.

    Returns:
        `None` if `--stop-after-steps` ended the call.

    Raises:
        LNTuningError: If no trial has an evaluation that is a number.
    """
    work, recipe = works[0], share_steps(works, settings.recipe)
    trials = list_trials(settings.sweep, recipe, settings.data)
    at_once = settings.sweep.adapters_at_once
    count = len(trials)
    together = count if at_once is None else min(at_once, count)
    say(console, f"sweep: {count} adapters, {together} of them in one pass")
    many = fit_many(
        works,
        trials,
        start_leaves(work, trials, recipe.seed),
        recipe,
        files,
        console,
        at_once=at_once,
        stops=stops_of(settings),
    )
    if not many.finished:
        say_stopped(console, many.step, total_steps(work, recipe), many.terminated)
        return None
    metric = metric_of(work, recipe)
    order = _rank(many, metric)
    if not order:
        raise LNTuningError(
            "the loss of every adapter of the sweep is no number; lower the learning rates, or set "
            "--clip-norm 1"
        )
    _save(work, trials, many, files)
    rest = [number for number in range(count) if number not in order]
    rows = [_row(trials[number], many, number, metric) for number in order + rest]
    best = trials[order[0]]
    content = {"metric": metric, "best": best.name, "seconds": round(many.seconds, 2)}
    content["trials"] = rows
    write_text(files.sweep, json.dumps(content, indent=2) + "\n")
    draw_sweep(files.sweep_figure, Path(settings.model).name, trials, rows, metric, files.metrics)
    if len(works) > 1 and settings.columns.eval_data is None:
        say(
            console,
            "each table was evaluated on rows of its own, so that figures of two tables do not "
            "compare; --eval-data gives them the same rows",
        )
    title = f"{best.name}, the best of {count}: {Path(settings.model).name}"
    fitted, own = many.fitted[order[0]], works[best.table]
    return finish(own, recipe, fitted, files, name=best.name, title=title, trial=best.name)


def show_sweep(files: RunFiles, console: Console) -> None:
    """Print the table of a finished sweep, best first."""
    try:
        content = read_fields(files.sweep)
        rows, metric = content["trials"], content["metric"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{files.sweep} is damaged ({error}): give --overwrite") from error
    table = RichTable(title=f"{len(rows)} adapters", title_justify="left")
    names = list(rows[0]["values"])
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for name in (metric, "loss", "best step", "ended"):
        if name != "loss" or metric != "loss":
            table.add_column(name, justify="right")
    for row in rows[:_SHOWN]:
        cells = [write_value(row["values"][name]) for name in names]
        for name in dict.fromkeys((metric, "loss")):
            cells.append(f"{row[name]:.4f}" if name in row else "-")
        table.add_row(*cells, str(row.get("best_step", "-")), row["ended"])
    console.print(table)
    if len(rows) > _SHOWN:
        say(console, f"and {len(rows) - _SHOWN} more in {short_path(files.sweep)}")
    say(console, f"trained in {duration(content['seconds'])}")
    say(console, f"all adapters: {short_path(files.adapters)}")
    say(console, f"figure of the sweep: {short_path(files.sweep_figure)}")


def _rank(many: FittedMany, metric: str) -> list[int]:
    """The trials that were evaluated, best first."""
    known = [n for n, each in enumerate(many.fitted) if each.history.evaluations]
    bests = {number: many.fitted[number].history.best(metric) for number in known}
    return sorted(known, key=lambda n: rank(bests[n], metric))


def _save(work: Work, trials: tuple[Trial, ...], many: FittedMany, files: RunFiles) -> None:
    import lntune_jax as lnt

    files.adapters.mkdir(exist_ok=True)
    for trial, fitted in zip(trials, many.fitted, strict=True):
        if fitted.history.evaluations:
            lnt.save_adapter(
                files.adapters / trial.name,
                fitted.best,
                work.config,
                base=work.model.params,
                name_map=work.model.name_map,
                overwrite=True,
                task=work.task,
            )


def _row(trial: Trial, many: FittedMany, number: int, metric: str) -> dict[str, Any]:
    """What `sweep.json` says of a trial."""
    history, diverged = many.fitted[number].history, many.diverged[number]
    ended = "early" if history.stopped else "at the end"
    if diverged is not None:
        ended = f"no number at step {diverged}"
    row: dict[str, Any] = {"name": trial.name, "values": dict(trial.values), "ended": ended}
    if history.evaluations:
        best = history.best(metric)
        row |= {"best_step": best.step, **best.figures()}
    return row
