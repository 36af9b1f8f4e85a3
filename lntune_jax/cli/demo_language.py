"""`lntune-jax demo --task causal_lm`: a small language model, film reviews, three precisions.

The same steps are done over a float32 base, over a bfloat16 base with the norms in float32, and
with everything in bfloat16, as PEFT would do it. Validation rows pick what is kept; test rows are
looked at before training and at the end.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ..data.documents import Documents
from ..data.packing import LanguageRows
from ..tasks.causal_lm import LanguageWork, MeanLoss, perplexity_of
from ..tasks.train_language import make_rows, row_lengths
from ..trainer.finish import finish
from ..trainer.fit import fit
from ..trainer.run_files import RunFiles
from ..trainer.stopping import TerminatedError
from .base import load_language_model, tuning_config
from .console import byte_count, duration, make_console, make_notes, say, short_path
from .demo_data import find_language_model, read_reviews
from .demo_report import LanguageOutcome, draw, show, show_samples
from .described import LanguageTask, describe
from .language_model import stop_tokens
from .options import ComputeType, DemoSettings, Recipe, Selection

LEARNING_RATE = 1e-3
_STEPS = 100
_LENGTH = 128
_PROMPT = "This film"


@dataclass(frozen=True)
class Precision:
    """One way to keep the numbers: those of the base, and those that train."""

    name: str
    dtype: ComputeType
    param_dtype: str | None


_PRECISIONS = (
    Precision("float32", "float32", "float32"),
    Precision("bfloat16, norms float32", "bfloat16", "float32"),
    Precision("bfloat16", "bfloat16", None),
)


@dataclass(frozen=True)
class Shared:
    """What all runs share."""

    path: Path
    tokenizer: Any
    parts: tuple[LanguageRows, LanguageRows, LanguageRows]
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Base:
    """A base, the programs that measure it, and its test loss."""

    model: Any
    losses: MeanLoss
    loss: float


def run(settings: DemoSettings) -> None:
    """Train, compare, save, restore, and say what was found."""
    console = make_console()
    shared = _read(settings, console)
    outcomes: dict[str, list[LanguageOutcome]] = {}
    for dtype, precisions in groupby(_PRECISIONS, lambda each: each.dtype):
        base = _load(shared, dtype)
        for precision, seed in product(precisions, settings.seeds):
            outcome = _train(base, precision, seed, settings, shared, console)
            outcomes.setdefault(precision.name, []).append(outcome)
        del base
    chosen = outcomes[_PRECISIONS[0].name][0]
    same = _restore_and_compare(chosen, shared, console)
    figure = settings.output.expanduser().resolve() / "demo-causal-lm.png"
    draw(figure, outcomes)
    show(console, outcomes, sum(len(rows) for rows in shared.parts[2].tokens))
    show_samples(console, _PROMPT, chosen)
    say(console, "")
    say(console, f"restored: test loss {'identical' if same else 'DIFFERENT'}")
    say(console, f"adapter: {short_path(chosen.files.adapter)}")
    say(console, f"figure: {short_path(figure)}")
    say(
        console,
        f"try it: lntune-jax generate --model {short_path(shared.path)} "
        f'--adapter {short_path(chosen.files.adapter)} --prompt "{_PROMPT}"',
    )


def _read(settings: DemoSettings, console: Console) -> Shared:
    from ..models import tokenizer_from_gguf

    path = find_language_model()
    tokenizer = tokenizer_from_gguf(path)
    quick = settings.steps is not None
    names, counts = ("training", "validation", "test"), (4, 1, 1) if quick else (120, 8, 32)
    say(console, "model: SmolLM2-135M-Instruct (Llama, 30 layers, 576 wide), from a GGUF file")
    parts = []
    for name, texts in zip(names, read_reviews(*counts), strict=True):
        documents = Documents(Path("imdb"), "text", texts, tuple(range(1, len(texts) + 1)))
        rows = make_rows(tokenizer, documents, len(tokenizer), _LENGTH, True, None)
        say(
            console,
            f"{name}: {len(texts)} imdb reviews, {len(rows.tokens):,} rows of {_LENGTH} tokens",
        )
        parts.append(rows)
    training, validation, test = parts
    lengths = row_lengths((training, validation, test), 1, _LENGTH)
    return Shared(path, tokenizer, (training, validation, test), lengths)


def _load(shared: Shared, dtype: str) -> Base:
    import lntune_jax as lnt

    model = load_language_model(str(shared.path), dtype=dtype)
    losses = MeanLoss(model)
    halves = lnt.partition_params(model.params, lnt.LNTuningConfig())
    return Base(model, losses, _test_loss(losses, *halves, shared))


def _train(
    base: Base,
    precision: Precision,
    seed: int,
    settings: DemoSettings,
    shared: Shared,
    console: Console,
) -> LanguageOutcome:
    import lntune_jax as lnt

    model = base.model
    config = tuning_config(
        str(shared.path), model.params, model.fresh, Selection(), "CAUSAL_LM"
    ).replace(param_dtype=precision.param_dtype)
    say(console, "")
    say(console, f"{precision.name}, seed {seed}: {lnt.report_params(model.params, config)}")
    training, validation, _ = shared.parts
    task = describe(LanguageTask("text", True, _LENGTH, precision.dtype))
    padding = _padding(shared)
    work = LanguageWork(model, config, training, validation, shared.lengths, padding, task)
    steps = settings.steps or _STEPS
    recipe = Recipe(
        learning_rate=settings.learning_rate or LEARNING_RATE,
        max_steps=steps,
        batch_size=2,
        eval_batch_size=8,
        eval_every=-(-steps // 4),
        seed=seed,
    )
    name = precision.name.replace(", norms ", "-norms-")
    files = RunFiles.at(settings.output / f"causal-lm-{name}-seed-{seed}")
    files.clear()
    files.directory.mkdir(parents=True, exist_ok=True)
    fitted = fit(work, recipe, files, make_notes(), title=precision.name)
    if fitted.terminated:
        raise TerminatedError
    title = f"SmolLM2-135M on imdb reviews, {precision.name}"
    summary = finish(work, recipe, fitted, files, name=precision.name, title=title)
    shutil.rmtree(files.checkpoints)
    _, frozen = lnt.partition_params(model.params, config)
    after = _test_loss(base.losses, fitted.best, frozen, shared)
    say(
        console,
        f"{precision.name}: test perplexity {perplexity_of(base.loss):.2f} -> "
        f"{perplexity_of(after):.2f} after {duration(summary.seconds)}",
    )
    is_first = precision == _PRECISIONS[0] and seed == settings.seeds[0]
    tuned = lnt.merge_params(fitted.best, frozen)
    samples = [_continue(model, each, shared) for each in (model.params, tuned)] if is_first else []
    return LanguageOutcome(work, fitted, summary, files, base.loss, after, tuple(samples))


def _restore_and_compare(outcome: LanguageOutcome, shared: Shared, console: Console) -> bool:
    """Whether the adapter, restored into a fresh base, gives the very same test loss."""
    import lntune_jax as lnt

    say(console, "")
    size = byte_count(outcome.files.adapter)
    say(console, f"restoring the float32 adapter ({size:,} bytes) into a fresh base")
    model = load_language_model(str(shared.path), dtype="float32")
    params = lnt.restore_adapter(outcome.files.adapter, model.params)
    trainable, frozen = lnt.partition_params(params, outcome.work.config)
    return _test_loss(MeanLoss(model), trainable, frozen, shared) == outcome.loss_after


def _test_loss(losses: MeanLoss, trainable: Any, frozen: Any, shared: Shared) -> float:
    return losses.measure(trainable, frozen, shared.parts[2], 8, shared.lengths, _padding(shared))


def _continue(model: Any, params: Any, shared: Shared) -> str:
    """The likeliest continuation of the prompt."""
    from .. import models

    prompt = np.asarray([shared.tokenizer(_PROMPT)["input_ids"]], np.int32)
    result = models.generate(
        model,
        params,
        prompt,
        max_new_tokens=48,
        stop_tokens=stop_tokens(model, shared.tokenizer),
    )
    tokens = result.tokens[0, : result.lengths[0]]
    return shared.tokenizer.decode(tokens, skip_special_tokens=True)


def _padding(shared: Shared) -> int:
    from ..data.encode import padding_of

    return padding_of(shared.tokenizer)
