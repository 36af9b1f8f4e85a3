"""`lntune-jax demo`: the whole job on a small real model and real data, on top of `trainer.fit`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

import lntune_jax as lnt

from ..errors import ConfigError
from ..tasks import Encoding, Targets, TaskOptions, causal_lm, text_classification
from ..trainer import Recipe, TensorBoard, fit, read_metrics
from ..trainer.history import History
from ..trainer.loop import Fitted
from ..trainer.run import RunFiles, Summary, load_summary
from ..trainer.schedules import metric_of
from ..trainer.stopping import TerminatedError
from .console import ProgressCallback, duration, make_console, make_notes, say, short_path
from .demo_data import find_language_model, find_model, read_reviews, read_rows
from .figures import Curves, draw_figure
from .movement import movements_of
from .options import DemoSettings

_PROMPT = "This film"


class Method(NamedTuple):
    """One way to train."""

    name: str
    options: TaskOptions
    recipe: Recipe
    param_dtype: str | None = "float32"


@dataclass(frozen=True)
class Job:
    """What the demo of a task does its own way.

    Attributes:
        title: Of the figure.
        methods: What is compared.
        chosen: The one that is saved, restored and shown.
        data: What `prepare` of the task's module takes: rows to train on, and test rows.
        kind: The task's module.
        measure: Test figures of leaves: `measure(task, leaves, frozen, rows)` gives a number, and
            an array that must be the same after a restore.
        describe: Words for that number, before and after.
        prefix: Of the runs' directories.
    """

    title: str
    methods: Sequence[Method]
    chosen: str
    data: Sequence[Any]
    kind: Any
    measure: Callable[..., tuple[float, np.ndarray]]
    describe: Callable[[float, float], str]
    prefix: str = ""


class Outcome(NamedTuple):
    """One method with one seed."""

    task: Any
    fitted: Fitted
    summary: Summary
    files: RunFiles
    before: float
    after: float
    values: np.ndarray


def run(settings: DemoSettings) -> None:
    """Train, compare, save, restore, and say what was found."""
    _check(settings)
    console = make_console()
    job = (_classifier if settings.task == "seq_cls" else _language)(settings, console)
    output = settings.output.expanduser().resolve()
    outcomes: dict[str, list[Outcome]] = {}
    for method in job.methods:
        for seed in settings.seeds:
            outcome = _train(job, method, seed, output, console)
            outcomes.setdefault(method.name, []).append(outcome)
    chosen = outcomes[job.chosen][0]
    say(console, "")
    say(
        console, f"restoring the adapter ({chosen.summary.adapter_bytes:,} bytes) into a fresh base"
    )
    method = next(each for each in job.methods if each.name == job.chosen)
    task, rows = _prepare(job, method, settings.seeds[0])
    params = lnt.restore_adapter(chosen.files.adapter, task.params)
    _, values = job.measure(task, *lnt.partition_params(params, task.config), rows)
    figure = output / f"demo{'-' + job.prefix.strip('-') if job.prefix else ''}.png"
    order = sorted(outcomes, key=lambda name: name != job.chosen)
    curves = [
        Curves(name, read_metrics(part[0].files.metrics), int(part[0].summary.best["step"]))
        for name, part in ((name, outcomes[name]) for name in order)
    ]
    metric = metric_of(chosen.task, Recipe())
    draw_figure(figure, job.title, curves, movements_of(chosen.task, chosen.fitted), metric)
    _show(console, job, outcomes, settings)
    if settings.task == "causal_lm":
        _show_samples(console, chosen)
    same = int((values == chosen.values).reshape(len(values), -1).all(axis=1).sum())
    verdict = "identical" if same == len(values) else "DIFFERENT"
    what = "predictions" if settings.task == "seq_cls" else "test loss"
    count = f" ({same:,} of {len(values):,})" if len(values) > 1 else ""
    say(console, f"restored: {what} {verdict}{count}")
    say(console, f"adapter: {short_path(chosen.files.adapter)}")
    say(console, f"figure: {short_path(figure)}")
    say(console, f"try it: {_program()} {_use(settings, chosen)}")


def _check(settings: DemoSettings) -> None:
    if not settings.seeds:
        raise ConfigError("--seeds needs one number or more")
    if settings.task == "seq_cls" and settings.learning_rate is not None:
        raise ConfigError("--learning-rate goes with --task causal_lm in the demo")
    if settings.task == "causal_lm" and settings.full:
        raise ConfigError("--full goes with --task seq_cls; the language demo trains norms")


def _classifier(settings: DemoSettings, console: Console) -> Job:
    model, quick = find_model(), settings.steps is not None
    rows = read_rows(32, 32, 32) if quick else read_rows(2048, 500, 2000)
    training, validation, test = rows.parts
    say(console, "model: all-MiniLM-L6-v2 (BERT, 6 layers, 384 wide), mean pooling, linear head")
    say(
        console,
        f"data: rotten_tomatoes, {len(training):,} training, {len(validation):,} validation and "
        f"{len(test):,} test rows",
    )
    names, texts = ("negative", "positive"), np.asarray(rows.texts, object)
    data = []
    for numbers, held_out in (
        (np.concatenate([training, validation]), np.arange(len(validation)) + len(training)),
        (test, np.arange(len(test))),
    ):
        part = texts[numbers].tolist(), rows.classes[numbers], held_out, names
        data.append(text_classification.Labelled(*part))
    encoding = Encoding(pooling="mean", max_length=128, buckets=1 if quick else 3)
    options = TaskOptions(str(model), Path("rotten_tomatoes"), encoding=encoding)
    head = Targets(save_modules=("classifier",))
    methods = [
        Method("frozen head", replace(options, targets=replace(head, targets=("none",))), Recipe()),
        Method("LN tuning", replace(options, targets=head), Recipe(learning_rate=5e-3)),
    ]
    if settings.full:
        recipe = Recipe(learning_rate=2e-4, head_learning_rate=2e-4)
        whole = replace(options, targets=Targets(save_modules=("bert", "classifier")))
        methods.append(Method("full", whole, recipe))
    methods = [
        each._replace(recipe=replace(each.recipe, max_steps=settings.steps)) for each in methods
    ]

    def measure(task: Any, leaves: Any, frozen: Any, rows: Any) -> tuple[float, np.ndarray]:
        classifier = text_classification.Classifier(task.model.apply)
        logits = classifier.measure(leaves, frozen, rows, 64, task.buckets, task.padding)
        return float((logits.argmax(1) == rows.classes).mean()), logits

    return Job(
        "MiniLM on rotten_tomatoes",
        methods,
        "LN tuning",
        data,
        text_classification,
        measure,
        lambda before, after: f"test accuracy {after:.4f}",
    )


def _language(settings: DemoSettings, console: Console) -> Job:
    path, quick = find_language_model(), settings.steps is not None
    say(console, "model: SmolLM2-135M-Instruct (Llama, 30 layers, 576 wide), from a GGUF file")
    parts = read_reviews(*((4, 1, 1) if quick else (120, 8, 32)))
    training, validation, test = (
        causal_lm.Documents(Path("imdb"), "text", texts, tuple(range(1, len(texts) + 1)))
        for texts in parts
    )
    counts = ", ".join(
        f"{len(texts)} {name}"
        for name, texts in zip(("training", "validation", "test"), parts, strict=True)
    )
    say(console, f"data: imdb reviews in rows of 128 tokens: {counts}")
    steps = settings.steps or 100
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

    def measure(task: Any, leaves: Any, frozen: Any, rows: Any) -> tuple[float, np.ndarray]:
        losses = causal_lm.MeanLoss(task.model)
        loss = losses.measure(leaves, frozen, rows, 8, task.buckets, task.padding)
        return causal_lm.perplexity_of(loss), np.asarray([loss])

    return Job(
        "SmolLM2-135M on imdb reviews",
        [
            method("float32", "float32", "float32"),
            method("bfloat16, norms float32", "bfloat16", "float32"),
            method("bfloat16", "bfloat16", None),
        ],
        "float32",
        [(training, validation), (test, test)],
        causal_lm,
        measure,
        lambda before, after: f"test perplexity {before:.2f} -> {after:.2f}",
        "causal-lm-",
    )


def _prepare(job: Job, method: Method, seed: int) -> tuple[Any, Any]:
    """A task over a fresh base, and the test rows."""
    task, test = job.kind.prepare(replace(method.options, seed=seed), job.data)
    config = task.config.replace(param_dtype=method.param_dtype)
    return replace(task, config=config), test.evaluation


def _train(job: Job, method: Method, seed: int, output: Path, console: Console) -> Outcome:
    task, rows = _prepare(job, method, seed)
    say(console, "")
    report = lnt.report_params(task.params, task.config, name_map=task.name_map)
    say(console, f"{method.name}, seed {seed}: {report}")
    name = method.name.lower().replace(", norms ", "-norms-").replace(" ", "-")
    files = RunFiles.at(output / f"{job.prefix}{name}-seed-{seed}")
    start = task.start(seed)
    _, frozen = lnt.partition_params(task.params, task.config)
    before, _ = job.measure(task, start, frozen, rows)
    result = fit(
        task,
        replace(method.recipe, seed=seed),
        output=files.directory,
        overwrite=True,
        callbacks=[TensorBoard(files.tensorboard), ProgressCallback(make_notes())],
    )
    if not result.finished:
        raise TerminatedError
    shutil.rmtree(files.checkpoints)
    after, values = job.measure(task, result.adapter.trainable, frozen, rows)
    summary = load_summary(files)
    told = f"{job.describe(before, after)} after {duration(summary.seconds)}"
    say(console, f"{method.name}: {told}, {summary.compilations} programs compiled")
    fitted = Fitted(start, result.adapter.trainable, History(result.history))
    return Outcome(task, fitted, summary, files, before, after, values)


def _show(
    console: Console, job: Job, outcomes: dict[str, list[Outcome]], settings: DemoSettings
) -> None:
    """The methods side by side, means where there are several seeds."""
    runs, seeds = list(outcomes.values()), len(settings.seeds)
    table = Table(title=f"test figures, {seeds} seed{'s' * (seeds > 1)}", title_justify="left")
    table.add_column("")
    for name in outcomes:
        table.add_column(name, justify="right")
    after = [float(np.mean([each.after for each in part])) for part in runs]
    if job.kind is causal_lm:
        before = [float(np.mean([each.before for each in part])) for part in runs]
        moved = [np.mean([_moved_share(each.fitted) for each in part]) for part in runs]
        table.add_row("perplexity before", *(f"{value:.2f}" for value in before))
        table.add_row("perplexity after", *(f"[bold]{value:.2f}[/bold]" for value in after))
        table.add_row("norm entries that moved", *(f"{value:.0%}" for value in moved))
    else:
        table.add_row("test accuracy", *(f"[bold]{value:.4f}[/bold]" for value in after))
        for number in range(seeds if seeds > 1 else 0):
            row = (f"{part[number].after:.4f}" for part in runs)
            table.add_row(f"  run {number + 1}", *row)
    firsts = [part[0].summary for part in runs]
    seconds = [float(np.mean([each.summary.seconds for each in part])) for part in runs]
    table.add_row("trainable", *(f"{each.trainable:,}" for each in firsts))
    table.add_row("of all", *(f"{each.percent:.4f} %" for each in firsts))
    table.add_row("training time", *(duration(value) for value in seconds))
    table.add_row("adapter bytes", *(f"{each.adapter_bytes:,}" for each in firsts))
    say(console, "")
    console.print(table)


def _moved_share(fitted: Fitted) -> float:
    moved = [np.asarray(fitted.best[path]) != np.asarray(was) for path, was in fitted.start.items()]
    return sum(int(each.sum()) for each in moved) / sum(each.size for each in moved)


def _show_samples(console: Console, outcome: Outcome) -> None:
    """How the model goes on from the prompt, before and after."""
    from .. import models

    task = outcome.task
    tokenizer = models.tokenizer_from_gguf(find_language_model())
    prompt = np.asarray([tokenizer(_PROMPT)["input_ids"]], np.int32)
    _, frozen = lnt.partition_params(task.params, task.config)
    tuned = lnt.merge_params(outcome.fitted.best, frozen)
    for when, params in (("before", task.params), ("after", tuned)):
        found = models.generate(task.model, params, prompt, max_new_tokens=48)
        text = tokenizer.decode(found.tokens[0, : found.lengths[0]], skip_special_tokens=True)
        say(console, "")
        say(console, f"{when}: {_PROMPT}{text}")
    say(console, "")


def _program() -> str:
    """What runs this program again, where it is not on the path."""
    own = Path(sys.argv[0])
    if own.name == "__main__.py":
        return "python -m lntune_jax"
    return "lntune-jax" if shutil.which("lntune-jax") or not own.exists() else short_path(own)


def _use(settings: DemoSettings, chosen: Outcome) -> str:
    if settings.task == "seq_cls":
        return f'predict --run {short_path(chosen.files.directory)} --text "a quiet triumph"'
    model, adapter = short_path(find_language_model()), short_path(chosen.files.adapter)
    return f'generate --model {model} --adapter {adapter} --prompt "{_PROMPT}"'
