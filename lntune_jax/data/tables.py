"""Texts and labels of a csv, tsv, jsonl or parquet file.

What is wrong in the rows is said all at once, in one sentence with the file, the lines (1 is the
header of a csv; a Parquet file has row numbers) and the flag to change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..errors import DataError
from ..messages import nearest, warn
from .hub_tables import is_dataset, read_dataset
from .readers import RawTable, is_missing, read_raw

BadRows = Literal["refuse", "skip", "mark"]

# So many bad rows are named; of more there is a count.
_MOST_NAMED = 20


class BadRow(NamedTuple):
    """A row that cannot be used.

    Attributes:
        place: The line in which it begins, or its number in Parquet.
        unit: `line` or `row`.
        reason: What is wrong with it.
        text: Its text, where it has one.
    """

    place: int
    unit: str
    reason: str
    text: str | None = None


@dataclass(frozen=True)
class Table:
    """The rows of a data file.

    Attributes:
        path: The file, for messages.
        texts: One text a row.
        pairs: A second text a row, or `None` if none were asked for.
        labels: One label a row as it is written in the file, or `None` if none were asked for.
        places: Where each row is: the line in which it begins, or its number in Parquet.
        unit: `line` or `row`.
        bad: The rows left out, in the file's order.
    """

    path: Path
    texts: tuple[str, ...]
    labels: tuple[str, ...] | None
    places: tuple[int, ...]
    unit: str
    bad: tuple[BadRow, ...] = ()
    pairs: tuple[str, ...] | None = None


def read_table(
    path: Path,
    text_column: str,
    label_column: str | None = None,
    *,
    pair_column: str | None = None,
    flag: str = "--data",
    bad_rows: BadRows = "refuse",
    split: str | None = None,
) -> Table:
    r"""Read the text column, and the label column if one is named.

    Warns where the file is not in UTF-8 or its delimiter is not the usual one, and of rows that
    are skipped.

    Args:
        path: A `.csv`, `.tsv`, `.jsonl`, `.ndjson` or `.parquet` file.
        text_column: Name of the column with the text.
        label_column: Name of the column with the label; `None` reads texts only.
        pair_column: Name of the column with a second text; `None` reads none.
        flag: The flag that gave `path`, for messages.
        bad_rows: What becomes of rows that lack a text or a label, or cannot be read: an error
            names them; or they are left out with a warning; or left out, for the caller to say.
        split: Which split is read where `path` is a dataset; `None` takes files alone.

    Returns:
        The rows, in the file's order.

    Raises:
        DataError: If the file is missing, empty or of another kind, a column is missing, there are
            bad rows and none may be, or no other rows.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.csv"
        >>> _ = path.write_text("text,label\ngood,1\n,0\n")
        >>> table = read_table(path, "text", "label", bad_rows="mark")
        >>> table.texts, table.labels, table.places, table.bad[0].place
        (('good',), ('1',), (2,), 3)
    """
    named = {"--text-column": text_column, "--text-pair-column": pair_column}
    named |= {"--label-column": label_column}
    wanted = {flag: name for flag, name in named.items() if name is not None}
    raw = _read(path, list(wanted.values()), flag, split)
    _check_columns(raw, wanted, path)
    _say_note(raw, path, flag)
    bad = [BadRow(place, raw.unit, reason) for place, reason in raw.malformed.items()]
    texts, pairs, labels, places = [], [], [], []
    values = raw.columns[text_column]
    found = values if label_column is None else raw.columns[label_column]
    seconds = values if pair_column is None else raw.columns[pair_column]
    for place, text, second, value in zip(raw.places, values, seconds, found, strict=True):
        reason = find_text_fault(text, text_column)
        if not reason and pair_column is not None:
            reason = find_text_fault(second, pair_column).replace("--text-", "--text-pair-")
        label = None if label_column is None else write_label(value)
        if not reason and label_column is not None:
            reason = _find_label_fault(value, label, label_column)
        if reason:
            bad.append(BadRow(place, raw.unit, reason, _printable(text)))
            continue
        texts.append(text)
        pairs.append(second)
        labels.append(label)
        places.append(place)
    bad.sort()
    settle_bad_rows(bad, len(texts), path, flag, bad_rows)
    return Table(
        path,
        tuple(texts),
        None if label_column is None else tuple(labels),
        tuple(places),
        raw.unit,
        tuple(bad),
        None if pair_column is None else tuple(pairs),
    )


def read_present(
    path: Path,
    candidates: Sequence[str],
    flag: str,
    split: str | None = None,
    hint: str = "choose a column of texts with --text-column",
) -> RawTable:
    """Read those of some columns that a table has.

    Args:
        path: As for `read_table`.
        candidates: Names of columns.
        flag: The flag that gave `path`, for messages.
        split: As for `read_table`.
        hint: What to do where none of the columns is there.

    Returns:
        The values of each column that is there, by name, and where the rows are.

    Raises:
        DataError: If the file is missing, empty or of another kind, or has none of the columns:
            then the message lists what it has.
    """
    raw = _read(path, candidates, flag, split)
    if raw.names or not raw.malformed:
        _check_any_column(raw, candidates, path, hint)
    _say_note(raw, path, flag)
    if not raw.places and not raw.malformed:
        raise DataError(f"{flag} {path} holds a header but no rows")
    return raw


def settle_bad_rows(
    bad: Sequence[BadRow], good: int, path: Path, flag: str, bad_rows: BadRows
) -> None:
    """Raise or warn where a file has bad rows.

    Args:
        bad: The bad rows, in the file's order.
        good: How many others there are.
        path: The file.
        flag: The flag that gave `path`.
        bad_rows: As for `read_table`.

    Raises:
        DataError: If there are bad rows and none may be, or there is no other row.
    """
    if not bad:
        if not good:
            raise DataError(f"{flag} {path} holds a header but no rows")
        return
    count = f"{len(bad):,} bad row{'s' * (len(bad) > 1)}"
    told = f"{flag} {path} has {count}: {describe_bad_rows(bad)}"
    if not good:
        raise DataError(f"{told}; it has no other row")
    if bad_rows == "refuse":
        raise DataError(f"{told}; mend them, or leave them out with --skip-bad-rows")
    if bad_rows == "skip":
        left = f"{good:,} row{'s are' if good > 1 else ' is'} left"
        warn(f"{told}; left out (--skip-bad-rows), {left}", UserWarning)


def describe_bad_rows(bad: Iterable[BadRow]) -> str:
    """What is wrong in which rows, the first ones by place.

    Example:
        >>> rows = [BadRow(3, "line", "no text"), BadRow(4, "line", "no label")]
        >>> describe_bad_rows([*rows, BadRow(9, "line", "no text")])
        'lines 3, 9: no text; line 4: no label'
    """
    rows = list(bad)
    groups: dict[str, list[BadRow]] = {}
    for row in rows[:_MOST_NAMED]:
        groups.setdefault(row.reason, []).append(row)
    parts = [
        f"{name_places(own[0].unit, [row.place for row in own])}: {reason}"
        for reason, own in groups.items()
    ]
    more = len(rows) - _MOST_NAMED
    return "; ".join(parts) + (f"; and {more:,} more" if more > 0 else "")


def name_places(unit: str, places: Sequence[int]) -> str:
    """Lines or rows by their numbers.

    Example:
        >>> name_places("line", [3]), name_places("row", [3, 4])
        ('line 3', 'rows 3, 4')
    """
    return f"{unit}{'s' * (len(places) > 1)} {', '.join(map(str, places))}"


def find_text_fault(text: Any, column: str) -> str:
    """Why a value is no text; empty if it is one.

    Example:
        >>> find_text_fault("good", "text"), find_text_fault(" ", "text")
        ('', "no text in column 'text'")
    """
    if is_missing(text) or text == "":
        return f"no text in column {column!r}"
    if not isinstance(text, str):
        return f"{type(text).__name__}, not text, in column {column!r} (--text-column)"
    if not text.strip():
        return f"no text in column {column!r}"
    return "" if _is_unicode(text) else f"bytes that are no UTF-8 in column {column!r}"


def write_label(value: Any) -> str | None:
    """A label as text: a number as it is, true and false as JSON and csv files write them.

    Example:
        >>> [write_label(value) for value in (1, 1.0, True, " a ", float("nan"), None)]
        ['1', '1.0', 'true', 'a', None, None]
    """
    if is_missing(value):
        return None
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def _read(path: Path, wanted: Sequence[str], flag: str, split: str | None) -> RawTable:
    if split is not None and is_dataset(path):
        return read_dataset(path, wanted, flag, split)
    return read_raw(path, wanted, flag)


def _find_label_fault(value: Any, label: str | None, column: str) -> str:
    if not label:
        return f"no label in column {column!r}"
    if isinstance(value, list | dict | bytes):
        kind = type(value).__name__
        return f"{kind}, not a word or a number, in column {column!r} (--label-column)"
    return "" if _is_unicode(label) else f"bytes that are no UTF-8 in column {column!r}"


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(text: Any) -> str | None:
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) else None


def _say_note(raw: RawTable, path: Path, flag: str) -> None:
    if raw.note:
        warn(f"{flag} {path} is read {raw.note}", UserWarning)


def _check_columns(raw: RawTable, wanted: Mapping[str, str], path: Path) -> None:
    names = raw.names
    if not names and raw.malformed:
        raise DataError(
            f"{path} has no row that can be read: "
            f"{describe_bad_rows(BadRow(*each) for each in _malformed(raw))}"
        )
    for flag, column in wanted.items():
        if names.count(column) > 1:
            raise DataError(f"{path} has {names.count(column)} columns named {column!r}")
        if column not in names:
            available = ", ".join(repr(name) for name in names)
            raise DataError(
                f"{path} has no column {column!r}; it has {available}{nearest(column, names)}; "
                f"choose one with {flag}"
            )


def _malformed(raw: RawTable) -> list[tuple[int, str, str]]:
    return [(place, raw.unit, reason) for place, reason in raw.malformed.items()]


def _check_any_column(raw: RawTable, wanted: Sequence[str], path: Path, hint: str) -> None:
    names = raw.names
    for column in wanted:
        if names.count(column) > 1:
            raise DataError(f"{path} has {names.count(column)} columns named {column!r}")
    if not set(wanted) & set(names):
        raise DataError(
            f"{path} has none of the columns {', '.join(map(repr, wanted))}; it has "
            f"{', '.join(map(repr, names))}; {hint}"
        )
