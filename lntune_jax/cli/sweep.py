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
from ..tasks.base import Metric, Task
from ..trainer.callbacks import Callback, read_metrics
from ..trainer.fitting import rank_trials, save_all
from ..trainer.loop import Fitted, run_loop
from ..trainer.recipe import Trial
from ..trainer.run import RunFiles, Summary, finish_run, read_fields
from ..trainer.schedules import metric_of, share_steps, total_steps
from ..trainer.stopping import Stops
from ..trainer.sweep import list_trials, write_value
from .console import duration, say, short_path
from .figures import draw_sweep
from .options import TrainSettings

_SHOWN = 20


def run_sweep(
    settings: TrainSettings,
    tasks: Sequence[Task],
    files: RunFiles,
    console: Console,
    callbacks: Sequence[Callback],
    stops: Stops,
) -> Summary | None:
    """Train every trial, save all adapters, and give the summary of the best one.

    Returns:
        `None` if `--stop-after-steps` ended the call.

    Raises:
        LNTuningError: If no trial has an evaluation that is a number.
    """
    from .train import draw_run, say_stopped

    task, recipe = tasks[0], share_steps(tasks, settings.recipe)
    trials = list_trials(settings.sweep, recipe, settings.data)
    at_once = settings.sweep.adapters_at_once
    count = len(trials)
    together = count if at_once is None else min(at_once, count)
    say(console, f"sweep: {count} adapters, {together} of them in one pass")
    outcome = run_loop(
        tasks,
        trials,
        recipe,
        checkpoints=files.checkpoints,
        callbacks=callbacks,
        at_once=at_once,
        stops=stops,
        title="sweep",
    )
    if not outcome.finished:
        say_stopped(console, outcome.step, total_steps(task, recipe), outcome.terminated)
        return None
    metric, order = metric_of(task, recipe), rank_trials(outcome, task, recipe)
    if not order:
        raise LNTuningError(
            "the loss of every adapter of the sweep is no number; lower the learning rates, or set "
            "--clip-norm 1"
        )
    save_all(tasks, trials, outcome, files)
    rest = [number for number in range(count) if number not in order]
    rows = [_row(trials[number], outcome.fitted[number], metric) for number in order + rest]
    best = trials[order[0]]
    content = {"metric": metric.name, "best": best.name, "seconds": round(outcome.seconds, 2)}
    content["trials"] = rows
    write_text(files.sweep, json.dumps(content, indent=2) + "\n")
    tried = {str(trial.name): trial.values for trial in trials}
    lines = read_metrics(files.metrics)
    draw_sweep(files.sweep_figure, Path(settings.model).name, tried, lines, metric)
    if len(tasks) > 1 and settings.columns.eval_data is None:
        say(
            console,
            "each table was evaluated on rows of its own, so that figures of two tables do not "
            "compare; --eval-data gives them the same rows",
        )
    title, name = f"{best.name}, the best of {count}: {Path(settings.model).name}", str(best.name)
    own, fitted = tasks[best.table], outcome.fitted[order[0]]
    summary = finish_run(own, recipe, outcome, files, number=order[0], name=name)
    draw_run(files, own, metric, fitted, summary, name, title, trial=name)
    return summary


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


def _row(trial: Trial, fitted: Fitted, metric: Metric) -> dict[str, Any]:
    """What `sweep.json` says of a trial."""
    ended = "early" if fitted.history.stopped else "at the end"
    if fitted.diverged is not None:
        ended = f"no number at step {fitted.diverged}"
    row: dict[str, Any] = {"name": trial.name, "values": dict(trial.values), "ended": ended}
    if fitted.history.evaluations:
        best = fitted.history.best(metric)
        row |= {"best_step": best.step, **best.figures}
    return row
