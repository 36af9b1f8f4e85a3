"""Token classification: a label for each word, cross entropy, entity F1 by seqeval's rules.

The first piece of a word has the word's label, and the loss and the figures count no other one,
as Hugging Face's `run_ner` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data.batches import PlannedBatch, choose_lengths
from ..data.encode import load_tokenizer, padding_of
from ..data.hub_tables import choose_evaluation
from ..data.labels import draw_rows, sort_labels, split_rows
from ..data.packing import LanguageRows
from ..data.pieces import describe_losses, encode_sentences, make_rows, place_pieces, take_rows
from ..data.sentences import Sentences, read_sentences
from ..data.spread import check_batch_sizes
from ..data.tables import describe_bad_rows
from ..data.tokens import IGNORED
from ..errors import DataError
from ..messages import Argument, warn
from .base import Metric, ModelTask, write_record
from .entities import score_entities
from .labeller import Labeller, label_pieces
from .loading import describe_memory, load_classifier, position_limit, tuning_config
from .options import ComputeType, Encoding, TaskOptions

NAME = "token_cls"
MAX_LENGTH = 128
METRICS = (
    Metric("entity_f1", "entity F1", is_share=True),
    Metric("token_accuracy", "token accuracy", is_share=True),
)


@dataclass(frozen=True)
class Record:
    """How a model labels words.

    Attributes:
        labels: Label names; the position is the class number.
        max_length: The length at which rows are cut.
        dtype: Number format of the frozen weights.
        seed: Seed of weights that the base model lacks and that did not train.
        text_column: The training table's column of words.
        label_column: The training table's column of labels.
        new_head: Whether the head was drawn anew, though the base model has one.
    """

    labels: tuple[str, ...] = ()
    max_length: int = 128
    dtype: ComputeType = "float32"
    seed: int = 0
    text_column: str = "text"
    label_column: str = "label"
    new_head: bool = False


@dataclass(frozen=True)
class TokenClassification(ModelTask):
    """A model of word labels to train; see `tasks.Task` and `tasks.ModelTask`.

    Example:
        >>> [metric.name for metric in TokenClassification.metrics]
        ['entity_f1', 'token_accuracy']
    """

    training: LanguageRows
    evaluation: LanguageRows | None
    learning_rate: float = 5e-3
    metrics: tuple[Metric, ...] = METRICS
    # A new head knows nothing before the first step.
    evaluates_first: bool = False

    def loss_fn(self) -> Callable[..., Any]:
        """The mean cross entropy over the labelled pieces of a batch."""
        from ..training import WeightedLoss

        apply = self.model.apply

        def loss_fn(params: Any, batch: Mapping[str, Any], rng: Any = None) -> Any:
            total, count, _ = label_pieces(apply, params, batch, rng)
            return WeightedLoss(total, count)

        return loss_fn

    def program(self) -> Labeller:
        """The loss and the classes of pieces."""
        return Labeller(self.model.apply, self.mesh)

    def figures(self, found: tuple[float, list[np.ndarray]], rows: Any) -> dict[str, float]:
        """Entity F1, accuracy and loss."""
        loss, classes = found
        names = self.record["labels"]
        true, predicted = _name_targets(rows, names), _name_classes(classes, names)
        return {
            "loss": loss,
            "entity_f1": score_entities(true, predicted)[0].f1,
            "token_accuracy": _accuracy(true, predicted),
        }

    def assemble(self, planned: PlannedBatch, batch_size: int) -> tuple[Mapping[str, Any], int]:
        """The arrays of one batch, and the tokens of its real rows, without padding."""
        batch = place_pieces(planned, self.training, batch_size, self.padding, self.mesh)
        return batch, sum(len(self.training.tokens[number]) for number in planned.rows)


def show_use(record: Mapping[str, Any], run: str) -> str:
    """What to do with a run."""
    del record
    return f"lntune-jax predict --run {run} --text ..."


class Labelled(NamedTuple):
    """Sentences to train on, those to evaluate on (`None`: some of them), and the label names."""

    training: Sentences
    evaluation: Sentences | None
    names: tuple[str, ...]


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
    source, split, eval_flag = choose_evaluation(columns, options.data)

    def read_one(path: Path, flag: str, split: str | None) -> Sentences:
        bad_rows = "skip" if columns.skip_bad_rows else "refuse"
        wanted = columns.text_column, columns.label_column
        return read_sentences(path, *wanted, flag=flag, bad_rows=bad_rows, split=split)

    table = read_one(path, flag, (columns.train_split or "train") if flag == "--data" else None)
    if names is None:
        names = sort_labels(chain.from_iterable(table.labels))
        if len(names) == 1:
            raise DataError(
                f"every word of {path} has the label {names[0]!r}; there must be two or more (",
                Argument("label_column"),
                ")",
            )
    return Labelled(table, None if source is None else read_one(source, eval_flag, split), names)


def prepare(
    options: TaskOptions,
    data: Sequence[Labelled],
    say: Callable[[str], None] = lambda line: None,
    mesh: Any = None,
) -> tuple[TokenClassification, ...]:
    """Load the model, tokenise the words and say what there is; gives one task a table."""
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
        task="TOKEN_CLS",
        revision=options.revision,
    )
    config = tuning_config(
        options.model, model.params, model.fresh, options.targets, "TOKEN_CLS", options.revision
    )
    max_length = encoding.max_length or MAX_LENGTH
    limit = min(max_length, position_limit(model, tokenizer))
    say(str(lnt.report_params(model.params, config, name_map=model.name_map)))
    for line in describe_memory(model):
        say(line)
    say(f"trained whole: {', '.join(config.modules_to_save or ()) or 'nothing'}")
    say(f"labels: {', '.join(names)}")
    parts, vocabulary = [], model.config.vocab_size
    for table in data:
        tables = [each for each in table[:2] if each is not None]
        made = [make_rows(tokenizer, each, names, limit, vocabulary, say, mesh) for each in tables]
        parts.append(_hold_out(options, table, made))
    lengths = np.concatenate([rows.lengths for pair in parts for rows in pair])
    buckets = choose_lengths(lengths, encoding.buckets, limit)
    for training, evaluation in parts:
        say(
            f"rows: {len(training.tokens):,} to train on ({training.targets:,} words), "
            f"{len(evaluation.tokens):,} to evaluate on ({evaluation.targets:,} words); padded to "
            f"{', '.join(map(str, buckets))} tokens"
        )
    padding = padding_of(tokenizer)
    text_column, label_column = data[0].training.columns
    how = names, max_length, encoding.dtype, options.seed, text_column, label_column
    record = Record(*how, encoding.new_head)
    return tuple(
        TokenClassification(
            model,
            config,
            training,
            evaluation,
            buckets,
            padding,
            write_record(NAME, record),
            mesh,
            options.seed,
            table.training.unit,
        )
        for table, (training, evaluation) in zip(data, parts, strict=True)
    )


def _hold_out(
    options: TaskOptions, table: Labelled, made: Sequence[LanguageRows]
) -> tuple[LanguageRows, LanguageRows]:
    rows, columns = made[0], options.columns
    training = np.arange(len(rows.tokens))
    evaluation = made[-1]
    if table.evaluation is None:
        fraction = 0.1 if columns.eval_fraction is None else columns.eval_fraction
        # A row has many labels: it is drawn whatever they are.
        classes = np.zeros(len(rows.tokens), np.int32)
        training, held_out = split_rows(classes, fraction, options.seed)
        evaluation = take_rows(rows, held_out)
    training = draw_rows(training, columns.max_train_rows, options.seed)
    return take_rows(rows, training), evaluation


def _name_classes(classes: Sequence[np.ndarray], names: Sequence[str]) -> list[list[str]]:
    return [[names[int(number)] for number in own] for own in classes]


def _name_targets(rows: LanguageRows, names: Sequence[str]) -> list[list[str]]:
    return _name_classes([labels[labels != IGNORED] for labels in rows.labels], names)


def _accuracy(true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    pairs = zip(chain.from_iterable(true), chain.from_iterable(predicted), strict=True)
    return float(np.mean([one == other for one, other in pairs]))


def evaluate_described(described: Any, settings: Any, console: Any, notes: Any) -> dict[str, Any]:
    """Measure an adapter on a table.

    Args:
        described: The adapter, and what it says of itself.
        settings: The flags of `lntune-jax evaluate`.
        console: Where results are printed.
        notes: Where all else is.

    Returns:
        What is printed, as plain JSON.
    """
    from rich.table import Table as RichTable
    from rich.text import Text

    record: Record = described.task
    table = read_sentences(
        settings.data,
        settings.text_column or record.text_column,
        settings.label_column or record.label_column,
        bad_rows="skip" if settings.skip_bad_rows else "refuse",
        split=settings.split,
    )
    tokenizer, model, limit = _load(described)
    vocabulary = model.config.vocab_size
    rows = make_rows(tokenizer, table, record.labels, limit, vocabulary, notes.print)
    loss, classes = _label_all(described, tokenizer, model, limit, rows, settings.trained)
    true, predicted = _name_targets(rows, record.labels), _name_classes(classes, record.labels)
    whole, types = score_entities(true, predicted)
    accuracy = _accuracy(true, predicted)
    console.print(
        f"entity F1 {whole.f1:.4f}, precision {whole.precision:.4f}, recall {whole.recall:.4f}",
        soft_wrap=True,
    )
    console.print(f"token accuracy {accuracy:.4f}, loss {loss:.4f}", soft_wrap=True)
    shown = RichTable()
    shown.add_column("entity", overflow="fold")
    for name in ("entities", "precision", "recall", "F1"):
        shown.add_column(name, justify="right")
    for name, each in types.items():
        figures = (f"{value:.4f}" for value in (each.precision, each.recall, each.f1))
        shown.add_row(Text(name), f"{each.actual:,}", *figures)
    console.print(shown)
    console.print(f"rows: {len(rows.tokens):,}; words: {rows.targets:,}", soft_wrap=True)
    return {
        "data": str(settings.data),
        "rows": len(rows.tokens),
        "words": rows.targets,
        "entity_f1": whole.f1,
        "entity_precision": whole.precision,
        "entity_recall": whole.recall,
        "token_accuracy": accuracy,
        "loss": loss,
        "entities": {
            name: {
                "count": each.actual,
                "precision": each.precision,
                "recall": each.recall,
                "f1": each.f1,
            }
            for name, each in types.items()
        },
    }


def predict_described(described: Any, settings: Any) -> Iterator[dict[str, Any]]:
    """Label the words of texts, split at blanks; a word that has no piece has the label `None`.

    Args:
        described: The adapter, and what it says of itself.
        settings: The flags of `lntune-jax predict`.
    """
    record: Record = described.task
    words, bad = [text.split() for text in settings.text], ()
    places: Sequence[int] = range(len(words))
    if settings.data is not None:
        column = settings.text_column or record.text_column
        table = read_sentences(settings.data, column, bad_rows="mark", labelled=False)
        words, places, bad = [list(each) for each in table.words], table.places, table.bad
        if bad:
            warn(
                f"--data {settings.data} has bad rows: {describe_bad_rows(bad)}; marked in the "
                "output, the others are labelled",
                UserWarning,
            )
    tokenizer, model, limit = _load(described)
    encoded = encode_sentences(tokenizer, words, limit, model.config.vocab_size)
    for line in describe_losses(encoded, [len(each) for each in words], limit):
        warn(f"{line}; their labels are null", UserWarning)
    labels = tuple(np.where(each.firsts == IGNORED, IGNORED, 0) for each in encoded)
    rows = LanguageRows(tuple(each.tokens for each in encoded), labels, None, ((),) * len(words))
    _, classes = _label_all(described, tokenizer, model, limit, rows, settings.trained)
    found: dict[int, dict[str, Any]] = {
        row.place: {"text": row.text, "error": describe_bad_rows([row])} for row in bad
    }
    for place, own, each, numbers in zip(places, words, encoded, classes, strict=True):
        known = each.firsts[each.firsts != IGNORED].tolist()
        by_word = dict(zip(known, numbers.tolist(), strict=True))
        names = [record.labels[by_word[at]] if at in by_word else None for at in range(len(own))]
        found[place] = {"text": " ".join(own), "words": own, "labels": names}
    return iter([found[place] for place in sorted(found)])


def _load(described: Any) -> tuple[Any, Any, int]:
    """The tokenizer, the base, and how many tokens a row has at most."""
    record: Record = described.task
    tokenizer = load_tokenizer(described.model, described.revision)
    encoding = Encoding(dtype=record.dtype, quantize=described.quantize, new_head=record.new_head)
    count = len(record.labels)
    model = load_classifier(
        described.model,
        encoding,
        labels=count,
        seed=record.seed,
        task="TOKEN_CLS",
        revision=described.revision,
    )
    return tokenizer, model, min(record.max_length, position_limit(model, tokenizer))


def _label_all(
    described: Any, tokenizer: Any, model: Any, limit: int, rows: LanguageRows, trained: Any
) -> tuple[float, list[np.ndarray]]:
    import lntune_jax as lnt

    params = lnt.restore_adapter(described.directory, model.params)
    halves = lnt.partition_params(params, described.config)
    buckets = choose_lengths(rows.lengths, trained.buckets, limit)
    padding = padding_of(tokenizer)
    return Labeller(model.apply).measure(*halves, rows, trained.batch_size, buckets, padding)
