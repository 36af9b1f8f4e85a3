"""Examples of what is similar: pairs of texts with a score, positive pairs, or triplets.

What a row is follows from the columns. All bad rows are said at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ..errors import DataError
from ..messages import Message
from .batches import PlannedBatch
from .tables import BadRow, BadRows, find_text_fault, read_present, settle_bad_rows

Form = Literal["scored", "pairs", "triplets"]
# The columns of each form; the score is no text.
COLUMNS = {
    "scored": ("sentence1", "sentence2", "score"),
    "pairs": ("anchor", "positive"),
    "triplets": ("anchor", "positive", "negative"),
}


class Examples(NamedTuple):
    """The rows of a table: what they are, their texts, their scores, and where they are."""

    form: Form
    texts: tuple[tuple[str, ...], ...]
    scores: np.ndarray
    places: np.ndarray
    unit: str
    path: Path

    def take(self, numbers: np.ndarray) -> Examples:
        """The rows with these numbers, in this order."""
        texts = tuple(self.texts[number] for number in numbers)
        return self._replace(texts=texts, scores=self.scores[numbers], places=self.places[numbers])


def read_examples(
    path: Path, *, flag: str = "--data", bad_rows: BadRows = "refuse", split: str | None = None
) -> Examples:
    r"""Read a table, whose columns say what a row is.

    Args:
        path: As for `tables.read_table`.
        flag: The flag that gave `path`, for messages.
        bad_rows: As for `tables.read_table`.
        split: As for `tables.read_table`.

    Raises:
        DataError: If the file is missing, empty or malformed, its columns are of no form or of
            several, or there are bad rows and none may be.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.csv"
        >>> _ = path.write_text("sentence1,sentence2,score\na cat,a dog,0.4\n")
        >>> found = read_examples(path)
        >>> found.form, found.texts, found.scores.tolist()
        ('scored', (('a cat', 'a dog'),), [0.4])
    """
    candidates = list(dict.fromkeys(name for names in COLUMNS.values() for name in names))
    hint = f"the columns must be {list_forms()}"
    raw = read_present(path, candidates, flag, split, hint=hint)
    whole = [form for form, names in COLUMNS.items() if set(names) <= raw.columns.keys()]
    # A triplet is a pair with more.
    whole = [form for form in whole if form != "pairs" or "triplets" not in whole]
    if len(whole) != 1:
        what = f"columns for {' and '.join(whole)}" if whole else ", ".join(map(repr, raw.columns))
        raise DataError(f"{flag} {path} has {what}; {hint}")
    form: Any = whole[0]
    bad = [BadRow(place, raw.unit, reason) for place, reason in raw.malformed.items()]
    texts, scores, places = [], [], []
    values = zip(*(raw.columns[name] for name in COLUMNS[form]), strict=True)
    for place, row in zip(raw.places, values, strict=True):
        own, score = (row[:2], row[2]) if form == "scored" else (row, 0.0)
        faults = [_find_fault(text, name) for text, name in zip(own, COLUMNS[form], strict=False)]
        number = _read_score(score)
        reason = next(filter(None, [*faults, _find_score_fault(number, score)]), "")
        if reason:
            bad.append(BadRow(place, raw.unit, reason))
            continue
        texts.append(own)
        scores.append(number)
        places.append(place)
    settle_bad_rows(sorted(bad), len(texts), path, flag, bad_rows)
    return Examples(form, tuple(texts), np.asarray(scores), np.asarray(places), raw.unit, path)


def _find_fault(text: Any, column: str) -> str:
    """Why a value is no text; empty if it is one."""
    return find_text_fault(text, column).removesuffix(" (--text-column)")


def _read_score(value: Any) -> float:
    """A score; NaN where it is no number."""
    try:
        return float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return float("nan")


def _find_score_fault(number: float, value: Any) -> str:
    if 0 <= number < float("inf"):
        return ""
    found = "no score" if value is None or value == "" else f"the score {str(value)[:40]!r}"
    return f"{found} in column 'score', which must be a number of at least 0"


def list_forms() -> str:
    """The columns of each form, for messages."""
    return "; or ".join(", ".join(names) for names in COLUMNS.values())


def check_measurable(examples: Examples, hint: Message = "") -> None:
    """Refuse rows on which no correlation is defined.

    Args:
        examples: The rows.
        hint: What to do.

    Raises:
        DataError: There are too few, or all have one score.
    """
    if examples.form == "scored" and len(set(examples.scores.tolist())) < 2:
        count = len(examples.scores)
        raise DataError(
            f"{examples.path}: the {count:,} row{'s' * (count > 1)} to evaluate on have one score "
            f"({examples.scores[0]:g}), and a correlation needs two",
            hint,
        )


@dataclass(frozen=True)
class EncodedExamples:
    """Rows of two or three encoded texts.

    Attributes:
        form: What a row is.
        tokens: Token ids of each text of each row.
        scores: Scores between 0 and 1, shape (rows,); of no meaning without a score.
        numbers: The row or line of the data file that each one is.
    """

    form: Form
    tokens: tuple[tuple[np.ndarray, ...], ...]
    scores: np.ndarray
    numbers: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in the longest text of each row, shape (rows,)."""
        return np.asarray([max(map(len, row)) for row in self.tokens], np.int64)

    def list_numbers(self, rows: np.ndarray) -> list[int]:
        """The rows of the data file that some of these are."""
        return self.numbers[rows].tolist()


def assemble_examples(
    planned: PlannedBatch, rows: EncodedExamples, span: tuple[int, int], padding: int
) -> dict[str, Any]:
    """Rows `span` of one batch; past its last one, the first with weight 0.

    Returns:
        `input_ids` and `attention_mask` of shape (rows, texts, length), `scores` and `weights` of
        shape (rows,).
    """
    places = np.arange(*span)
    real = places < len(planned.rows)
    numbers = planned.rows[np.where(real, places, 0)]
    shape = (len(numbers), len(rows.tokens[0]), planned.length)
    input_ids, attention_mask = np.full(shape, padding, np.int32), np.zeros(shape, np.int32)
    for position, number in enumerate(numbers):
        for text, tokens in enumerate(rows.tokens[number]):
            input_ids[position, text, : len(tokens)] = tokens
            attention_mask[position, text, : len(tokens)] = 1
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "scores": rows.scores[numbers].astype(np.float32),
        "weights": real.astype(np.float32),
    }
