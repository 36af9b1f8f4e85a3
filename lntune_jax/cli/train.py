"""`lntune-jax train`: from a model and a file of texts to an adapter.

What differs between the tasks is in `train_classifier` and `train_language`; the loop, the files
of a run and how it goes on are the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from ..errors import ConfigError
from ..tasks import train_classifier, train_language
from ..tasks.base import total_steps
from ..trainer.distributed import check_shared, joined, own_files, wait_for_all
from ..trainer.finish import Summary, finish, load_summary
from ..trainer.fit import fit
from ..trainer.run_files import RunFiles, check_run, start_run
from ..trainer.stopping import say_stopped, stops_of
from ..trainer.trials import check_effect, is_asked, list_trials
from .base import check_model_directory
from .config_file import write_config
from .console import duration, make_console, make_notes, say, short_path
from .options import TrainSettings
from .sweep import run_sweep, show_sweep

_TASKS: dict[str, Any] = {"seq_cls": train_classifier, "causal_lm": train_language}


def run(settings: TrainSettings) -> None:
    """Train, or go on with a run that was stopped; in several processes, as one of them."""
    if settings.processes.distributed:
        if is_asked(settings.sweep):
            raise ConfigError("--distributed does not go with --sweep, --seeds or --more-data")
        if settings.checkpoint_minutes is not None:
            raise ConfigError(
                "--distributed does not go with --checkpoint-minutes, since each process has a "
                "clock of its own; give --checkpoint-every"
            )
    shared = RunFiles.at(settings.output)
    with joined(settings.processes) as mesh, own_files(shared, mesh) as files:
        _run(settings, shared, files, mesh)


def _run(settings: TrainSettings, shared: RunFiles, files: RunFiles, mesh: Any) -> None:
    console, notes, task = make_console(), make_notes(), _TASKS[settings.task]
    console.quiet = notes.quiet = files is not shared
    check_model_directory(settings.model)
    if settings.columns.eval_data is not None and settings.columns.eval_fraction is not None:
        raise ConfigError("--eval-data and --eval-fraction contradict each other; give one of them")
    if settings.sweep.adapters_at_once is not None and not is_asked(settings.sweep):
        raise ConfigError("--adapters-at-once goes with --sweep or --seeds; here is one adapter")
    if is_asked(settings.sweep):
        # What is wrong in it, before anything slow.
        list_trials(settings.sweep, settings.recipe, settings.data)
    data = task.read(settings)
    check_run(shared, settings, resume=settings.resume, overwrite=settings.overwrite)
    if settings.resume and shared.is_finished():
        say(notes, f"{short_path(shared.directory)} is finished; nothing to resume")
        if shared.sweep.exists():
            show_sweep(shared, console)
        _show(console, settings, load_summary(shared), shared, task.results)
        return
    say(notes, f"reading {settings.model}")
    works = task.prepare(settings, data, notes, mesh)
    work = works[0]
    if is_asked(settings.sweep):
        trials = list_trials(settings.sweep, settings.recipe, settings.data)
        check_effect(work, trials, settings.recipe.seed)
    wait_for_all("checked", mesh)
    start_run(files, settings, overwrite=settings.overwrite and files is shared)
    write_config(files.config, settings)
    wait_for_all("started", mesh)
    if mesh is not None:
        check_shared(shared, settings)
    if is_asked(settings.sweep):
        summary = run_sweep(settings, works, files, notes)
        if summary is not None:
            show_sweep(files, console)
            _show(console, settings, summary, files, task.results)
        return
    fitted = fit(
        work,
        settings.recipe,
        files,
        notes,
        stops=stops_of(settings),
    )
    if not fitted.finished:
        say_stopped(notes, fitted.step, total_steps(work, settings.recipe), fitted.terminated)
        return
    title = f"{_name_method(settings)} of {Path(settings.model).name} on {settings.data.name}"
    name = "head" if settings.selection.targets == ("none",) else "LN tuning"
    summary = finish(work, settings.recipe, fitted, files, name=name, title=title)
    if fitted.history.stopped:
        say(notes, f"no better evaluation {settings.recipe.patience} times in a row: stopped")
    _show(console, settings, summary, files, task.results)


def _name_method(settings: TrainSettings) -> str:
    is_head = settings.selection.targets == ("none",)
    return "Tuning of the head alone" if is_head else "LayerNorm tuning"


def _show(
    console: Console, settings: TrainSettings, summary: Summary, files: RunFiles, results: Any
) -> None:
    """The summary as a table of 80 columns at most."""
    table = RichTable(title=_name_method(settings), show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    own = results(summary, files)
    use = own.pop("use it")
    share = f"{summary.percent:.4f} %"
    rows = {
        "trained": f"{summary.trainable:,} of {summary.total:,} parameters ({share})",
        "rows": f"{summary.training_rows:,} trained on, {summary.evaluation_rows:,} evaluated on",
        "steps": f"{summary.steps:,} of {summary.planned_steps:,}; best at {summary.best_step:,}",
        **own,
        "time": duration(summary.seconds),
        "compiled": (
            f"{summary.compilations} programs for the lengths "
            f"{', '.join(map(str, summary.lengths))}"
        ),
        "adapter": f"{short_path(files.adapter)} ({summary.adapter_bytes:,} bytes)",
        "figure": short_path(files.figure),
        "use it": use,
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
