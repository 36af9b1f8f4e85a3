"""Read columns of a csv, tsv, jsonl or parquet file, and say in which line each row begins.

Delimiter and encoding are guessed. A row that cannot be parsed does not end the reading: it is
given with what is wrong in it. No message here repeats a parser's words.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..messages import need_package, warn

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_USUAL = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")

# The marks that a file may begin with, the longer ones first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig", ""),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)

# What Python makes of bytes that are no UTF-8.
_STRANGE = re.compile("[\udc80-\udcff]")

# Enough to find the header in, however many columns there are.
_HEAD = 2**18


@dataclass(frozen=True)
class RawTable:
    """What a file holds, as it is written there.

    Attributes:
        names: The names of all columns.
        columns: The values of the wanted columns that are there; `None` is a missing value.
        places: Where each row is: the line in which it begins, or its number in Parquet.
        unit: `line` or `row`.
        malformed: What is wrong with each row that cannot be parsed, by place.
        note: How the file was read, where that is not the usual way; else empty.
    """

    names: tuple[str, ...]
    columns: dict[str, list[Any]]
    places: tuple[int, ...]
    unit: str = "line"
    malformed: dict[int, str] = field(default_factory=dict)
    note: str = ""


def read_raw(path: Path, wanted: Sequence[str], flag: str = "--data") -> RawTable:
    r"""Read some columns of a table.

    Args:
        path: A `.csv`, `.tsv`, `.jsonl`, `.ndjson` or `.parquet` file.
        wanted: Names of columns; which of them must be there is the caller's to check.
        flag: The flag that gave `path`, for messages.

    Raises:
        DataError: If the file is missing, empty, of another kind or no text.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.csv"
        >>> _ = path.write_bytes("text;label\n\"two\nlines\";a\ncaf\u00e9;b\n".encode("latin-1"))
        >>> raw = read_raw(path, ["label"])
        >>> raw.columns, raw.places, raw.note
        ({'label': ['a', 'b']}, (2, 4), 'as Windows-1252 text, split at semicolons')
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        raise DataError(f"{flag} {path} is not a file")
    if suffix not in SUFFIXES:
        raise DataError(
            f"{flag} {path} ends in {path.suffix or 'nothing'}; expected one of "
            f"{', '.join(SUFFIXES)}"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{flag} {path} cannot be read: {error.strerror or error}") from error
    if not data:
        raise DataError(f"{flag} {path} is empty")
    if suffix == ".parquet":
        return _read_parquet(data, wanted, f"{flag} {path}")
    text, encoding = decode(data, f"{flag} {path}")
    if suffix in _USUAL:
        return _read_delimited(text, wanted, _USUAL[suffix], encoding)
    return _read_json_lines(text, wanted, encoding, f"{flag} {path}")


def read_text(path: Path, flag: str) -> str:
    """A whole file of plain text, its line ends made one kind.

    Warns where it is not in UTF-8.

    Raises:
        DataError: If it cannot be read, or is no text; a bad byte is named with its line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{flag} {path} cannot be read: {error.strerror or error}") from error
    text, encoding = decode(data, f"{flag} {path}")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if encoding:
        warn(f"{flag} {path} is read as {encoding} text", UserWarning)
    strange = _STRANGE.search(text)
    if strange is not None:
        line = text.count("\n", 0, strange.start()) + 1
        raise DataError(f"{flag} {path}: line {line} holds bytes that are no UTF-8; mend them")
    return text


def decode(data: bytes, where: str) -> tuple[str, str]:
    r"""Text from bytes whose encoding is not said anywhere.

    Bytes of a file in UTF-8 that are no UTF-8 become lone surrogates, so that a reader can say in
    which rows they are.

    Args:
        data: The bytes.
        where: The beginning of a message about them.

    Returns:
        The text, and the name of its encoding, empty for UTF-8.

    Raises:
        DataError: If it is no text.

    Example:
        >>> decode("na\u00efve".encode(), "a.txt")
        ('naïve', '')
        >>> decode("na\u00efve".encode("utf-16"), "a.txt")
        ('naïve', 'UTF-16')
    """
    for mark, codec, name in _MARKS:
        if data.startswith(mark):
            try:
                return data.decode(codec, "surrogateescape" if not name else "strict"), name
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{where} begins as {name}, and goes on with bytes that are none (at byte "
                    f"{error.start:,}): save it as UTF-8"
                ) from None
    if b"\0" in data:
        raise DataError(
            f"{where} holds zero bytes, which text does not have: save it as UTF-8 (UTF-16 is "
            "recognised by the mark at its beginning)"
        )
    text = data.decode("utf-8", "surrogateescape")
    strange = len(_STRANGE.findall(text))
    # A few bad bytes in a file that else is UTF-8 do not make it another encoding's.
    if strange <= len(re.findall("[^\x00-\x7f\udc80-\udcff]", text)):
        return text, ""
    try:
        return data.decode("cp1252"), "Windows-1252"
    except UnicodeDecodeError:
        return data.decode("latin-1"), "Latin-1"


def is_missing(value: Any) -> bool:
    """Whether a value is none: null, or a NaN of whatever type.

    Example:
        >>> [is_missing(value) for value in (None, float("nan"), "nan", 0, "")]
        [True, True, False, False, False]
    """
    return value is None or (not isinstance(value, list | dict | str) and bool(value != value))


def _read_delimited(text: str, wanted: Sequence[str], usual: str, encoding: str) -> RawTable:
    with _fields_of_any_length():
        delimiter = _guess_delimiter(text[:_HEAD], wanted, usual)
        records = _list_records(text, delimiter)
        names = tuple(next(records, (0, [], ""))[1])
        at = {name: names.index(name) for name in dict.fromkeys(wanted) if name in names}
        columns: dict[str, list[Any]] = {name: [] for name in at}
        places, malformed = [], {}
        for line, values, fault in records:
            if len(values) != len(names):
                fault = fault or _UNEVEN
            if fault:
                malformed[line] = fault
                continue
            places.append(line)
            for name, position in at.items():
                value = values[position]
                # As pandas and NumPy write a missing value.
                columns[name].append(None if value.strip() in ("nan", "NaN") else value)
    ways = [f"as {encoding} text"] if encoding else []
    ways += [f"split at {_DELIMITERS[delimiter]}"] if delimiter != usual else []
    return RawTable(names, columns, tuple(places), "line", malformed, ", ".join(ways))


def _list_records(text: str, delimiter: str) -> Iterator[tuple[int, list[str], str]]:
    """The line in which each record begins, its values, and what is wrong with it."""
    own: list[str] = []

    def feed() -> Iterator[str]:
        for line in io.StringIO(text, newline=""):
            own.append(line)
            yield line

    reader, first = csv.reader(feed(), delimiter=delimiter), 1
    total = len(text)
    for values in reader:
        total -= sum(map(len, own))
        # Only the last record can have a quote that nothing closes: it would swallow a next line.
        is_open = not total and len(list(csv.reader([*own, "x"], delimiter=delimiter))) == 1
        if values:
            yield first, values, _OPEN_QUOTE if is_open else ""
        own.clear()
        first = reader.line_num + 1


_OPEN_QUOTE = "a quote that is never closed (inside quotes, a quote is written twice)"
_UNEVEN = "more or fewer values than the header (a value that holds the delimiter needs quotes)"


def _guess_delimiter(head: str, wanted: Sequence[str], usual: str) -> str:
    """The delimiter at which the header holds most of the wanted names, or else most names."""
    candidates = [usual, *(each for each in _DELIMITERS if each != usual)]

    def header(delimiter: str) -> list[str]:
        records = csv.reader(io.StringIO(head, newline=""), delimiter=delimiter)
        return next((values for values in records if values), [])

    found = {each: len(set(wanted) & set(header(each))) for each in candidates}
    if any(found.values()):
        return max(candidates, key=found.__getitem__)
    return max(candidates, key=lambda each: len(header(each)))


@contextlib.contextmanager
def _fields_of_any_length() -> Iterator[None]:
    """The csv module's limit, 131,072 characters, is one for the whole process."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _read_json_lines(text: str, wanted: Sequence[str], encoding: str, where: str) -> RawTable:
    if text.lstrip()[:1] == "[":
        raise DataError(f"{where} is one JSON list; expected a JSON object on each line")
    names: dict[str, None] = {}
    rows, malformed = {}, {}
    # Not splitlines(): a string in JSON may hold other line ends as they are.
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError):
            malformed[line] = "no JSON"
            continue
        if isinstance(row, dict):
            rows[line] = row
            names |= dict.fromkeys(row)
        else:
            malformed[line] = "JSON that is no object"
    columns = {
        name: [row.get(name) for row in rows.values()]
        for name in dict.fromkeys(wanted)
        if name in names
    }
    note = f"as {encoding} text" if encoding else ""
    return RawTable(tuple(names), columns, tuple(rows), "line", malformed, note)


def _read_parquet(data: bytes, wanted: Sequence[str], where: str) -> RawTable:
    need_package("pyarrow", "cli", f"{where}: reading Parquet", DataError)
    import pyarrow
    from pyarrow import parquet

    try:
        whole = parquet.ParquetFile(io.BytesIO(data))
        names = tuple(whole.schema_arrow.names)
        once = [name for name in dict.fromkeys(wanted) if names.count(name) == 1]
        table = whole.read(columns=once)
        columns = {name: table.column(name).to_pylist() for name in once}
    # OSError and ValueError are pyarrow's, for damaged pages and dates that Python does not have.
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{where} cannot be read: it is no Parquet file, or it is damaged; write it anew"
        ) from error
    places = tuple(range(1, whole.metadata.num_rows + 1))
    return RawTable(names, columns, places, "row")
