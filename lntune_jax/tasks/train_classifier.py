"""`lntune-jax train --task seq_cls`: what is its own of a text classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from ..cli.base import load_base, position_limit, say_memory, tuning_config
from ..cli.console import say, short_path
from ..cli.described import ClassifierTask, describe
from ..cli.options import TrainSettings
from ..data.batches import Rows, choose_lengths
from ..data.encode import encode_shared, load_tokenizer, padding_of
from ..data.hub_tables import choose_evaluation
from ..data.labels import draw_rows, name_labels, number_labels, split_rows
from ..data.spread import check_batch_sizes
from ..data.tables import read_table
from ..errors import ConfigError
from ..trainer.finish import Summary
from ..trainer.run_files import RunFiles
from .classification import ClassificationWork

_MAX_LENGTH = 128


class Labelled(NamedTuple):
    """All texts and classes, the numbers of the rows to evaluate on, and the label names."""

    texts: list[str]
    classes: np.ndarray
    evaluation: np.ndarray
    names: tuple[str, ...]


def read(settings: TrainSettings) -> tuple[Labelled, ...]:
    """The rows to train on and to evaluate on, of each table; all have the first one's labels.

    Raises:
        LNTuningError: If a flag makes no sense for a classifier, or the data is at fault.
    """
    _refuse_language_flags(settings)
    first = _read_table(settings, settings.data, "--data")
    more = settings.sweep.more_data
    return first, *(_read_table(settings, path, "--more-data", first.names) for path in more)


def _read_table(
    settings: TrainSettings, path: Path, flag: str, names: tuple[str, ...] | None = None
) -> Labelled:
    columns = settings.columns
    bad_rows = "skip" if columns.skip_bad_rows else "refuse"
    source, split, eval_flag = choose_evaluation(columns, settings.data)
    table = read_table(
        path,
        columns.text_column,
        columns.label_column,
        flag=flag,
        bad_rows=bad_rows,
        split=(columns.train_split or "train") if flag == "--data" else None,
    )
    assert table.labels is not None
    names = name_labels(table.labels, table.path) if names is None else names
    classes = number_labels(table.labels, names, table.path, table.places, table.unit)
    texts = list(table.texts)
    if source is None:
        fraction = 0.1 if columns.eval_fraction is None else columns.eval_fraction
        _, evaluation = split_rows(classes, fraction, settings.recipe.seed)
        return Labelled(texts, classes, evaluation, names)
    other = read_table(
        source,
        columns.text_column,
        columns.label_column,
        flag=eval_flag,
        bad_rows=bad_rows,
        split=split,
    )
    assert other.labels is not None
    more = number_labels(other.labels, names, other.path, other.places, other.unit)
    evaluation = np.arange(len(texts), len(texts) + len(more))
    return Labelled([*texts, *other.texts], np.concatenate([classes, more]), evaluation, names)


def prepare(
    settings: TrainSettings, data: Sequence[Labelled], console: Console, mesh: Any = None
) -> tuple[ClassificationWork, ...]:
    """Load the model, tokenise the texts and say what there is; gives one work a table."""
    import lntune_jax as lnt

    check_batch_sizes(mesh, batch_size=settings.recipe.batch_size)
    names, encoding = data[0].names, settings.encoding
    tokenizer = load_tokenizer(settings.model)
    model = load_base(
        settings.model,
        labels=len(names),
        pooling=encoding.pooling,
        dtype=encoding.dtype,
        seed=settings.recipe.seed,
        scan_layers=encoding.scan_layers,
        quantize=encoding.quantize,
        mesh=mesh,
    )
    config = tuning_config(settings.model, model.params, model.fresh, settings.selection)
    limit = min(_max_length(settings), position_limit(model.config, tokenizer))
    parts = []
    for texts, classes, evaluation, _ in data:
        tokens = encode_shared(tokenizer, texts, limit, model.config.vocab_size, mesh)
        rows = Rows(tokens, classes)
        training = np.setdiff1d(np.arange(len(texts)), evaluation)
        training = draw_rows(training, settings.columns.max_train_rows, settings.recipe.seed)
        parts.append((rows.take(training), rows.take(evaluation)))
    lengths = np.concatenate([rows.lengths for pair in parts for rows in pair])
    buckets = choose_lengths(lengths, encoding.buckets, limit)
    say(console, str(lnt.report_params(model.params, config, name_map=model.name_map)))
    say_memory(console, model)
    say(console, f"trained whole: {', '.join(config.modules_to_save or ()) or 'nothing'}")
    say(console, f"labels: {', '.join(names)}")
    if encoding.pooling == "default" and model.options.pooling in ("mean", "cls"):
        say(console, f"pooling: {model.options.pooling}, as the model's files say (--pooling)")
    for training, evaluation in parts:
        say(
            console,
            f"rows: {len(training.tokens):,} to train on, {len(evaluation.tokens):,} to evaluate "
            f"on; padded to {', '.join(map(str, buckets))} tokens",
        )
    cut = int((lengths >= limit).sum())
    if cut:
        say(console, f"{cut:,} texts fill or exceed {limit} tokens and may be cut (--max-length)")
    padding = padding_of(tokenizer)
    task = describe(
        ClassifierTask(
            labels=names,
            pooling=model.options.pooling or "own",
            max_length=_max_length(settings),
            dtype=encoding.dtype,
            seed=settings.recipe.seed,
            text_column=settings.columns.text_column,
            label_column=settings.columns.label_column,
        )
    )
    return tuple(
        ClassificationWork(model, config, training, evaluation, buckets, padding, task, mesh)
        for training, evaluation in parts
    )


def results(summary: Summary, files: RunFiles) -> dict[str, str]:
    """The lines of the final table that only a classifier has."""
    return {
        "accuracy": f"{summary.best_accuracy:.4f}",
        "macro F1": f"{summary.best_macro_f1:.4f}",
        "evaluation loss": f"{summary.best_loss:.4f}",
        "use it": f"lntune-jax predict --run {short_path(files.directory)} --text ...",
    }


def _max_length(settings: TrainSettings) -> int:
    return settings.encoding.max_length or _MAX_LENGTH


def _refuse_language_flags(settings: TrainSettings) -> None:
    if settings.language.no_packing or settings.language.form != "auto":
        raise ConfigError("--no-packing and --form go with --task causal_lm")
    if settings.recipe.best_by == "perplexity":
        raise ConfigError("--best-by perplexity goes with --task causal_lm")
