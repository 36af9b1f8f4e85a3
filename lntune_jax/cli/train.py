"""`lntune-jax train`: from a model and a file of texts to an adapter.

What differs between the tasks is in `lntune_jax.tasks`; the loop, the files of a run and how it
goes on are the trainer's.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from ..errors import ConfigError
from ..tasks import TASKS, TaskOptions
from ..tasks.base import LOSS, Metric, Task
from ..tasks.loading import check_model_directory, model_location
from ..trainer.callbacks import (
    Callback,
    JsonLines,
    TensorBoard,
    Trackio,
    WeightsAndBiases,
    read_metrics,
)
from ..trainer.loop import Fitted, run_loop
from ..trainer.recipe import Trial
from ..trainer.run import RunFiles, Summary, check_run, finish_run, load_summary, locked, start_run
from ..trainer.schedules import check_best_by, metric_of, total_steps
from ..trainer.stopping import Stops, TerminatedError
from ..trainer.sweep import check_effect, is_asked, list_trials
from .agreement import (
    check_agreement,
    describe_files,
    describe_program,
    describe_rows,
    describe_tasks,
    failing_together,
)
from .config_file import write_config
from .console import ProgressCallback, duration, make_console, make_notes, say, short_path
from .distributed import check_shared, describe_devices, joined, own_files, wait_for_all
from .dry_run import describe_run
from .figures import Curves, draw_figure
from .flags import write_flag
from .movement import movements_of
from .options import TrainSettings
from .sweep import run_sweep, show_sweep

# Flags that change where a run stands, or on which devices, but not what it computes; and the one
# with which a run goes on that has met a loss that is no number.
_WITHOUT_EFFECT = (
    *("config", "output", "resume", "overwrite", "stop_after_steps", "dry_run"),
    *("checkpoint_every", "checkpoint_minutes", "push_to_hub", "report_to"),
    *("distributed", "coordinator", "num_processes", "process_id", "mesh", "heartbeat_seconds"),
    "on_nan",
)


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
    with (
        joined(settings.processes, lambda: _describe_process(settings, shared)) as mesh,
        own_files(shared, mesh) as files,
        contextlib.ExitStack() as stack,
    ):
        _run(settings, shared, files, mesh, stack)


def _run(
    settings: TrainSettings,
    shared: RunFiles,
    files: RunFiles,
    mesh: Any,
    stack: contextlib.ExitStack,
) -> None:
    console, notes, kind = make_console(), make_notes(), TASKS[settings.task]
    console.quiet = notes.quiet = files is not shared
    is_one_of_many = settings.processes.distributed
    alone = stack.enter_context(contextlib.ExitStack())
    alone.enter_context(failing_together())
    check_model_directory(settings.model, settings.revision)
    _check_flags(settings)
    check_best_by(settings.recipe, kind.METRICS)
    recipe = settings.recipe
    if is_asked(settings.sweep):
        # What is wrong in it, before anything slow.
        list_trials(settings.sweep, recipe, settings.data)
    options = task_options(settings)
    data = kind.read(options)
    described = _describe(settings)
    grows = _check_run(shared, described, settings)
    if settings.resume and shared.is_finished() and not grows and not settings.dry_run:
        say(notes, f"{short_path(shared.directory)} is finished; nothing to resume")
        if shared.sweep.exists():
            show_sweep(shared, console)
        _show(console, settings, load_summary(shared), shared)
        _push(settings, shared, console)
        return
    if (
        files is shared and not settings.dry_run
    ):  # Of several processes the first one holds it for all.
        stack.enter_context(locked(shared))
        # Another process may have come here first, and left again.
        grows = _check_run(shared, described, settings)
    say(notes, f"reading {settings.model}")
    unused = describe_devices(mesh)
    if unused is not None:
        say(notes, unused)
    alone.close()
    if is_one_of_many:
        check_agreement(describe_rows(data))
    tasks = kind.prepare(options, data, lambda line: say(notes, line), mesh)
    if is_one_of_many:
        check_agreement(describe_tasks(tasks, recipe.batch_size))
    if settings.dry_run:
        describe_run(tasks[0], settings, console)
        return
    trials = (Trial(None, {}, recipe),)
    if is_asked(settings.sweep):
        trials = list_trials(settings.sweep, recipe, settings.data)
        check_effect(tasks[0], trials, recipe.seed)
    wait_for_all("checked", mesh)
    start_run(files, described, overwrite=settings.overwrite and files is shared, grows=grows)
    write_config(files.config, settings)
    wait_for_all("started", mesh)
    if mesh is not None:
        check_shared(shared, described)
    stops = Stops(settings.stop_after_steps, settings.checkpoint_every, settings.checkpoint_minutes)
    callbacks = [JsonLines(files.metrics), *_boards(settings, files), ProgressCallback(notes)]
    if is_asked(settings.sweep):
        summary = run_sweep(settings, tasks, files, notes, callbacks, stops)
        if summary is not None:
            show_sweep(files, console)
            _show(console, settings, summary, files)
            _push(settings, files, console)
        return
    outcome = run_loop(
        tasks, trials, recipe, checkpoints=files.checkpoints, callbacks=callbacks, stops=stops
    )
    if not outcome.finished:
        say_stopped(notes, outcome.step, total_steps(tasks[0], recipe), outcome.terminated)
        return
    title = f"{_name_method(settings)} of {Path(settings.model).name} on {settings.data.name}"
    name = "head" if settings.targets.targets == ("none",) else "LN tuning"
    summary = finish_run(tasks[0], recipe, outcome, files)
    draw_run(files, tasks[0], metric_of(tasks[0], recipe), outcome.fitted[0], summary, name, title)
    if outcome.fitted[0].history.stopped:
        say(notes, f"no better evaluation {recipe.patience} times in a row: stopped")
    _show(console, settings, summary, files)
    _push(settings, files, console)


def _check_run(files: RunFiles, described: dict[str, Any], settings: TrainSettings) -> bool:
    flags = {"resume": settings.resume, "overwrite": settings.overwrite}
    return check_run(files, described, **flags)


def task_options(settings: TrainSettings) -> TaskOptions:
    """What of the flags a task is made of."""
    return TaskOptions(
        model=settings.model,
        data=settings.data,
        more_data=settings.sweep.more_data,
        columns=settings.columns,
        language=settings.language,
        targets=settings.targets,
        encoding=settings.encoding,
        batch_size=settings.recipe.batch_size,
        seed=settings.recipe.seed,
        revision=settings.revision,
    )


def say_stopped(console: Console, step: int, total: int, terminated: bool) -> None:
    """Tell that the run is not at its end.

    Raises:
        TerminatedError: If a signal has ended it.
    """
    say(console, f"stopped after step {step} of {total}; go on with --resume")
    if terminated:
        raise TerminatedError


def draw_run(
    files: RunFiles,
    task: Task,
    metric: Metric,
    fitted: Fitted,
    summary: Summary,
    name: str,
    title: str,
    trial: str | None = None,
) -> None:
    """Draw the curves of a run, and how far its norms moved."""
    curves = Curves(name, read_metrics(files.metrics, trial), int(summary.best["step"]))
    moved = movements_of(task, fitted.start, fitted.best)
    draw_figure(files.figure, title, [curves], moved, _drawn(task, metric))


def _drawn(task: Task, metric: Metric) -> Metric:
    """The metric of a figure's second panel: not the loss, which has one of its own."""
    return task.metrics[0] if metric == LOSS and task.metrics else metric


def _boards(settings: TrainSettings, files: RunFiles) -> list[Callback]:
    """The dashboards that --report-to names."""
    name = files.directory.name
    makers: dict[str, Callable[[], Callback]] = {
        "tensorboard": lambda: TensorBoard(files.tensorboard),
        "wandb": lambda: WeightsAndBiases(name=name),
        "trackio": lambda: Trackio(name=name),
    }
    chosen = dict.fromkeys(settings.report_to)
    if "none" in chosen and len(chosen) > 1:
        raise ConfigError("--report-to none stands alone")
    return [makers[each]() for each in chosen if each != "none"]


def _push(settings: TrainSettings, files: RunFiles, console: Console) -> None:
    """Upload the adapter of a finished run, where that is asked for."""
    if settings.push_to_hub is None or console.quiet:
        return
    from ..hub import push_adapter

    commit = push_adapter(files.adapter, settings.push_to_hub)
    say(console, f"pushed to {settings.push_to_hub}: commit {commit}")


def _check_flags(settings: TrainSettings) -> None:
    if settings.push_to_hub is not None:
        from ..hub import check_id

        check_id(settings.push_to_hub)
    if settings.columns.no_eval and settings.task not in ("seq_cls", "causal_lm"):
        raise ConfigError(f"--no-eval does not go with --task {settings.task} yet: leave it out")
    if settings.columns.no_eval and (is_asked(settings.sweep) or settings.recipe.patience):
        raise ConfigError(
            "--no-eval leaves a sweep and --patience nothing to compare: leave it out"
        )
    if settings.columns.eval_data is not None and settings.columns.eval_fraction is not None:
        raise ConfigError("--eval-data and --eval-fraction contradict each other; give one of them")
    if settings.sweep.adapters_at_once is not None and not is_asked(settings.sweep):
        raise ConfigError("--adapters-at-once goes with --sweep or --seeds; here is one adapter")
    if settings.task == "token_cls" and settings.encoding.pooling != "default":
        raise ConfigError("--pooling goes with --task seq_cls; a label for each word is not pooled")
    if settings.task != "seq_cls" and settings.columns.text_pair_column is not None:
        raise ConfigError("--text-pair-column goes with --task seq_cls")
    if settings.encoding.new_head and settings.task not in ("seq_cls", "token_cls"):
        raise ConfigError(f"--new-head is for classifiers; --task {settings.task} has no head")
    if settings.task != "causal_lm":
        if settings.language.no_packing or settings.language.form != "auto":
            raise ConfigError("--no-packing and --form go with --task causal_lm")
        return
    if settings.encoding.pooling != "default":
        raise ConfigError(
            "--pooling does not go with --task causal_lm: a language model does not pool"
        )
    if settings.columns.label_column != "label":
        raise ConfigError("--label-column goes with --task seq_cls; a language model has no labels")


def _describe(settings: TrainSettings) -> dict[str, Any]:
    """Flags and values as plain JSON, with a checksum for each data file."""
    described: dict[str, Any] = {}
    _flatten(asdict(settings), described)
    # A directory may be named from elsewhere when the run goes on; a hub id stays as it is.
    described["model"] = model_location(described["model"])
    for name in ("data", "eval_data"):
        path = described.get(name)
        if path is not None and Path(path).is_file():
            described[f"{name}_sha256"] = _checksum(path)
    if described.get("more_data"):
        described["more_data_sha256"] = [_checksum(path) for path in described["more_data"]]
    return described


def _describe_process(settings: TrainSettings, files: RunFiles) -> dict[str, Any]:
    """What must be the same in every process of a run, by the name that messages give it."""
    described = _describe(settings)
    found = {
        (
            f"content of {write_flag(name.removesuffix(_SUM))}"
            if name.endswith(_SUM)
            else write_flag(name)
        ): value
        for name, value in described.items()
    }
    for owner, names in (
        (settings, ("resume", "overwrite", "stop_after_steps", "checkpoint_every")),
        (settings.recipe, ("on_nan",)),
        (settings.processes, ("mesh",)),
    ):
        found |= {write_flag(name): getattr(owner, name) or None for name in names}
    state = "finished" if files.is_finished() else "unfinished"
    return {
        **found,
        "--output": str(files.directory),
        "run in --output": state if files.is_started() else "unset",
        **describe_files(settings.model),
        **describe_program(),
    }


_SUM = "_sha256"


def _checksum(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _flatten(values: dict[str, Any], into: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _flatten(value, into)
        elif name not in _WITHOUT_EFFECT:
            into[name] = (
                [_plain(each) for each in value] if isinstance(value, tuple) else _plain(value)
            )


def _plain(value: Any) -> Any:
    return str(value.expanduser().resolve()) if isinstance(value, Path) else value


def _name_method(settings: TrainSettings) -> str:
    is_head = settings.targets.targets == ("none",)
    return "Tuning of the head alone" if is_head else "LayerNorm tuning"


def _show(console: Console, settings: TrainSettings, summary: Summary, files: RunFiles) -> None:
    """The summary as a table of 80 columns at most."""
    from ..models.merging import find_adapter

    kind, record = TASKS[settings.task], find_adapter(files.adapter).task or {}
    table = RichTable(title=_name_method(settings), show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    share, best, first = f"{summary.percent:.4f} %", summary.best, summary.first
    figures = {
        metric.label: f"{best[metric.name]:.4f}"
        + (f" (before: {first[metric.name]:.4f})" if first["step"] == 0 else "")
        for metric in (*kind.METRICS, LOSS)
        if metric.name in best
    }
    rows = {
        "trained": f"{summary.trainable:,} of {summary.total:,} parameters ({share})",
        "rows": f"{summary.training_rows:,} trained on, {summary.evaluation_rows:,} evaluated on",
        "steps": f"{summary.steps:,} of {summary.planned_steps:,}; best at {best['step']:,}",
        **figures,
        "time": duration(summary.seconds),
        "adapter": f"{short_path(files.adapter)} ({summary.adapter_bytes:,} bytes)",
        "figure": short_path(files.figure),
        "use it": kind.show_use(record, short_path(files.directory)),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
