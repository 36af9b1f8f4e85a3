"""`lntune-jax train`: from a model directory and a table of labelled texts to an adapter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from .._errors import ConfigError
from ._base import check_model_directory, load_base, position_limit, tuning_config
from ._batches import Rows, choose_lengths
from ._console import duration, make_console, say, short_path
from ._encode import encode, load_tokenizer, padding_of
from ._finish import Summary, finish
from ._fit import Work, fit
from ._labels import Task, name_labels, number_labels, save_task, split_rows
from ._run_files import RunFiles, check_run, start_run
from ._settings import TrainSettings
from ._tables import read_table


def run(settings: TrainSettings) -> None:
    """Train, or go on with a run that was stopped."""
    console = make_console()
    files = RunFiles.at(settings.output)
    check_model_directory(settings.model)
    texts, classes, evaluation, names = _read_rows(settings)
    check_run(files, settings, resume=settings.resume, overwrite=settings.overwrite)
    if settings.resume and files.is_finished():
        say(console, f"{short_path(files.directory)} is finished; nothing to resume")
        _show(console, Summary(**json.loads(files.summary.read_text())), settings, files)
        return
    say(console, f"reading {settings.model}")
    work = _prepare(settings, texts, classes, evaluation, names, console)
    start_run(files, settings, overwrite=settings.overwrite)
    model = Path(settings.model)
    save_task(
        files.labels,
        Task(
            labels=names,
            model=str(model.resolve()) if model.is_dir() else settings.model,
            pooling=settings.encoding.pooling,
            max_length=settings.encoding.max_length,
            dtype=settings.encoding.dtype,
            seed=settings.recipe.seed,
            text_column=settings.columns.text_column,
            label_column=settings.columns.label_column,
        ),
    )
    fitted = fit(
        work,
        settings.recipe,
        files,
        console,
        stop_after_steps=settings.stop_after_steps,
        checkpoint_every=settings.checkpoint_every,
    )
    if not fitted.finished:
        total = work.steps(settings.recipe)
        say(console, f"stopped after step {fitted.step} of {total}; go on with --resume")
        return
    title = f"LayerNorm tuning of {model.name} on {settings.data.name}"
    summary = finish(work, settings.recipe, fitted, files, name="LN tuning", title=title)
    if fitted.history.stopped:
        say(console, f"no better evaluation {settings.recipe.patience} times in a row: stopped")
    _show(console, summary, settings, files)


def _read_rows(
    settings: TrainSettings,
) -> tuple[list[str], np.ndarray, np.ndarray, tuple[str, ...]]:
    """All texts and classes, the numbers of the rows to evaluate on, and the label names."""
    columns = settings.columns
    if columns.eval_data is not None and columns.eval_fraction is not None:
        raise ConfigError("--eval-data and --eval-fraction contradict each other; give one of them")
    table = read_table(settings.data, columns.text_column, columns.label_column)
    assert table.labels is not None
    names = name_labels(table.labels, table.path)
    classes = number_labels(table.labels, names, table.path)
    texts = list(table.texts)
    if columns.eval_data is None:
        fraction = 0.1 if columns.eval_fraction is None else columns.eval_fraction
        _, evaluation = split_rows(classes, fraction, settings.recipe.seed)
        return texts, classes, evaluation, names
    other = read_table(
        columns.eval_data, columns.text_column, columns.label_column, flag="--eval-data"
    )
    assert other.labels is not None
    more = number_labels(other.labels, names, other.path)
    evaluation = np.arange(len(texts), len(texts) + len(more))
    return [*texts, *other.texts], np.concatenate([classes, more]), evaluation, names


def _prepare(
    settings: TrainSettings,
    texts: list[str],
    classes: np.ndarray,
    evaluation: np.ndarray,
    names: tuple[str, ...],
    console: Console,
) -> Work:
    import lntune_jax as lnt

    encoding = settings.encoding
    tokenizer = load_tokenizer(settings.model)
    model = load_base(
        settings.model,
        labels=len(names),
        pooling=encoding.pooling,
        dtype=encoding.dtype,
        seed=settings.recipe.seed,
    )
    config = tuning_config(settings.model, model.params, model.fresh, settings.selection)
    limit = min(encoding.max_length, position_limit(model.config, tokenizer))
    tokens = encode(tokenizer, texts, limit, model.config.vocab_size)
    everything = Rows(tokens, classes)
    buckets = choose_lengths(everything.lengths, encoding.buckets, limit)
    training = np.setdiff1d(np.arange(len(texts)), evaluation)
    say(console, str(lnt.report_params(model.params, config)))
    say(console, f"trained whole: {', '.join(config.modules_to_save or ()) or 'nothing'}")
    say(console, f"labels: {', '.join(names)}")
    say(
        console,
        f"rows: {len(training):,} to train on, {len(evaluation):,} to evaluate on; padded to "
        f"{', '.join(map(str, buckets))} tokens",
    )
    cut = int((everything.lengths >= limit).sum())
    if cut:
        say(console, f"{cut:,} texts fill or exceed {limit} tokens and may be cut (--max-length)")
    return Work(
        model,
        config,
        everything.take(training),
        everything.take(evaluation),
        buckets,
        padding_of(tokenizer),
    )


def _show(console: Console, summary: Summary, settings: TrainSettings, files: RunFiles) -> None:
    """The summary as a table of 80 columns at most."""
    table = RichTable(title="LayerNorm tuning", show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    share = f"{summary.percent:.4f} %"
    rows = {
        "trained": f"{summary.trainable:,} of {summary.total:,} parameters ({share})",
        "rows": f"{summary.training_rows:,} trained on, {summary.evaluation_rows:,} evaluated on",
        "steps": f"{summary.steps:,} of {summary.planned_steps:,}; best at {summary.best_step:,}",
        "accuracy": f"{summary.best_accuracy:.4f}",
        "macro F1": f"{summary.best_macro_f1:.4f}",
        "evaluation loss": f"{summary.best_loss:.4f}",
        "time": duration(summary.seconds),
        "compiled": (
            f"{summary.compilations} programs for the lengths "
            f"{', '.join(map(str, summary.lengths))}"
        ),
        "adapter": f"{short_path(files.adapter)} ({summary.adapter_bytes:,} bytes)",
        "figure": short_path(files.figure),
        "use it": f"lntune-jax predict --run {short_path(files.directory)} --text ...",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
