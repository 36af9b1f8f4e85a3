"""Read texts and labels from a csv, tsv, jsonl or parquet file.

pyarrow does the parsing; this module only checks what it gives, so that every fault in a file is
one sentence with the file, the row (1 is the first row of data) and the flag to change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..messages import nearest

# Larger than any sensible row: pyarrow's default block of 1 MiB refuses longer ones.
_BLOCK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Table:
    """The rows of a data file.

    Attributes:
        path: The file, for messages.
        texts: One text a row.
        labels: One label a row as it is written in the file, or `None` if none were asked for.
    """

    path: Path
    texts: tuple[str, ...]
    labels: tuple[str, ...] | None


def read_table(
    path: Path, text_column: str, label_column: str | None = None, *, flag: str = "--data"
) -> Table:
    """Read the text column, and the label column if one is named.

    Args:
        path: A `.csv`, `.tsv`, `.jsonl`, `.ndjson` or `.parquet` file.
        text_column: Name of the column with the text.
        label_column: Name of the column with the label; `None` reads texts only.
        flag: The flag that gave `path`, for messages.

    Returns:
        The rows, in the file's order.

    Raises:
        DataError: If the file is missing, empty or malformed, a column is missing, or a row
            lacks its text or label.
    """
    reader = _reader_of(path, flag)
    wanted = [text_column] if label_column is None else [text_column, label_column]
    columns = _read_columns(reader, path, wanted, flag)
    texts = columns[text_column]
    if not texts:
        raise DataError(f"{flag} {path} holds a header but no rows")
    check_texts(texts, text_column, path)
    labels = None if label_column is None else _as_labels(columns[label_column], label_column, path)
    return Table(path, tuple(texts), labels)


def read_present(path: Path, candidates: Sequence[str], flag: str) -> dict[str, list[Any]]:
    """Read those of some columns that a table has.

    Args:
        path: As for `read_table`.
        candidates: Names of columns.
        flag: The flag that gave `path`, for messages.

    Returns:
        The values of each column that is there, by name; for a table with none of them the
        error lists what it has.

    Raises:
        DataError: If the file is missing, empty or malformed, or has none of the columns.
    """
    wanted = list(candidates)
    columns = _read_columns(_reader_of(path, flag), path, wanted, flag, _check_any_column)
    if not next(iter(columns.values())):
        raise DataError(f"{flag} {path} holds a header but no rows")
    return columns


def check_texts(texts: Sequence[Any], column: str, path: Path) -> None:
    """Refuse a column in which a row has no text.

    Raises:
        DataError: If a value is missing, blank or no text; the message names its row.
    """
    for row, text in enumerate(texts, start=1):
        if not isinstance(text, str | None):
            raise DataError(
                f"column {column!r} of {path} holds {type(text).__name__}, not text "
                f"(row {row}); choose the column with --text-column"
            )
        if text is None or not text.strip():
            raise DataError(f"{path} has no text in column {column!r} of row {row}")


def _reader_of(path: Path, flag: str) -> Any:
    reader = _READERS.get(path.suffix.lower())
    if not path.is_file():
        raise DataError(f"{flag} {path} is not a file")
    if reader is None:
        raise DataError(
            f"{flag} {path} ends in {path.suffix or 'nothing'}; expected one of "
            f"{', '.join(_READERS)}"
        )
    if path.stat().st_size == 0:
        raise DataError(f"{flag} {path} is empty")
    return reader


def _as_labels(values: list[Any], column: str, path: Path) -> tuple[str, ...]:
    labels = []
    for row, value in enumerate(values, start=1):
        if isinstance(value, list | dict | bytes):
            raise DataError(
                f"column {column!r} of {path} holds {type(value).__name__}, not a word or a "
                f"number (row {row}); choose the column with --label-column"
            )
        # true and false as JSON and csv files write them, whichever format they came from.
        label = str(value).lower() if isinstance(value, bool) else str(value).strip()
        if value is None or not label:
            raise DataError(f"{path} has no label in column {column!r} of row {row}")
        labels.append(label)
    return tuple(labels)


def _read_columns(
    reader: Any, path: Path, wanted: list[str], flag: str, check: Any = None
) -> dict[str, list[Any]]:
    import pyarrow

    try:
        with path.open("rb") as file:
            table = reader(file, wanted)
        # Decoding happens here, so that bytes which are no UTF-8 are caught here too.
        names = table.column_names
        (check or _check_columns)(names, wanted, path)
        return {name: table.column(name).to_pylist() for name in wanted if name in names}
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise DataError(
            f"{flag} {path} cannot be read as {path.suffix.lower()}: {reason}"
        ) from error


def _check_columns(names: list[str], wanted: list[str], path: Path) -> None:
    for column, flag in zip(wanted, ("--text-column", "--label-column"), strict=False):
        if names.count(column) > 1:
            raise DataError(f"{path} has {names.count(column)} columns named {column!r}")
        if column not in names:
            available = ", ".join(repr(name) for name in names)
            raise DataError(
                f"{path} has no column {column!r}; it has {available}{nearest(column, names)}; "
                f"choose one with {flag}"
            )


def _check_any_column(names: list[str], wanted: list[str], path: Path) -> None:
    for column in wanted:
        if names.count(column) > 1:
            raise DataError(f"{path} has {names.count(column)} columns named {column!r}")
    if not set(wanted) & set(names):
        raise DataError(
            f"{path} has none of the columns {', '.join(map(repr, wanted))}; it has "
            f"{', '.join(map(repr, names))}; choose a column of texts with --text-column"
        )


def _read_csv(file: Any, wanted: list[str]) -> Any:
    return _read_delimited(file, wanted, ",")


def _read_tsv(file: Any, wanted: list[str]) -> Any:
    return _read_delimited(file, wanted, "\t")


def _read_delimited(file: Any, wanted: list[str], delimiter: str) -> Any:
    import pyarrow
    from pyarrow import csv

    return csv.read_csv(
        file,
        read_options=csv.ReadOptions(block_size=_BLOCK_BYTES),
        parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        # As text, so that a label "01" stays "01" and a text "NA" is no missing value.
        convert_options=csv.ConvertOptions(
            column_types=dict.fromkeys(wanted, pyarrow.string()), strings_can_be_null=False
        ),
    )


def _read_jsonl(file: Any, wanted: list[str]) -> Any:
    from pyarrow import json

    return json.read_json(file, read_options=json.ReadOptions(block_size=_BLOCK_BYTES))


def _read_parquet(file: Any, wanted: list[str]) -> Any:
    from pyarrow import parquet

    whole = parquet.ParquetFile(file)
    present = [name for name in whole.schema_arrow.names if name in wanted]
    # With a column missing, the names of all are needed for the message.
    return whole.read(columns=present) if set(wanted) <= set(present) else whole.read()


_READERS = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}
