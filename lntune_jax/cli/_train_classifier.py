"""`lntune-jax train --task seq_cls`: what is its own of a text classifier."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from .._errors import ConfigError
from ._base import load_base, model_location, position_limit, say_memory, tuning_config
from ._batches import Rows, choose_lengths
from ._classification import ClassificationWork
from ._console import say, short_path
from ._encode import encode, load_tokenizer, padding_of
from ._finish import Summary
from ._labels import Task, name_labels, number_labels, save_task, split_rows
from ._run_files import RunFiles
from ._settings import TrainSettings
from ._spread import check_batch_sizes
from ._tables import read_table

_MAX_LENGTH = 128


class Labelled(NamedTuple):
    """All texts and classes, the numbers of the rows to evaluate on, and the label names."""

    texts: list[str]
    classes: np.ndarray
    evaluation: np.ndarray
    names: tuple[str, ...]


def read(settings: TrainSettings) -> Labelled:
    """The rows to train on and to evaluate on.

    Raises:
        LNTuningError: If a flag makes no sense for a classifier, or the data is at fault.
    """
    _refuse_language_flags(settings)
    columns = settings.columns
    table = read_table(settings.data, columns.text_column, columns.label_column)
    assert table.labels is not None
    names = name_labels(table.labels, table.path)
    classes = number_labels(table.labels, names, table.path)
    texts = list(table.texts)
    if columns.eval_data is None:
        fraction = 0.1 if columns.eval_fraction is None else columns.eval_fraction
        _, evaluation = split_rows(classes, fraction, settings.recipe.seed)
        return Labelled(texts, classes, evaluation, names)
    other = read_table(
        columns.eval_data, columns.text_column, columns.label_column, flag="--eval-data"
    )
    assert other.labels is not None
    more = number_labels(other.labels, names, other.path)
    evaluation = np.arange(len(texts), len(texts) + len(more))
    return Labelled([*texts, *other.texts], np.concatenate([classes, more]), evaluation, names)


def prepare(
    settings: TrainSettings, data: Labelled, console: Console, mesh: Any = None
) -> ClassificationWork:
    """Load the model, tokenise the texts and say what there is."""
    import lntune_jax as lnt

    check_batch_sizes(mesh, batch_size=settings.recipe.batch_size)
    texts, classes, evaluation, names = data
    encoding = settings.encoding
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
    tokens = encode(tokenizer, texts, limit, model.config.vocab_size)
    everything = Rows(tokens, classes)
    buckets = choose_lengths(everything.lengths, encoding.buckets, limit)
    training = np.setdiff1d(np.arange(len(texts)), evaluation)
    say(console, str(lnt.report_params(model.params, config, name_map=model.name_map)))
    say_memory(console, model)
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
    return ClassificationWork(
        model,
        config,
        everything.take(training),
        everything.take(evaluation),
        buckets,
        padding_of(tokenizer),
        mesh,
    )


def save_description(settings: TrainSettings, data: Labelled, files: RunFiles) -> None:
    """Write the label names, and what `evaluate` and `predict` need to know."""
    save_task(
        files.labels,
        Task(
            labels=data.names,
            model=model_location(settings.model),
            pooling=settings.encoding.pooling,
            max_length=_max_length(settings),
            dtype=settings.encoding.dtype,
            quantize=settings.encoding.quantize,
            seed=settings.recipe.seed,
            text_column=settings.columns.text_column,
            label_column=settings.columns.label_column,
        ),
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
