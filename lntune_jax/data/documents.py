"""Read the documents of a language model: texts, prompts with completions, or chats.

What a row is follows from the columns, or from --form. Nothing is tokenised here; every fault in a
file is one sentence with the file and the row (1 is the first row of data).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError
from .columns import DataForm
from .readers import is_missing, read_text
from .tables import BadRow, BadRows, find_text_fault, read_present, settle_bad_rows

_PAIR = ("prompt", "completion")
_TABLES_ONLY_NESTED = (".csv", ".tsv")


@dataclass(frozen=True)
class Documents:
    """The documents of a data file.

    Attributes:
        path: The file, for messages.
        form: `text`, `completion` or `messages`.
        values: A text, a pair (prompt, completion), or a list of messages, as the form says.
        rows: The number of each value in the file, for messages.
    """

    path: Path
    form: DataForm
    values: tuple[Any, ...]
    rows: tuple[int, ...]

    def take(self, numbers: np.ndarray) -> Documents:
        """The documents with these numbers, in this order."""
        values = tuple(self.values[number] for number in numbers)
        return Documents(self.path, self.form, values, tuple(self.rows[each] for each in numbers))


def read_documents(
    path: Path,
    form: DataForm,
    text_column: str,
    *,
    flag: str = "--data",
    bad_rows: BadRows = "refuse",
    split: str | None = None,
) -> Documents:
    """Read a file of documents.

    Args:
        path: A `.txt` file, whose documents are separated by blank lines, or a table.
        form: What a row of a table is; `auto` decides by the columns.
        text_column: Name of the column with texts.
        flag: The flag that gave `path`, for messages.
        bad_rows: As for `tables.read_table`.
        split: As for `tables.read_table`.

    Returns:
        The documents, in the file's order.

    Raises:
        DataError: If the file is missing, empty or malformed, a column is missing, several forms
            are there, or a row lacks something.
    """
    if path.suffix.lower() == ".txt":
        return _read_text(path, form, flag)
    forms = {"text": (text_column,), "completion": _PAIR, "messages": ("messages",)}
    candidates = [name for names in forms.values() for name in names]
    raw = read_present(path, list(dict.fromkeys(candidates)), flag, split)
    columns = raw.columns
    found = _choose_form(columns, forms, form, path)
    for name in forms[found]:
        if name not in columns:
            raise DataError(f"{path} has no column {name!r}, which the form {found!r} needs")
    bad = [BadRow(place, raw.unit, reason) for place, reason in raw.malformed.items()]
    # Of each row that can be parsed, whether it can be used, and its number among them.
    rows = range(1, len(raw.places) + 1)
    if found == "messages":
        if path.suffix.lower() in _TABLES_ONLY_NESTED:
            raise DataError(f"{path}: a chat needs .jsonl or .parquet, where a value can be a list")
        chats = columns["messages"]
        values = tuple(_checked_chat(chat, row, path) for row, chat in enumerate(chats, start=1))
    else:
        given = [columns[name] for name in forms[found]]
        faults = [_find_fault(forms[found], row) for row in zip(*given, strict=True)]
        bad += [
            BadRow(place, raw.unit, fault)
            for place, fault in zip(raw.places, faults, strict=True)
            if fault
        ]
        rows = [row for row in rows if not faults[row - 1]]
        if found == "text":
            values = tuple(columns[text_column][row - 1] for row in rows)
        else:
            prompts, completions = given
            values = tuple((_prompt(prompts[row - 1]), completions[row - 1]) for row in rows)
    settle_bad_rows(sorted(bad), len(rows), path, flag, bad_rows)
    return Documents(path, found, values, tuple(rows))


def _prompt(value: Any) -> str:
    return "" if is_missing(value) else value


def _find_fault(names: tuple[str, ...], row: tuple[Any, ...]) -> str:
    """What is wrong in a row of texts; empty if nothing is."""
    for name, value in zip(names, row, strict=True):
        # A prompt may be empty: then nothing comes before the completion.
        is_optional = name == "prompt" and (is_missing(value) or not str(value).strip())
        fault = "" if is_optional else find_text_fault(value, name)
        if fault:
            return fault
    return ""


def split_documents(
    documents: Documents, fraction: float, seed: int
) -> tuple[Documents, Documents]:
    """Hold out a share of the documents, drawn at random.

    Args:
        documents: All of them.
        fraction: Share to hold out, between 0 and 1; one document at least.
        seed: Which ones are drawn.

    Raises:
        DataError: If there is only one.
    """
    count = len(documents.values)
    if count < 2:
        raise DataError(
            f"{documents.path} holds one document, too few to hold any out for evaluation; "
            "separate the documents of a .txt file by blank lines, or give --eval-data"
        )
    order = np.random.default_rng(seed).permutation(count)
    held_out = min(max(round(fraction * count), 1), count - 1)
    return documents.take(np.sort(order[held_out:])), documents.take(np.sort(order[:held_out]))


def _read_text(path: Path, form: DataForm, flag: str) -> Documents:
    if form not in ("auto", "text"):
        raise ConfigError(f"{flag} {path} is plain text, and the form {form!r} needs a table")
    if not path.is_file():
        raise DataError(f"{flag} {path} is not a file")
    content = read_text(path, flag)
    parts = (part.strip("\n") for part in re.split(r"\n[ \t]*\n", content))
    values = tuple(part for part in parts if part.strip())
    if not values:
        raise DataError(f"{flag} {path} is empty")
    return Documents(path, "text", values, tuple(range(1, len(values) + 1)))


def _choose_form(
    columns: dict[str, list[Any]], forms: dict[str, tuple[str, ...]], form: DataForm, path: Path
) -> DataForm:
    if form != "auto":
        return form
    whole = [name for name, needed in forms.items() if set(needed) <= columns.keys()]
    if len(whole) > 1:
        raise DataError(
            f"{path} has columns for {' and '.join(whole)}; choose one of them with --form"
        )
    if not whole:
        missing = next(name for name in _PAIR if name not in columns)
        raise DataError(
            f"{path} has {', '.join(map(repr, columns))} but no column {missing!r}; for plain "
            "texts name their column with --text-column"
        )
    return whole[0]  # type: ignore[return-value]


def _checked_chat(chat: Any, row: int, path: Path) -> list[dict[str, Any]]:
    """The messages of a row, without the fields that pyarrow filled in for other rows."""
    if not isinstance(chat, list) or not chat:
        raise DataError(
            f"column 'messages' of {path} holds {type(chat).__name__} in row {row}; expected a "
            "list of messages with role and content"
        )
    messages = []
    for number, message in enumerate(chat, start=1):
        fields = message if isinstance(message, dict) else {}
        for name in ("role", "content"):
            if not isinstance(fields.get(name), str):
                raise DataError(f"{path}: message {number} of row {row} has no {name} that is text")
        messages.append({name: value for name, value in fields.items() if value is not None})
    if all(message["role"] != "assistant" for message in messages):
        raise DataError(
            f"{path}: row {row} has no message of the role 'assistant', so there is nothing to "
            "learn in it"
        )
    return messages
