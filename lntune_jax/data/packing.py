"""Rows of a language model: long documents in parts, short ones packed together.

All of this is a pure function of the documents and the row's length, so that a resumed run has the
very same rows.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError
from .batches import PlannedBatch
from .documents import Documents
from .tokens import IGNORED, Encoded


@dataclass(frozen=True)
class LanguageRows:
    """Rows of token ids of any lengths.

    Attributes:
        tokens: Token ids of each row.
        labels: The same where the loss counts them, `IGNORED` elsewhere.
        segments: For each token the number of its document in the row, from 1; `None` where no
            row has more than one.
        numbers: For each row the rows of the data file that are in it.
    """

    tokens: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]
    segments: tuple[np.ndarray, ...] | None
    numbers: tuple[tuple[int, ...], ...]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each row, shape (rows,)."""
        return np.asarray([len(tokens) for tokens in self.tokens], np.int64)

    @property
    def targets(self) -> int:
        """Tokens that the loss counts."""
        return sum(int((labels != IGNORED).sum()) for labels in self.labels)

    def list_numbers(self, rows: np.ndarray) -> list[int]:
        """The documents of the data file that are in some of these rows, or parts of them."""
        return list(dict.fromkeys(number for row in rows.tolist() for number in self.numbers[row]))


@dataclass(frozen=True)
class Fitting:
    """What became of the documents that were too long, or had nothing to learn.

    Attributes:
        parts: Documents, or parts of them, none longer than a row.
        split: Texts that were split into parts.
        cut: Completions and chats that lost their end.
        dropped: Documents without a single token to predict, in the row's length.
    """

    parts: list[Encoded]
    split: int
    cut: int
    dropped: int


def fit_length(encoded: Sequence[Encoded], form: str, length: int) -> Fitting:
    """Make every document fit into a row.

    A text that fits stays whole. A longer one is split, and every part begins with what the
    tokenizer puts first (`Encoded.first`), or, where that is nothing, with the last token of the
    part before: every token of the text but those repeated ones, and the first where nothing comes
    before it, is predicted exactly once. A completion or a chat loses its end instead, because a
    part without its prompt would teach something else.

    Args:
        encoded: The documents.
        form: `text`, `completion` or `messages`.
        length: Tokens in a row, 2 or more.

    Raises:
        ConfigError: If what the tokenizer puts first fills a row.
    """
    parts: list[Encoded] = []
    split = cut = 0
    for each in encoded:
        is_longer = len(each.tokens) > length
        if form == "text":
            split += is_longer
            parts += _split(each, length) if is_longer else [each]
        else:
            cut += is_longer
            parts.append(Encoded(each.tokens[:length], each.labels[:length], each.number))
    kept = [part for part in parts if part.targets]
    return Fitting(kept, split, cut, len(parts) - len(kept))


def pack(parts: Sequence[Encoded], length: int) -> LanguageRows:
    """Put several documents into each row, the longest first, each where it fits most tightly.

    Args:
        parts: Documents, none longer than `length`.
        length: Tokens in a row.
    """
    # Rows by the room that is left in them, and the sizes of room that there are, in order.
    by_room: dict[int, list[list[int]]] = {}
    rooms: list[int] = []
    order = sorted(range(len(parts)), key=lambda number: (-len(parts[number].tokens), number))
    for number in order:
        size = len(parts[number].tokens)
        row, room = [], length
        place = bisect_left(rooms, size)
        if place < len(rooms):
            room = rooms[place]
            row = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[place]
        row.append(number)
        if room - size not in by_room:
            by_room[room - size] = []
            insort(rooms, room - size)
        by_room[room - size].append(row)
    rows = sorted(row for rows in by_room.values() for row in rows)
    return LanguageRows(
        tuple(np.concatenate([parts[number].tokens for number in row]) for row in rows),
        tuple(np.concatenate([parts[number].labels for number in row]) for row in rows),
        tuple(_segments([len(parts[number].tokens) for number in row]) for row in rows),
        tuple(tuple(parts[number].number for number in row) for row in rows),
    )


def separate(parts: Sequence[Encoded]) -> LanguageRows:
    """Give each document a row of its own."""
    tokens, labels = (part.tokens for part in parts), (part.labels for part in parts)
    numbers = tuple((part.number,) for part in parts)
    return LanguageRows(tuple(tokens), tuple(labels), None, numbers)


def assemble_language(
    batch: PlannedBatch, rows: LanguageRows, batch_size: int, padding: int
) -> dict[str, Any]:
    """The arrays of one batch.

    Args:
        batch: Which rows, and the padded length.
        rows: All rows.
        batch_size: Rows in the arrays; missing ones hold padding, which the loss does not count.
        padding: Token id of padding.

    Returns:
        `input_ids` and `labels` of shape (batch_size, length), and `segment_ids` for packed
        rows, 0 at padding. Padding comes last, where no token sees it: no mask is needed.
    """
    shape = (batch_size, batch.length)
    arrays = {
        "input_ids": np.full(shape, padding, np.int32),
        "labels": np.full(shape, IGNORED, np.int32),
    }
    if rows.segments is not None:
        arrays["segment_ids"] = np.zeros(shape, np.int32)
    for position, number in enumerate(batch.rows):
        end = len(rows.tokens[number])
        arrays["input_ids"][position, :end] = rows.tokens[number]
        arrays["labels"][position, :end] = rows.labels[number]
        if rows.segments is not None:
            arrays["segment_ids"][position, :end] = rows.segments[number]
    return arrays


def describe_fitting(fitting: Fitting, documents: Documents, length: int) -> list[str]:
    """What was split, cut or dropped, a line each; nothing where nothing was."""
    lines = []
    if fitting.split:
        lines.append(f"{fitting.split:,} texts are longer than {length} tokens and were split")
    if fitting.cut:
        lines.append(
            f"{fitting.cut:,} rows are longer than {length} tokens and lost their end "
            "(--max-length)"
        )
    if fitting.dropped:
        lines.append(f"{fitting.dropped:,} have no token to predict and were left out")
    return [f"{documents.path.name}: {line}" for line in lines]


def _split(each: Encoded, length: int) -> list[Encoded]:
    first = each.first
    if length <= first:
        raise ConfigError(
            f"--max-length {length} has no room for a text behind the {first} tokens that the "
            "tokenizer puts first"
        )
    overlap = 0 if first else 1
    step = length - first - overlap
    parts = []
    for start in range(first, len(each.tokens) - overlap, step):
        own = slice(start, start + step + overlap)
        labels = np.concatenate([each.labels[:first], each.labels[own]])
        labels[:1] = IGNORED
        tokens = np.concatenate([each.tokens[:first], each.tokens[own]])
        parts.append(Encoded(tokens, labels, each.number, first))
    return parts


def _segments(lengths: Sequence[int]) -> np.ndarray:
    return np.repeat(np.arange(1, len(lengths) + 1, dtype=np.int32), lengths)
