"""Sentences as words, with a label for each word: tables with lists, and CoNLL text.

What is wrong in the rows is said all at once, with their places in the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError
from .readers import is_missing, read_text
from .tables import BadRow, BadRows, find_text_fault, read_present, settle_bad_rows, write_label
from .tokens import IGNORED

# What --text-column and --label-column are where nobody gives them, and what then is looked for.
_WORDS = {"text": (("tokens", "words"), ("text",))}
_LABELS = {"label": (("labels", "tags", "ner_tags"), ("label",))}
_CONLL = (".conll", ".txt")
_WITHOUT_LISTS = (".csv", ".tsv")


@dataclass(frozen=True)
class Sentences:
    """The rows of a data file.

    Attributes:
        path: The file, for messages.
        words: The words of each row.
        labels: As many labels; nothing where none were asked for.
        places: Where each row is: the line in which it begins, or its number in Parquet.
        unit: `line` or `row`.
        columns: The columns that were read; as they were asked for where the file has none.
        bad: The rows left out, in the file's order.
    """

    path: Path
    words: tuple[tuple[str, ...], ...]
    labels: tuple[tuple[str, ...], ...]
    places: tuple[int, ...]
    unit: str
    columns: tuple[str, str]
    bad: tuple[BadRow, ...] = ()


def read_sentences(
    path: Path,
    text_column: str = "text",
    label_column: str = "label",
    *,
    flag: str = "--data",
    bad_rows: BadRows = "refuse",
    split: str | None = None,
    labelled: bool = True,
) -> Sentences:
    r"""Read words and their labels.

    Args:
        path: A `.jsonl`, `.ndjson` or `.parquet` table, or a `.conll` or `.txt` file with a line
            for each word, its label last, and a blank line between sentences.
        text_column: The column with lists of words; `text` looks for `tokens` or `words` first.
        label_column: The column with lists of labels; `label` looks for `labels`, `tags` or
            `ner_tags` first.
        flag: The flag that gave `path`, for messages.
        bad_rows: As for `tables.read_table`.
        split: As for `tables.read_table`.
        labelled: Whether labels are read too. Without them a row may be a text as well, which is
            split at blanks, and a table may be `.csv` or `.tsv`.

    Raises:
        DataError: If the file is missing, empty or of another kind, a column is missing, there are
            bad rows and none may be, or no other rows.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.conll"
        >>> _ = path.write_text("Ada NNP B-PER\nsings VBZ O\n\nParis NNP B-LOC\n")
        >>> found = read_sentences(path)
        >>> found.words, found.labels, found.places
        ((('Ada', 'sings'), ('Paris',)), (('B-PER', 'O'), ('B-LOC',)), (1, 4))
    """
    suffix = path.suffix.lower()
    if suffix in _CONLL:
        columns, unit = (text_column, label_column), "line"
        rows, bad = _read_conll(path, flag, labelled)
    else:
        if suffix in _WITHOUT_LISTS and labelled:
            raise DataError(
                f"{flag} {path}: a row is a list of words and a list of labels, which {suffix} "
                "does not have: give .jsonl, .parquet or .conll"
            )
        columns, unit, rows, bad = _read_lists(
            path, text_column, label_column, flag, split, labelled
        )
    bad.sort()
    settle_bad_rows(bad, len(rows), path, flag, bad_rows)
    return Sentences(
        path,
        tuple(row.words for row in rows),
        tuple(row.labels for row in rows) if labelled else (),
        tuple(row.place for row in rows),
        unit,
        columns,
        tuple(bad),
    )


class _Row(NamedTuple):
    place: int
    words: tuple[str, ...]
    labels: tuple[str, ...]


def _read_lists(
    path: Path, text_column: str, label_column: str, flag: str, split: str | None, labelled: bool
) -> tuple[tuple[str, str], str, list[_Row], list[BadRow]]:
    candidates = _list_candidates(text_column, _WORDS)
    label_candidates = _list_candidates(label_column, _LABELS) if labelled else []
    raw = read_present(path, candidates + label_candidates, flag, split)
    names = tuple(raw.columns)
    text_column = _choose(candidates, names, text_column, _WORDS, "--text-column", path, raw.names)
    if labelled:
        label_column = _choose(
            label_candidates, names, label_column, _LABELS, "--label-column", path, raw.names
        )
    rows, bad = [], [BadRow(place, raw.unit, reason) for place, reason in raw.malformed.items()]
    values = raw.columns[text_column]
    tags = raw.columns[label_column] if labelled else [[]] * len(values)
    for place, words, labels in zip(raw.places, values, tags, strict=True):
        if isinstance(words, str) and not labelled:
            words = words.split()
        reason = _find_words_fault(words, text_column)
        if labelled and not reason:
            reason = _find_labels_fault(labels, len(words), label_column)
        if reason:
            bad.append(BadRow(place, raw.unit, reason))
            continue
        rows.append(_Row(place, tuple(words), tuple(str(write_label(each)) for each in labels)))
    return (text_column, label_column), raw.unit, rows, bad


def _list_candidates(column: str, usual: dict[str, tuple[tuple[str, ...], ...]]) -> list[str]:
    return [name for names in usual.get(column, ((column,),)) for name in names]


def _choose(
    candidates: Sequence[str],
    present: Sequence[str],
    column: str,
    usual: dict[str, tuple[tuple[str, ...], ...]],
    flag: str,
    path: Path,
    every: Sequence[str],
) -> str:
    """The column to read: the one that was asked for, or the one that has a usual name."""
    for names in usual.get(column, ((column,),)):
        found = [name for name in names if name in present]
        if len(found) > 1:
            raise DataError(f"{path} has {' and '.join(map(repr, found))}; choose one with {flag}")
        if found:
            return found[0]
    raise DataError(
        f"{path} has no column {' or '.join(map(repr, candidates))}; it has "
        f"{', '.join(map(repr, every))}; choose one with {flag}"
    )


def _find_words_fault(words: Any, column: str) -> str:
    if is_missing(words) or words == [] or words == "":
        return f"no words in column {column!r}"
    if not isinstance(words, list):
        return f"{type(words).__name__}, not a list of words, in column {column!r} (--text-column)"
    for number, word in enumerate(words, start=1):
        if not isinstance(word, str):
            return f"word {number} in column {column!r} is {type(word).__name__}, not text"
    return find_text_fault(" ".join(words), column)


def _find_labels_fault(labels: Any, count: int, column: str) -> str:
    if not isinstance(labels, list):
        what = "nothing" if is_missing(labels) else type(labels).__name__
        return f"{what}, not a list of labels, in column {column!r} (--label-column)"
    if len(labels) != count:
        return f"{count} words but {len(labels)} labels in column {column!r}"
    for number, label in enumerate(labels, start=1):
        if isinstance(label, list | dict | bytes):
            return f"label {number} in column {column!r} is {type(label).__name__}, not a word"
        # As a number, what marks places that have no label.
        if not write_label(label) or label == IGNORED:
            return f"no label for word {number} in column {column!r}"
    return find_text_fault(" ".join(map(str, labels)), column)


def _read_conll(path: Path, flag: str, labelled: bool) -> tuple[list[_Row], list[BadRow]]:
    if not path.is_file():
        raise DataError(f"{flag} {path} is not a file")
    rows, bad, width = [], [], 0
    for lines in _list_blocks(read_text(path, flag)):
        width = width or len(lines[0][1])
        faults = [_find_line_fault(columns, width, labelled) for _, columns in lines]
        bad += [
            BadRow(line, "line", fault)
            for (line, _), fault in zip(lines, faults, strict=True)
            if fault
        ]
        if not any(faults):
            words = tuple(columns[0] for _, columns in lines)
            rows.append(_Row(lines[0][0], words, tuple(columns[-1] for _, columns in lines)))
    if not rows and not bad:
        raise DataError(f"{flag} {path} is empty")
    return rows, bad


def _list_blocks(content: str) -> Iterator[list[tuple[int, list[str]]]]:
    """The lines between blank ones, by number, split into columns."""
    block: list[tuple[int, list[str]]] = []
    for number, line in enumerate(content.split("\n"), start=1):
        # Not split(): a word may hold other blanks, as the one that does not break.
        parts = line.split("\t") if "\t" in line else line.split(" ")
        columns = [part.strip(" ") for part in parts if part.strip(" ")]
        if columns and columns[0] != "-DOCSTART-":
            block.append((number, columns))
        elif block:
            yield block
            block = []
    if block:
        yield block


def _find_line_fault(columns: Sequence[str], width: int, labelled: bool) -> str:
    if labelled and len(columns) < 2:
        return "a word without a label"
    return (
        "" if len(columns) == width else f"{len(columns)} columns, where the first line has {width}"
    )
