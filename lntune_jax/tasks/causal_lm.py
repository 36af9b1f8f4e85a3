"""Causal language modelling: documents in packed rows, next-token loss, perplexity."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.batches import PlannedBatch, choose_lengths
from ..data.documents import Documents, read_documents, split_documents
from ..data.encode import load_tokenizer, padding_of
from ..data.hub_tables import choose_evaluation
from ..data.labels import draw_rows
from ..data.packing import LanguageRows, describe_fitting, fit_length, pack, separate
from ..data.spread import check_batch_sizes, place_language_batch
from ..data.tokens import IGNORED, encode_shared
from ..errors import DataError
from ..messages import Argument
from .base import Metric, ModelTask, write_record
from .loading import describe_memory, load_language_model, position_limit, tuning_config
from .options import ComputeType, DataForm, TaskOptions
from .programs import Found, Program

NAME = "causal_lm"
MAX_LENGTH = 256
METRICS = (Metric("perplexity", "perplexity", higher_is_better=False),)


@dataclass(frozen=True)
class Record:
    """How a language model's documents were read.

    Attributes:
        form: What a document was.
        packing: Whether a row may hold several documents.
        max_length: Tokens in a row at most.
        dtype: Number format of the frozen weights.
        text_column: The training table's column of texts.
    """

    form: DataForm = "auto"
    packing: bool = True
    max_length: int = 256
    dtype: ComputeType = "float32"
    text_column: str = "text"


@dataclass(frozen=True)
class CausalLM(ModelTask):
    """A language model to train; see `tasks.Task` and `tasks.ModelTask`.

    Example:
        >>> [metric.name for metric in CausalLM.metrics], CausalLM.evaluates_first
        (['perplexity'], True)
    """

    training: LanguageRows
    evaluation: LanguageRows | None
    learning_rate: float = 1e-3
    metrics: tuple[Metric, ...] = METRICS
    # The base model is what tuning must improve on.
    evaluates_first: bool = True

    def loss_fn(self) -> Callable[..., Any]:
        """The mean loss of a batch, over its targets."""
        return language_loss(self.model, weighted=True)

    def program(self) -> MeanLoss:
        """The mean loss of rows."""
        return MeanLoss(self.model, self.mesh)

    def figures(self, found: float, rows: Any) -> dict[str, float]:
        """Loss and perplexity."""
        del rows
        return {"loss": found, "perplexity": perplexity_of(found)}

    def assemble(self, planned: PlannedBatch, batch_size: int) -> tuple[Mapping[str, Any], int]:
        """The arrays of one batch, and its tokens without padding."""
        batch = place_language_batch(planned, self.training, batch_size, self.padding, self.mesh)
        return batch, int(self.training.lengths[planned.rows].sum())


def show_use(record: Mapping[str, Any], run: str) -> str:
    """What to do with a run."""
    chat = "--chat " if record.get("form") == "messages" else ""
    return f"lntune-jax generate --run {run} {chat}--prompt ..."


def read(options: TaskOptions) -> tuple[tuple[Documents, Documents | None], ...]:
    """The documents to train on, and those to evaluate on, of each table.

    Raises:
        LNTuningError: The data is at fault.
    """
    column = options.columns.text_column
    bad_rows = "skip" if options.columns.skip_bad_rows else "refuse"
    split = options.columns.train_split or "train"
    documents = read_documents(
        options.data, options.language.form, column, bad_rows=bad_rows, split=split
    )
    # What counts as a document must be the same everywhere.
    more = [
        read_documents(path, documents.form, column, flag="--more-data", bad_rows=bad_rows)
        for path in options.more_data
    ]
    return tuple(_hold_out(options, part) for part in (documents, *more))


def _hold_out(options: TaskOptions, documents: Documents) -> tuple[Documents, Documents | None]:
    columns = options.columns
    source, split, flag = choose_evaluation(columns, options.data)
    if columns.no_eval:
        return _draw(options, documents), None
    if source is None:
        fraction = 0.1 if columns.eval_fraction is None else columns.eval_fraction
        training, evaluation = split_documents(documents, fraction, options.seed)
        return _draw(options, training), evaluation
    other = read_documents(
        source,
        documents.form,
        columns.text_column,
        flag=flag,
        bad_rows="skip" if columns.skip_bad_rows else "refuse",
        split=split,
    )
    return _draw(options, documents), other


def _draw(options: TaskOptions, documents: Documents) -> Documents:
    rows = np.arange(len(documents.values))
    return documents.take(draw_rows(rows, options.columns.max_train_rows, options.seed))


def prepare(
    options: TaskOptions,
    data: Sequence[tuple[Documents, Documents | None]],
    say: Callable[[str], None] = lambda line: None,
    mesh: Any = None,
) -> tuple[CausalLM, ...]:
    """Load the model, tokenise the documents and say what there is; gives one work a table."""
    import lntune_jax as lnt

    check_batch_sizes(mesh, batch_size=options.batch_size)
    encoding, packing = options.encoding, not options.language.no_packing
    tokenizer = load_tokenizer(options.model, options.revision)
    model = load_language_model(options.model, encoding, mesh=mesh, revision=options.revision)
    config = tuning_config(
        options.model, model.params, model.fresh, options.targets, "CAUSAL_LM", options.revision
    )
    max_length = encoding.max_length or MAX_LENGTH
    limit = min(max_length, position_limit(model, tokenizer))
    say(str(lnt.report_params(model.params, config, name_map=model.name_map)))
    for line in describe_memory(model):
        say(line)
    if config.modules_to_save:
        say(f"trained whole: {', '.join(config.modules_to_save)}")
    vocabulary = model.config.vocab_size
    if tokenizer.eos_token_id is None:
        say("the tokenizer has no end-of-text token: documents end without one")
    pairs = []
    for table in data:
        pair: list[LanguageRows | None] = []
        for name, part in zip(("train", "evaluate"), table, strict=True):
            if part is None:
                pair.append(None)
                continue
            rows = make_rows(tokenizer, part, vocabulary, limit, packing, say, mesh)
            pair.append(rows)
            say(
                f"to {name} on: {len(part.values):,} documents in {len(rows.tokens):,} rows, "
                f"{int(rows.lengths.sum()):,} tokens, {rows.targets:,} of them predicted"
            )
        pairs.append(tuple(pair))
    every = tuple(rows for pair in pairs for rows in pair if rows is not None)
    buckets = row_lengths(every, 1 if packing else encoding.buckets, limit)
    style = "packed into" if packing else "padded to"
    say(f"rows: {style} {', '.join(map(str, buckets))} tokens")
    padding = padding_of(tokenizer)
    record = write_record(
        NAME,
        Record(
            form=data[0][0].form,
            packing=packing,
            max_length=max_length,
            dtype=encoding.dtype,
            text_column=options.columns.text_column,
        ),
    )
    return tuple(
        CausalLM(model, config, training, evaluation, buckets, padding, record, mesh, options.seed)
        for training, evaluation in pairs
    )


def make_rows(
    tokenizer: Any,
    documents: Documents,
    vocabulary: int,
    length: int,
    packing: bool,
    say: Callable[[str], None],
    mesh: Any = None,
) -> LanguageRows:
    """Documents as rows of at most `length` tokens; `say` gets a line about each loss of text.

    Raises:
        DataError: If no document has a token to predict.
    """
    encoded = encode_shared(tokenizer, documents, vocabulary, mesh)
    fitting = fit_length(encoded, documents.form, length)
    for line in describe_fitting(fitting, documents, length):
        say(line)
    if not fitting.parts:
        raise DataError(
            f"{documents.path}: in {length} tokens no document has one to predict; raise ",
            Argument("max_length"),
            ", or shorten the prompts",
        )
    return pack(fitting.parts, length) if packing else separate(fitting.parts)


def row_lengths(parts: tuple[LanguageRows, ...], count: int, limit: int) -> tuple[int, ...]:
    """Padded lengths for all rows."""
    return choose_lengths(np.concatenate([rows.lengths for rows in parts]), count, limit)


class MeanLoss(Program):
    """The mean loss of many rows."""

    def __init__(self, model: Any, mesh: Any = None):
        """Wrap a language model of `lntune_jax.models`, for one device or a mesh."""
        super().__init__(language_loss(model), mesh)

    def place(self, planned: PlannedBatch, rows: LanguageRows, size: int, padding: int) -> Any:
        """Token ids and labels."""
        return place_language_batch(planned, rows, size, padding, self.mesh)

    def join(self, found: Found, rows: LanguageRows) -> float:
        """The mean over all targets of all rows, summed in float64."""
        counts = np.asarray(
            [sum(_count_targets(rows.labels[n]) for n in planned.rows) for planned, _ in found]
        )
        means = np.asarray([float(loss) for _, loss in found], np.float64)
        return float(means @ counts.astype(np.float64) / counts.sum())


def _count_targets(labels: np.ndarray) -> int:
    return int((labels != IGNORED).sum())


def language_loss(model: Any, *, weighted: bool = False) -> Callable[..., Any]:
    """The mean loss of a batch, over its targets.

    Args:
        model: A language model of `lntune_jax.models`.
        weighted: Whether it is given as a `WeightedLoss`, for training in microbatches.

    Returns:
        `loss_fn(params, batch, rng=None)`; with an `rng`, dropout is on.
    """
    from ..models import causal_lm_loss

    def loss_fn(params: Any, batch: Mapping[str, Any], rng: Any = None) -> Any:
        return causal_lm_loss(
            model,
            params,
            batch["input_ids"],
            batch["labels"],
            segment_ids=batch.get("segment_ids"),
            dropout_rng=rng,
            weighted=weighted,
        )

    return loss_fn


def perplexity_of(loss: float) -> float:
    """The exponential of a mean loss; infinite where that is no longer a float."""
    return math.exp(loss) if loss < 700 else math.inf
