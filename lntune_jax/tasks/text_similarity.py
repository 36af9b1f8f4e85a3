"""Text similarity: pairs or triplets of texts, their embeddings' cosines, rank correlation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from ..data.batches import PlannedBatch, Rows, choose_lengths
from ..data.encode import encode, encode_shared, load_tokenizer, padding_of
from ..data.examples import (
    EncodedExamples,
    Examples,
    Form,
    assemble_examples,
    check_measurable,
    list_forms,
    read_examples,
)
from ..data.hub_tables import choose_evaluation
from ..data.labels import draw_rows, split_rows
from ..data.spread import check_batch_sizes, spread_rows
from ..data.tables import describe_bad_rows, read_table
from ..errors import ConfigError, DataError
from ..messages import Argument
from .base import Metric, ModelTask, write_record
from .embeddings import SCALE, Embedder, list_texts, make_embed, measure
from .loading import describe_memory, load_encoder, position_limit, tuning_config
from .options import ComputeType, Encoding, TaskOptions

NAME = "similarity"
MAX_LENGTH = 128
_SPEARMAN = Metric("spearman", "Spearman correlation")
_PEARSON = Metric("pearson", "Pearson correlation")
_ACCURACY = Metric("accuracy_at_1", "accuracy at 1", is_share=True)
_TRIPLETS = Metric("triplet_accuracy", "triplet accuracy", is_share=True)
METRICS = (_SPEARMAN, _PEARSON, _ACCURACY, _TRIPLETS)
_METRICS_OF = {
    "scored": (_SPEARMAN, _PEARSON),
    "pairs": (_ACCURACY,),
    "triplets": (_ACCURACY, _TRIPLETS),
}


@dataclass(frozen=True)
class Record:
    """How an encoder makes embeddings of texts.

    Attributes:
        form: What a row of the training table was.
        pooling: The mean over tokens, or the first token (cls).
        max_length: The length at which texts are cut.
        dtype: Number format of the frozen weights.
        score_scale: What scores were divided by.
    """

    form: Form = "scored"
    pooling: Literal["mean", "cls"] = "mean"
    max_length: int = 128
    dtype: ComputeType = "float32"
    score_scale: float = 1.0


@dataclass(frozen=True)
class TextSimilarity(ModelTask):
    """An encoder of texts to train; see `tasks.Task` and `tasks.ModelTask`.

    Example:
        >>> TextSimilarity.learning_rate, TextSimilarity.evaluates_first
        (0.001, True)
    """

    training: EncodedExamples
    evaluation: EncodedExamples
    learning_rate: float = 1e-3
    # The base is what tuning must improve on.
    evaluates_first: bool = True

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What the rows to evaluate on allow to be measured."""
        return _METRICS_OF[self.evaluation.form]

    def loss_fn(self) -> Callable[..., Any]:
        """The mean loss of a batch, as the form of the training rows asks."""
        embed = make_embed(self.model.apply, self.record["pooling"])
        return similarity_loss(embed, self.training.form)

    def program(self) -> Embedder:
        """The embeddings of texts."""
        return Embedder(make_embed(self.model.apply, self.record["pooling"]), self.mesh)

    def inputs(self, rows: EncodedExamples) -> Rows:
        """Each text of each row."""
        return list_texts([tokens for row in rows.tokens for tokens in row])

    def figures(self, found: np.ndarray, rows: EncodedExamples) -> dict[str, float]:
        """Correlations, or how often the positive is found."""
        return measure(rows, found.reshape(len(rows.tokens), -1, found.shape[-1]))

    def assemble(self, planned: PlannedBatch, batch_size: int) -> tuple[Mapping[str, Any], int]:
        """The arrays of one batch, and the tokens of its real rows, without padding."""

        def make(start: int, stop: int) -> dict[str, Any]:
            return assemble_examples(planned, self.training, (start, stop), self.padding)

        batch = spread_rows(make, batch_size, self.mesh)
        rows = (self.training.tokens[number] for number in planned.rows)
        return batch, sum(len(tokens) for row in rows for tokens in row)


def show_use(record: Mapping[str, Any], run: str) -> str:
    """What to do with a run."""
    del record
    return f"lntune-jax predict --run {run} --text ..."


def read(options: TaskOptions) -> tuple[tuple[Examples, Examples], ...]:
    """The rows to train on, and those to evaluate on, of each table.

    Raises:
        LNTuningError: The data is at fault.
    """
    columns, tables = options.columns, []
    for name, default in (("text_column", "text"), ("label_column", "label")):
        if getattr(columns, name) != default:
            raise ConfigError(
                Argument(name),
                f" does not go with the task similarity, whose columns are {list_forms()}",
            )
    source, eval_split, eval_flag = choose_evaluation(columns, options.data)
    bad_rows = "skip" if columns.skip_bad_rows else "refuse"
    for path in (options.data, *options.more_data):
        is_first = not tables
        flag, split = (
            ("--data", columns.train_split or "train") if is_first else ("--more-data", None)
        )
        training = read_examples(path, flag=flag, bad_rows=bad_rows, split=split)
        if not is_first and training.form != tables[0][0].form:
            raise DataError(
                Argument("more_data", str(path)),
                f" has rows of the form {training.form}, and ",
                Argument("data"),
                f" of {tables[0][0].form}: adapters that share a step need one form",
            )
        if source is None and len(training.texts) < 2:
            raise DataError(
                f"{path} holds one row, too few to hold any out; pass ", Argument("eval_data")
            )
        if source is None:
            fraction = 0.1 if columns.eval_fraction is None else columns.eval_fraction
            whole = np.zeros(len(training.texts), np.int32)
            rows, held_out = split_rows(whole, fraction, options.seed)
            evaluation, training = training.take(held_out), training.take(rows)
        else:
            evaluation = read_examples(source, flag=eval_flag, bad_rows=bad_rows, split=eval_split)
        larger = (", or a larger ", Argument("eval_fraction"))
        check_measurable(evaluation, ("; pass ", Argument("eval_data"), larger))
        kept = draw_rows(np.arange(len(training.texts)), columns.max_train_rows, options.seed)
        tables.append((training.take(kept), evaluation))
    return tuple(tables)


def prepare(
    options: TaskOptions,
    data: Sequence[tuple[Examples, Examples]],
    say: Callable[[str], None] = lambda line: None,
    mesh: Any = None,
) -> tuple[TextSimilarity, ...]:
    """Load the model, tokenise the texts and say what there is; gives one task a table."""
    import lntune_jax as lnt

    check_batch_sizes(mesh, batch_size=options.batch_size)
    encoding = options.encoding
    tokenizer = load_tokenizer(options.model, options.revision)
    model, pooling = load_encoder(options.model, encoding, mesh=mesh, revision=options.revision)
    config = tuning_config(
        options.model,
        model.params,
        model.fresh,
        options.targets,
        "FEATURE_EXTRACTION",
        options.revision,
    )
    max_length = encoding.max_length or MAX_LENGTH
    limit = min(max_length, position_limit(model, tokenizer))
    every = [part for table in data for part in table]
    scale = choose_scale(every, say=say)

    def encode_part(part: Examples) -> EncodedExamples:
        texts = [text for row in part.texts for text in row]
        tokens = encode_shared(tokenizer, texts, limit, model.config.vocab_size, mesh)
        return EncodedExamples(part.form, _fold(tokens, part), part.scores / scale, part.places)

    pairs = [(encode_part(training), encode_part(evaluation)) for training, evaluation in data]
    lengths = np.concatenate([part.lengths for pair in pairs for part in pair])
    buckets = choose_lengths(lengths, encoding.buckets, limit)
    say(str(lnt.report_params(model.params, config, name_map=model.name_map)))
    for line in describe_memory(model):
        say(line)
    if config.modules_to_save:
        say(f"trained whole: {', '.join(config.modules_to_save)}")
    say(f"pooling: {pooling}{'' if encoding.pooling == pooling else ' (--pooling)'}")
    for training, evaluation in pairs:
        say(
            f"rows: {len(training.tokens):,} to train on ({training.form}), "
            f"{len(evaluation.tokens):,} to evaluate on ({evaluation.form}); padded to "
            f"{', '.join(map(str, buckets))} tokens"
        )
    cut = int((lengths >= limit).sum())
    if cut:
        say(f"{cut:,} rows have a text that fills or exceeds {limit} tokens (--max-length)")
    record = write_record(NAME, Record(data[0][0].form, pooling, max_length, encoding.dtype, scale))
    return tuple(
        TextSimilarity(
            model,
            config,
            training,
            evaluation,
            buckets,
            padding_of(tokenizer),
            record,
            mesh,
            options.seed,
            table[0].unit,
        )
        for table, (training, evaluation) in zip(data, pairs, strict=True)
    )


def _fold(tokens: Sequence[np.ndarray], part: Examples) -> tuple[tuple[np.ndarray, ...], ...]:
    """The tokens of all texts, by row again."""
    each = len(part.texts[0])
    return tuple(tuple(tokens[at : at + each]) for at in range(0, len(tokens), each))


def choose_scale(
    parts: Sequence[Examples], least: float = 1.0, say: Callable[[str], None] = lambda line: None
) -> float:
    """What scores are divided by to lie between 0 and 1: the largest one, where one is above 1."""
    scores = [part.scores.max() for part in parts if part.form == "scored"]
    scale = float(max([least, *scores]))
    if scale > 1:
        say(f"scores: from 0 to {scale:g}, divided by {scale:g}")
    return scale


def similarity_loss(embed: Callable[..., Any], form: str) -> Callable[..., Any]:
    """The mean loss of a batch, over the rows whose weight is not zero.

    Rows with a score: the squared distance of cosine and score (CosineSimilarityLoss of
    sentence-transformers). Others: the cross entropy of finding a row's positive among the
    positives and negatives of all rows of the batch (MultipleNegativesRankingLoss).

    Args:
        embed: From `make_embed`.
        form: What a row is.

    Returns:
        `loss_fn(params, batch, rng=None)`; with an `rng`, dropout is on.
    """
    import jax.numpy as jnp
    import optax

    from ..training import WeightedLoss

    def loss_fn(params: Any, batch: Mapping[str, Any], rng: Any = None) -> Any:
        rows, texts, length = batch["input_ids"].shape
        flat = (batch[name].reshape(-1, length) for name in ("input_ids", "attention_mask"))
        vectors = embed(params, *flat, rng).reshape(rows, texts, -1)
        weights, first = batch["weights"], vectors[:, 0]
        if form == "scored":
            losses = jnp.square((first * vectors[:, 1]).sum(axis=-1) - batch["scores"])
        else:
            candidates = jnp.concatenate([vectors[:, text] for text in range(1, texts)])
            logits = SCALE * jnp.matmul(first, candidates.T, precision="highest")
            # A row that fills the batch up repeats another; finite, as all may do so.
            is_real = jnp.tile(weights, texts - 1) > 0
            logits = jnp.where(is_real, logits, -1e9)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(rows))
            losses = jnp.where(weights > 0, losses, 0.0)
        return WeightedLoss((losses * weights).sum(), weights.sum())

    return loss_fn


def evaluate_described(described: Any, settings: Any, console: Any, notes: Any) -> dict[str, Any]:
    """Print the figures of a table with the adapter and without it, and give them by name.

    Args:
        described: The adapter, of a `Record` of this file.
        settings: Of `lntune-jax evaluate`.
        console: Where results go.
        notes: Where everything else goes.

    Raises:
        LNTuningError: If the base, the adapter or the data is missing or does not fit.
    """
    for name in ("text_column", "label_column"):
        if getattr(settings, name) is not None:
            raise ConfigError(
                f"--{name.replace('_', '-')}: {described.directory} is of the task similarity, "
                f"whose columns are {list_forms()}"
            )
    bad_rows = "skip" if settings.skip_bad_rows else "refuse"
    examples = read_examples(settings.data, bad_rows=bad_rows, split=settings.split)
    check_measurable(examples)
    trained = _load(described)
    scale = choose_scale(
        [examples], described.task.score_scale, lambda line: notes.print(line, markup=False)
    )
    texts = [text for row in examples.texts for text in row]
    tokens = trained.encode(texts)
    rows = EncodedExamples(
        examples.form, _fold(tokens, examples), examples.scores / scale, examples.places
    )
    figures = {}
    for name, is_tuned in (("", True), ("base_", False)):
        found = trained.embed(tokens, settings.trained, is_tuned)
        measured = measure(rows, found.reshape(len(rows.tokens), -1, found.shape[-1]))
        figures |= {f"{name}{each}": value for each, value in measured.items()}
    known = {each.name: each.label for each in _METRICS_OF[examples.form]} | {"loss": "loss"}
    for name, label in known.items():
        told = f"{label} {figures[name]:.4f} (without the adapter: {figures['base_' + name]:.4f})"
        console.print(told, markup=False, soft_wrap=True)
    console.print(f"rows: {len(examples.texts):,} ({examples.form})", markup=False)
    count = len(examples.texts)
    return {"data": str(settings.data), "form": examples.form, "rows": count, **figures}


def predict_described(described: Any, settings: Any) -> Iterator[dict[str, Any]]:
    """The embedding of each text, in the order given; a row that cannot be read says why.

    Args:
        described: As for `evaluate_described`.
        settings: Of `lntune-jax predict`.

    Raises:
        LNTuningError: As for `evaluate_described`.
    """
    texts, places, bad = settings.text, tuple(range(len(settings.text))), ()
    if settings.data is not None:
        table = read_table(settings.data, settings.text_column or "text", bad_rows="mark")
        texts, places, bad = table.texts, table.places, table.bad
    trained = _load(described)
    vectors = trained.embed(trained.encode(texts), settings.trained, True)
    rows = {
        place: {"text": text, "embedding": [round(float(value), 7) for value in vector]}
        for place, text, vector in zip(places, texts, vectors, strict=True)
    }
    rows |= {row.place: {"text": row.text, "error": describe_bad_rows([row])} for row in bad}
    yield from (rows[place] for place in sorted(rows))


class _Trained(NamedTuple):
    """A base, the same with an adapter in place, and how texts reach it."""

    model: Any
    params: Any
    config: Any
    tokenizer: Any
    record: Record

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, ...]:
        limit = min(self.record.max_length, position_limit(self.model, self.tokenizer))
        return encode(self.tokenizer, texts, limit, self.model.config.vocab_size)

    def embed(self, tokens: Sequence[np.ndarray], trained: Any, is_tuned: bool) -> np.ndarray:
        """Vectors of texts, with the adapter or without it."""
        import lntune_jax as lnt

        params = self.params if is_tuned else self.model.params
        halves = lnt.partition_params(params, self.config, name_map=self.model.name_map)
        lengths = np.asarray([len(each) for each in tokens])
        buckets = choose_lengths(lengths, trained.buckets, self.record.max_length)
        embedder = Embedder(make_embed(self.model.apply, self.record.pooling))
        padding = padding_of(self.tokenizer)
        rows = list_texts(tokens)
        return embedder.measure(*halves, rows, trained.batch_size, buckets, padding)


def _load(described: Any) -> _Trained:
    import lntune_jax as lnt

    record = described.task
    encoding = Encoding(pooling=record.pooling, dtype=record.dtype, quantize=described.quantize)
    model, _ = load_encoder(described.model, encoding, revision=described.revision)
    params = lnt.restore_adapter(described.directory, model.params)
    return _Trained(
        model, params, described.config, load_tokenizer(described.model, described.revision), record
    )
