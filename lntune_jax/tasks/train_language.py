"""`lntune-jax train --task causal_lm`: what is its own of a language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from ..cli.base import load_language_model, position_limit, say_memory, tuning_config
from ..cli.console import say, short_path
from ..cli.described import LanguageTask, describe
from ..cli.options import TrainSettings
from ..data.batches import choose_lengths
from ..data.documents import Documents, read_documents, split_documents
from ..data.encode import load_tokenizer, padding_of
from ..data.packing import LanguageRows, describe_fitting, fit_length, pack, separate
from ..data.spread import check_batch_sizes
from ..data.tokens import encode_shared
from ..errors import ConfigError, DataError
from ..trainer.finish import Summary
from ..trainer.run_files import RunFiles
from .causal_lm import LanguageWork

_MAX_LENGTH = 256


def read(settings: TrainSettings) -> tuple[tuple[Documents, Documents], ...]:
    """The documents to train on, and those to evaluate on, of each table.

    Raises:
        LNTuningError: If a flag makes no sense for a language model, or the data is at fault.
    """
    _refuse_classifier_flags(settings)
    column = settings.columns.text_column
    documents = read_documents(settings.data, settings.language.form, column)
    # What counts as a document must be the same everywhere.
    more = [
        read_documents(path, documents.form, column, flag="--more-data")
        for path in settings.sweep.more_data
    ]
    return tuple(_hold_out(settings, part) for part in (documents, *more))


def _hold_out(settings: TrainSettings, documents: Documents) -> tuple[Documents, Documents]:
    columns = settings.columns
    if columns.eval_data is None:
        fraction = 0.1 if columns.eval_fraction is None else columns.eval_fraction
        return split_documents(documents, fraction, settings.recipe.seed)
    other = read_documents(
        columns.eval_data, documents.form, columns.text_column, flag="--eval-data"
    )
    return documents, other


def prepare(
    settings: TrainSettings,
    data: Sequence[tuple[Documents, Documents]],
    console: Console,
    mesh: Any = None,
) -> tuple[LanguageWork, ...]:
    """Load the model, tokenise the documents and say what there is; gives one work a table."""
    import lntune_jax as lnt

    check_batch_sizes(mesh, batch_size=settings.recipe.batch_size)
    encoding, packing = settings.encoding, not settings.language.no_packing
    tokenizer = load_tokenizer(settings.model)
    model = load_language_model(
        settings.model,
        dtype=encoding.dtype,
        scan_layers=encoding.scan_layers,
        quantize=encoding.quantize,
        mesh=mesh,
    )
    config = tuning_config(
        settings.model, model.params, model.fresh, settings.selection, "CAUSAL_LM"
    )
    limit = min(_max_length(settings), position_limit(model.config, tokenizer))
    say(console, str(lnt.report_params(model.params, config, name_map=model.name_map)))
    say_memory(console, model)
    if config.modules_to_save:
        say(console, f"trained whole: {', '.join(config.modules_to_save)}")
    vocabulary = model.config.vocab_size
    if tokenizer.eos_token_id is None:
        say(console, "the tokenizer has no end-of-text token: documents end without one")
    pairs = []
    for table in data:
        training, evaluation = (
            make_rows(tokenizer, part, vocabulary, limit, packing, console, mesh) for part in table
        )
        pairs.append((training, evaluation))
        for name, part, rows in zip(("train", "evaluate"), table, pairs[-1], strict=True):
            say(
                console,
                f"to {name} on: {len(part.values):,} documents in {len(rows.tokens):,} rows, "
                f"{int(rows.lengths.sum()):,} tokens, {rows.targets:,} of them predicted",
            )
    every = tuple(rows for pair in pairs for rows in pair)
    buckets = row_lengths(every, 1 if packing else encoding.buckets, limit)
    style = "packed into" if packing else "padded to"
    say(console, f"rows: {style} {', '.join(map(str, buckets))} tokens")
    padding = padding_of(tokenizer)
    task = describe(
        LanguageTask(
            form=data[0][0].form,
            packing=packing,
            max_length=_max_length(settings),
            dtype=encoding.dtype,
            text_column=settings.columns.text_column,
        )
    )
    return tuple(
        LanguageWork(model, config, training, evaluation, buckets, padding, task, mesh)
        for training, evaluation in pairs
    )


def results(summary: Summary, files: RunFiles) -> dict[str, str]:
    """The lines of the final table that only a language model has."""
    from ..models.merging import find_adapter

    form = (find_adapter(files.adapter).task or {}).get("form")
    return {
        "perplexity": f"{summary.best_perplexity:.4f} (before: {summary.first_perplexity:.4f})",
        "evaluation loss": f"{summary.best_loss:.4f}",
        "use it": (
            f"lntune-jax generate --adapter {short_path(files.adapter)} "
            f"{'--chat ' if form == 'messages' else ''}--prompt ..."
        ),
    }


def make_rows(
    tokenizer: Any,
    documents: Documents,
    vocabulary: int,
    length: int,
    packing: bool,
    console: Console | None,
    mesh: Any = None,
) -> LanguageRows:
    """Documents as rows of at most `length` tokens; a console gets a line about each loss of text.

    Raises:
        DataError: If no document has a token to predict.
    """
    encoded = encode_shared(tokenizer, documents, vocabulary, mesh)
    fitting = fit_length(encoded, documents.form, length)
    if console is not None:
        for line in describe_fitting(fitting, documents, length):
            say(console, line)
    if not fitting.parts:
        raise DataError(
            f"{documents.path}: in {length} tokens no document has one to predict; raise "
            "--max-length, or shorten the prompts"
        )
    return pack(fitting.parts, length) if packing else separate(fitting.parts)


def row_lengths(parts: tuple[LanguageRows, ...], count: int, limit: int) -> tuple[int, ...]:
    """Padded lengths for all rows."""
    import numpy as np

    return choose_lengths(np.concatenate([rows.lengths for rows in parts]), count, limit)


def _max_length(settings: TrainSettings) -> int:
    return settings.encoding.max_length or _MAX_LENGTH


def _refuse_classifier_flags(settings: TrainSettings) -> None:
    if settings.encoding.pooling != "default":
        raise ConfigError("--pooling goes with --task seq_cls; a language model does not pool")
    if settings.columns.label_column != "label":
        raise ConfigError("--label-column goes with --task seq_cls; a language model has no labels")
    if settings.recipe.best_by in ("accuracy", "macro_f1"):
        raise ConfigError(
            f"--best-by {settings.recipe.best_by} goes with --task seq_cls; a language model has "
            "loss and perplexity"
        )
