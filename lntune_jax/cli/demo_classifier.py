"""`lntune-jax demo` of a classifier: a small real model, real sentences, the numbers side by side.

Each method trains on the same rows with the same loop; what is kept is picked by validation
rows, and the test rows are looked at once, at the end.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from ..data.batches import Rows, choose_lengths
from ..data.encode import encode, load_tokenizer, padding_of
from ..tasks.classification import ClassificationWork
from ..tasks.programs import Classifier
from ..tasks.scores import score
from ..trainer.finish import Summary, finish, movements_of
from ..trainer.fit import Fitted, fit
from ..trainer.metrics import read_metrics
from ..trainer.run_files import RunFiles
from ..trainer.stopping import TerminatedError
from .base import load_base, position_limit, tuning_config
from .console import byte_count, duration, make_console, make_notes, say, short_path
from .demo_data import DemoRows, find_model, read_rows
from .described import ClassifierTask, describe
from .figure import Curves, draw_figure
from .options import DemoSettings, Recipe, Selection

_MAX_LENGTH = 128
_BUCKETS = 3


@dataclass(frozen=True)
class Method:
    """One way to train, with the reference recipe."""

    name: str
    selection: Selection
    recipe: Recipe


_HEAD = Method(
    "frozen head",
    Selection(targets=("none",), save_modules=("classifier",)),
    Recipe(head_learning_rate=1e-3),
)
_NORMS = Method(
    "LN tuning",
    Selection(save_modules=("classifier",)),
    Recipe(learning_rate=5e-3, head_learning_rate=1e-3),
)
_FULL = Method(
    "full",
    Selection(save_modules=("bert", "classifier")),
    Recipe(learning_rate=2e-4, head_learning_rate=2e-4),
)


@dataclass(frozen=True)
class Outcome:
    """One method with one seed."""

    work: ClassificationWork
    fitted: Fitted
    summary: Summary
    files: RunFiles
    logits: np.ndarray
    accuracy: float


@dataclass(frozen=True)
class Shared:
    """What all methods share."""

    model: str
    tokens: tuple[np.ndarray, ...]
    rows: DemoRows
    buckets: tuple[int, ...]
    padding: int
    test: Rows = field(repr=False)


def run(settings: DemoSettings) -> None:
    """Train, compare, save, restore, and say what was found."""
    console = make_console()
    shared = _read(settings, console)
    methods = [_HEAD, _NORMS, *([_FULL] if settings.full else [])]
    outcomes: dict[str, list[Outcome]] = {}
    for method in methods:
        for seed in settings.seeds:
            outcome = _train(method, seed, settings, shared, console)
            outcomes.setdefault(method.name, []).append(outcome)
    chosen = outcomes[_NORMS.name][0]
    same = _restore_and_compare(chosen, settings.seeds[0], shared, console)
    figure = settings.output.expanduser().resolve() / "demo.png"
    draw_figure(
        figure,
        "MiniLM on rotten_tomatoes",
        [_curves(name, outcomes[name][0]) for name in _in_figure_order(outcomes)],
        movements_of(chosen.work, chosen.fitted),
    )
    _show(console, outcomes, len(shared.test.tokens))
    total = len(shared.test.tokens)
    verdict = "identical" if same == total else "DIFFERENT"
    say(console, f"restored: predictions {verdict} ({same:,} of {total:,})")
    say(console, f"adapter: {short_path(chosen.files.adapter)}")
    say(console, f"figure: {short_path(figure)}")
    directory = short_path(chosen.files.directory)
    say(console, f'try it: lntune-jax predict --run {directory} --text "a quiet triumph"')


def _read(settings: DemoSettings, console: Console) -> Shared:
    model = find_model()
    quick = settings.steps is not None
    rows = read_rows(32, 32, 32) if quick else read_rows(2048, 500, 2000)
    tokenizer = load_tokenizer(str(model))
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(model))
    limit = min(_MAX_LENGTH, position_limit(config, tokenizer))
    tokens = encode(tokenizer, rows.texts, limit, config.vocab_size)
    everything = Rows(tokens, rows.classes)
    buckets = choose_lengths(everything.lengths, 1 if quick else _BUCKETS, limit)
    counts = [f"{len(part):,}" for part in rows.parts]
    say(console, "model: all-MiniLM-L6-v2 (BERT, 6 layers, 384 wide), mean pooling, linear head")
    say(
        console,
        f"data: rotten_tomatoes, {counts[0]} training, {counts[1]} validation and {counts[2]} "
        f"test rows, padded to {', '.join(map(str, buckets))} tokens",
    )
    test = everything.take(rows.parts[2])
    return Shared(str(model), tokens, rows, buckets, padding_of(tokenizer), test)


def _train(
    method: Method, seed: int, settings: DemoSettings, shared: Shared, console: Console
) -> Outcome:
    import lntune_jax as lnt

    base = _load(shared, seed)
    config = tuning_config(shared.model, base.params, base.fresh, method.selection)
    say(console, "")
    say(console, f"{method.name}, seed {seed}: {lnt.report_params(base.params, config)}")
    everything = Rows(shared.tokens, shared.rows.classes)
    training, validation, _ = (everything.take(part) for part in shared.rows.parts)
    task = describe(ClassifierTask(("negative", "positive"), "mean", _MAX_LENGTH, seed=seed))
    buckets, padding = shared.buckets, shared.padding
    work = ClassificationWork(base, config, training, validation, buckets, padding, task)
    recipe = replace(method.recipe, seed=seed, max_steps=settings.steps)
    name = f"{method.name.lower().replace(' ', '-')}-seed-{seed}"
    files = RunFiles.at(settings.output / name)
    files.clear()
    files.directory.mkdir(parents=True, exist_ok=True)
    fitted = fit(work, recipe, files, make_notes(), title=method.name)
    if fitted.terminated:
        raise TerminatedError
    title = f"{method.name}: MiniLM on rotten_tomatoes"
    summary = finish(work, recipe, fitted, files, name=method.name, title=title)
    shutil.rmtree(files.checkpoints)
    _, frozen = lnt.partition_params(base.params, config)
    logits = _test_logits(base, fitted.best, frozen, shared)
    accuracy = score(logits, shared.test.classes).accuracy
    say(
        console,
        f"{method.name}: test accuracy {accuracy:.4f} after {duration(summary.seconds)}, "
        f"{summary.compilations} programs compiled",
    )
    return Outcome(work, fitted, summary, files, logits, accuracy)


def _restore_and_compare(outcome: Outcome, seed: int, shared: Shared, console: Console) -> int:
    """How many test rows get the same label, and the very same logits, after a restore."""
    import lntune_jax as lnt

    say(console, "")
    size = byte_count(outcome.files.adapter)
    say(console, f"restoring the adapter ({size:,} bytes) into a fresh base")
    base = _load(shared, seed)
    params = lnt.restore_adapter(outcome.files.adapter, base.params)
    trainable, frozen = lnt.partition_params(params, outcome.work.config)
    logits = _test_logits(base, trainable, frozen, shared)
    return int((logits == outcome.logits).all(axis=1).sum())


def _load(shared: Shared, seed: int) -> Any:
    return load_base(shared.model, labels=2, pooling="mean", dtype="float32", seed=seed)


def _test_logits(base: Any, trainable: Any, frozen: Any, shared: Shared) -> np.ndarray:
    return Classifier(base.apply).logits(
        trainable, frozen, shared.test, 64, shared.buckets, shared.padding
    )


def _in_figure_order(outcomes: Mapping[str, Any]) -> list[str]:
    """LN tuning first: it is the one whose norms are shown."""
    return sorted(outcomes, key=lambda name: name != _NORMS.name)


def _curves(name: str, outcome: Outcome) -> Curves:
    return Curves(name, read_metrics(outcome.files.metrics), outcome.summary.best_step)


def _show(console: Console, outcomes: Mapping[str, list[Outcome]], test_rows: int) -> None:
    seeds = len(next(iter(outcomes.values())))
    title = f"{test_rows:,} test rows" + (f", {seeds} seeds" if seeds > 1 else "")
    table = RichTable(title=title, title_justify="left")
    table.add_column("")
    for name in outcomes:
        table.add_column(name, justify="right")
    summaries = [runs[0].summary for runs in outcomes.values()]
    mean = [np.mean([each.accuracy for each in runs]) for runs in outcomes.values()]
    table.add_row("test accuracy", *(f"[bold]{value:.4f}[/bold]" for value in mean))
    if seeds > 1:
        for position in range(seeds):
            row = (f"{runs[position].accuracy:.4f}" for runs in outcomes.values())
            table.add_row(f"  run {position + 1}", *row)
    table.add_row("trainable", *(f"{each.trainable:,}" for each in summaries))
    table.add_row("of all", *(f"{each.percent:.4f} %" for each in summaries))
    seconds = [np.mean([each.summary.seconds for each in runs]) for runs in outcomes.values()]
    table.add_row("training time", *(duration(float(value)) for value in seconds))
    table.add_row("adapter bytes", *(f"{each.adapter_bytes:,}" for each in summaries))
    say(console, "")
    console.print(table)
