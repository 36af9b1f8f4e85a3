"""Text classification: rows of text and label, a head, cross entropy, accuracy and macro F1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data.batches import PlannedBatch, Rows, choose_lengths
from ..data.encode import encode_inputs, load_tokenizer, padding_of
from ..data.hub_tables import choose_evaluation
from ..data.labels import draw_rows, name_labels, number_labels, split_rows
from ..data.spread import check_batch_sizes, place_batch
from ..data.tables import read_table
from .base import Metric, ModelTask, write_record
from .loading import describe_memory, load_classifier, position_limit, tuning_config
from .options import ComputeType, Pooling, TaskOptions
from .programs import Found, Program
from .scores import score

NAME = "seq_cls"
MAX_LENGTH = 128
METRICS = (
    Metric("accuracy", "accuracy", is_share=True),
    Metric("macro_f1", "macro F1", is_share=True),
)


@dataclass(frozen=True)
class Record:
    """How a classifier reads texts.

    Attributes:
        labels: Label names; the position is the class number.
        pooling: How the encoder summarises a text.
        max_length: The length at which texts are cut.
        dtype: Number format of the frozen weights.
        seed: Seed of weights that the base model lacks and that did not train.
        text_column: The training table's column of texts.
        label_column: The training table's column of labels.
        text_pair_column: Its column of second texts; empty where a row is one text.
        new_head: Whether the head was drawn anew, though the base model has one.
    """

    labels: tuple[str, ...]
    pooling: Pooling = "default"
    max_length: int = 128
    dtype: ComputeType = "float32"
    seed: int = 0
    text_column: str = "text"
    label_column: str = "label"
    text_pair_column: str = ""
    new_head: bool = False


@dataclass(frozen=True)
class TextClassification(ModelTask):
    """A classifier of texts to train; see `tasks.Task` and `tasks.ModelTask`.

    Example:
        >>> [metric.name for metric in TextClassification.metrics], TextClassification.learning_rate
        (['accuracy', 'macro_f1'], 0.005)
    """

    training: Rows
    evaluation: Rows | None
    learning_rate: float = 5e-3
    metrics: tuple[Metric, ...] = METRICS
    # A new head knows nothing before the first step.
    evaluates_first: bool = False

    def loss_fn(self) -> Callable[..., Any]:
        """The mean cross entropy of a batch."""
        return classification_loss(self.model.apply)

    def program(self) -> Classifier:
        """The logits of rows."""
        return Classifier(self.model.apply, self.mesh)

    def figures(self, found: np.ndarray, rows: Any) -> dict[str, float]:
        """Accuracy, F1 and loss."""
        scores = score(found, np.asarray(rows.classes))
        return {"loss": scores.loss, "accuracy": scores.accuracy, "macro_f1": scores.macro_f1}

    def assemble(self, planned: PlannedBatch, batch_size: int) -> tuple[Mapping[str, Any], int]:
        """The arrays of one batch, and the tokens of its real rows, without padding."""
        batch = place_batch(planned, self.training, batch_size, self.padding, self.mesh)
        return batch, sum(len(self.training.tokens[number]) for number in planned.rows)


def show_use(record: Mapping[str, Any], run: str) -> str:
    """What to do with a run."""
    del record
    return f"lntune-jax predict --run {run} --text ..."


class Labelled(NamedTuple):
    """All texts and classes, the rows to evaluate on, the label names, and lines of the file.

    `pairs` are the second texts, where a row is two.
    """

    texts: list[str]
    classes: np.ndarray
    evaluation: np.ndarray
    names: tuple[str, ...]
    places: np.ndarray | None = None
    unit: str = "row"
    pairs: list[str] | None = None


def read(options: TaskOptions) -> tuple[Labelled, ...]:
    """The rows to train on and to evaluate on, of each table; all have the first one's labels.

    Raises:
        LNTuningError: The data is at fault.
    """
    first = _read_table(options, options.data, "--data")
    more = options.more_data
    return first, *(_read_table(options, path, "--more-data", first.names) for path in more)


def _read_table(
    options: TaskOptions, path: Path, flag: str, names: tuple[str, ...] | None = None
) -> Labelled:
    columns = options.columns
    bad_rows = "skip" if columns.skip_bad_rows else "refuse"
    source, split, eval_flag = choose_evaluation(columns, options.data)
    table = read_table(
        path,
        columns.text_column,
        columns.label_column,
        pair_column=columns.text_pair_column,
        flag=flag,
        bad_rows=bad_rows,
        split=(columns.train_split or "train") if flag == "--data" else None,
    )
    assert table.labels is not None
    names = name_labels(table.labels, table.path) if names is None else names
    classes = number_labels(table.labels, names, table.path, table.places, table.unit)
    texts, places = list(table.texts), np.asarray(table.places)
    pairs = None if table.pairs is None else list(table.pairs)
    if columns.no_eval:
        none = np.zeros(0, np.int64)
        return Labelled(texts, classes, none, names, places, table.unit, pairs)
    if source is None:
        fraction = 0.1 if columns.eval_fraction is None else columns.eval_fraction
        _, evaluation = split_rows(classes, fraction, options.seed)
        return Labelled(texts, classes, evaluation, names, places, table.unit, pairs)
    other = read_table(
        source,
        columns.text_column,
        columns.label_column,
        pair_column=columns.text_pair_column,
        flag=eval_flag,
        bad_rows=bad_rows,
        split=split,
    )
    assert other.labels is not None
    more = number_labels(other.labels, names, other.path, other.places, other.unit)
    evaluation = np.arange(len(texts), len(texts) + len(more))
    places = np.concatenate([places, other.places])
    classes = np.concatenate([classes, more])
    texts, pairs = [*texts, *other.texts], pairs and [*pairs, *(other.pairs or ())]
    return Labelled(texts, classes, evaluation, names, places, table.unit, pairs)


def prepare(
    options: TaskOptions,
    data: Sequence[Labelled],
    say: Callable[[str], None] = lambda line: None,
    mesh: Any = None,
) -> tuple[TextClassification, ...]:
    """Load the model, tokenise the texts and say what there is; gives one task a table."""
    import lntune_jax as lnt

    check_batch_sizes(mesh, batch_size=options.batch_size)
    names, encoding = data[0].names, options.encoding
    tokenizer = load_tokenizer(options.model, options.revision)
    model = load_classifier(
        options.model,
        encoding,
        labels=len(names),
        seed=options.seed,
        mesh=mesh,
        revision=options.revision,
    )
    config = tuning_config(
        options.model, model.params, model.fresh, options.targets, revision=options.revision
    )
    max_length = encoding.max_length or MAX_LENGTH
    limit = min(max_length, position_limit(model, tokenizer))
    parts = []
    for texts, classes, evaluation, _, places, _, pairs in data:
        tokens, types = encode_inputs(tokenizer, texts, pairs, limit, model.config, mesh)
        rows = Rows(tokens, classes, places, types)
        training = np.setdiff1d(np.arange(len(texts)), evaluation)
        training = draw_rows(training, options.columns.max_train_rows, options.seed)
        parts.append((rows.take(training), rows.take(evaluation)))
    lengths = np.concatenate([rows.lengths for pair in parts for rows in pair])
    buckets = choose_lengths(lengths, encoding.buckets, limit)
    say(str(lnt.report_params(model.params, config, name_map=model.name_map)))
    for line in describe_memory(model):
        say(line)
    say(f"trained whole: {', '.join(config.modules_to_save or ()) or 'nothing'}")
    say(f"labels: {', '.join(names)}")
    if encoding.pooling == "default" and model.options.pooling in ("mean", "cls"):
        say(f"pooling: {model.options.pooling}, as the model's files say (--pooling)")
    for training, evaluation in parts:
        say(
            f"rows: {len(training.tokens):,} to train on, {len(evaluation.tokens):,} to evaluate "
            f"on; padded to {', '.join(map(str, buckets))} tokens"
        )
    cut = int((lengths >= limit).sum())
    if cut:
        say(f"{cut:,} texts fill or exceed {limit} tokens and may be cut (--max-length)")
    record = Record(
        labels=names,
        pooling=model.options.pooling or "own",
        max_length=max_length,
        dtype=encoding.dtype,
        seed=options.seed,
        text_column=options.columns.text_column,
        label_column=options.columns.label_column,
        text_pair_column=options.columns.text_pair_column or "",
        new_head=encoding.new_head,
    )
    return tuple(
        TextClassification(
            model,
            config,
            training,
            evaluation,
            buckets,
            padding_of(tokenizer),
            write_record(NAME, record),
            mesh,
            options.seed,
            table.unit,
        )
        for table, (training, evaluation) in zip(data, parts, strict=True)
    )


def classification_loss(apply: Callable[..., Any]) -> Callable[..., Any]:
    """The mean cross entropy of a batch, over the rows whose weight is not zero.

    Args:
        apply: The model's pure function of params and token ids.

    Returns:
        `loss_fn(params, batch, rng=None)`; with an `rng`, dropout is on.
    """
    import jax.numpy as jnp
    import optax

    from ..training import WeightedLoss

    def loss_fn(params: Any, batch: Mapping[str, Any], rng: Any = None) -> Any:
        output = apply(
            params,
            batch["input_ids"],
            attention_mask=batch["attention_mask"],
            **_types_of(batch),
            dropout_rng=rng,
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(
            output.logits.astype(jnp.float32), batch["classes"]
        )
        return WeightedLoss((losses * batch["weights"]).sum(), batch["weights"].sum())

    return loss_fn


def _types_of(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What `apply` is told of pairs; a decoder has no such argument."""
    return {name: batch[name] for name in ("token_type_ids",) if name in batch}


class Classifier(Program):
    """Logits of many rows."""

    def __init__(self, apply: Callable[..., Any], mesh: Any = None):
        """Wrap a model's pure function of params and token ids, for one device or a mesh."""
        import jax.numpy as jnp

        def logits_of(params: Any, batch: Any) -> Any:
            mask = batch["attention_mask"]
            output = apply(params, batch["input_ids"], attention_mask=mask, **_types_of(batch))
            return output.logits.astype(jnp.float32)

        super().__init__(logits_of, mesh)

    def place(self, planned: PlannedBatch, rows: Rows, size: int, padding: int) -> Any:
        """Token ids, their mask, and which text they are of."""
        return place_batch(planned, rows, size, padding, self.mesh)

    def join(self, found: Found, rows: Rows) -> np.ndarray:
        """Logits in the rows' order, float32 of shape (rows, classes)."""
        logits = np.zeros((len(rows.tokens), found[0][1].shape[1]), np.float32)
        for planned, values in found:
            logits[planned.rows] = np.asarray(values)[: len(planned.rows)]
        return logits
