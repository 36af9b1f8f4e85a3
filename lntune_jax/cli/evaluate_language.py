"""`lntune-jax evaluate` of a tuned language model: its perplexity on a file of documents."""

from __future__ import annotations

import json

from ..data.documents import read_documents
from ..data.encode import load_tokenizer, padding_of
from ..errors import ConfigError
from ..tasks import Encoding
from ..tasks.causal_lm import MeanLoss, Record, make_rows, perplexity_of, row_lengths
from ..tasks.loading import load_language_model, position_limit
from .console import TrainingProgress, make_console, make_notes, say
from .described import Described
from .options import EvaluateSettings
from .output import check_output, write_output


def run(settings: EvaluateSettings, described: Described, task: Record) -> None:
    """Print the perplexity with the adapter and without it.

    Raises:
        LNTuningError: If the base, the adapter or the data is missing or does not fit.
    """
    if settings.label_column is not None:
        raise ConfigError("--label-column is for classifiers; this run trained a language model")
    check_output(settings.output, [settings.data])
    documents = read_documents(
        settings.data,
        task.form,
        settings.text_column or task.text_column,
        bad_rows="skip" if settings.skip_bad_rows else "refuse",
        split=settings.split,
    )
    import lntune_jax as lnt

    console = make_console()
    tokenizer = load_tokenizer(described.model, described.revision)
    encoding = Encoding(dtype=task.dtype, quantize=described.quantize)
    model = load_language_model(described.model, encoding, revision=described.revision)
    limit = min(task.max_length, position_limit(model, tokenizer))
    notes = make_notes()
    rows = make_rows(
        tokenizer,
        documents,
        model.config.vocab_size,
        limit,
        task.packing,
        lambda line: say(notes, line),
    )
    buckets = row_lengths((rows,), 1 if task.packing else settings.trained.buckets, limit)
    losses = MeanLoss(model)
    figures = {}
    for title, params in (
        ("base", model.params),
        ("tuned", lnt.restore_adapter(described.directory, model.params)),
    ):
        halves = lnt.partition_params(params, described.config)
        with TrainingProgress(notes, title, 1) as progress:
            figures[title] = losses.measure(
                *halves,
                rows,
                settings.trained.batch_size,
                buckets,
                padding_of(tokenizer),
                progress.set,
            )
    content = {
        "data": str(settings.data),
        "documents": len(documents.values),
        "rows": len(rows.tokens),
        "targets": rows.targets,
        "loss": figures["tuned"],
        "perplexity": perplexity_of(figures["tuned"]),
        "base_loss": figures["base"],
        "base_perplexity": perplexity_of(figures["base"]),
    }
    # First the file: whoever reads what is printed may leave.
    if settings.output is not None:
        write_output(settings.output, json.dumps(content, indent=2) + "\n")
    say(
        console,
        f"perplexity {content['perplexity']:.4f}, loss {content['loss']:.4f} (without the adapter: "
        f"{content['base_perplexity']:.4f}, {content['base_loss']:.4f})",
    )
    say(
        console,
        f"documents: {content['documents']:,} in {content['rows']:,} rows, "
        f"{content['targets']:,} tokens predicted",
    )
