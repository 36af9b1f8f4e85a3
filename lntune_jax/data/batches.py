"""Batches of few shapes: which rows go together, and to which length they are padded.

A plan is a pure function of a seed, an epoch and the rows' lengths, so that a run resumed at any
step sees the very batches it would have seen. Every batch has `batch_size` rows, and every row
comes once an epoch: what does not fill a batch of its own length moves up to the next one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Rows:
    """Encoded rows: token ids of any lengths, and a class number each.

    Attributes:
        tokens: Token ids of each row.
        classes: Class numbers, shape (rows,).
        numbers: The row of the data file that each one is, from 1; `None` where they are all of
            them, in order.
        types: Which text of a pair each token belongs to, 0 or 1; `None` where nothing reads it.
    """

    tokens: tuple[np.ndarray, ...]
    classes: np.ndarray
    numbers: np.ndarray | None = None
    types: tuple[np.ndarray, ...] | None = None

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each row, shape (rows,)."""
        return np.asarray([len(tokens) for tokens in self.tokens], np.int64)

    def take(self, numbers: np.ndarray) -> Rows:
        """The rows with these numbers, in this order."""
        own = np.arange(1, len(self.tokens) + 1) if self.numbers is None else self.numbers
        tokens = tuple(self.tokens[number] for number in numbers)
        types = self.types and tuple(self.types[number] for number in numbers)
        return Rows(tokens, self.classes[numbers], own[numbers], types)

    def list_numbers(self, rows: np.ndarray) -> list[int]:
        """The rows of the data file that some of these are."""
        return (rows + 1 if self.numbers is None else self.numbers[rows]).tolist()


@dataclass(frozen=True)
class PlannedBatch:
    """Row numbers that form a batch, and the length to which they are padded."""

    rows: np.ndarray
    length: int


def choose_lengths(
    lengths: np.ndarray, count: int, limit: int | None = None, multiple: int = 8
) -> tuple[int, ...]:
    """The at most `count` padded lengths that waste the fewest tokens.

    Args:
        lengths: Tokens in each row, shape (rows,).
        count: How many different lengths there may be.
        limit: The most positions that the model has.
        multiple: Every length is a multiple of this, or `limit`.

    Returns:
        Increasing lengths; the last holds the longest row.

    Example:
        >>> choose_lengths(np.array([5, 6, 7, 60]), count=2)
        (8, 64)
    """
    rounded = -(-np.maximum(lengths, 1) // multiple) * multiple
    rounded = rounded if limit is None else np.minimum(rounded, limit)
    candidates, counts = np.unique(rounded, return_counts=True)
    rows_up_to = np.concatenate([[0], np.cumsum(counts)])
    # cost[i] is the least padded size of all rows up to candidate i; each round allows one more
    # length, and `cut[i]` remembers where the last but one length lies.
    cost = np.where(np.arange(len(candidates) + 1) == 0, 0.0, np.inf)
    cuts = []
    for _ in range(min(count, len(candidates))):
        last_group = candidates[:, None] * (rows_up_to[1:, None] - rows_up_to[None, :])
        reachable = np.where(last_group >= 0, cost[None, :] + last_group, np.inf)
        reachable[np.triu_indices_from(reachable, k=1)] = np.inf
        cuts.append(reachable.argmin(axis=1))
        cost = np.concatenate([[0.0], reachable.min(axis=1)])
    chosen, end = [], len(candidates)
    for cut in reversed(cuts):
        if end:
            chosen.append(int(candidates[end - 1]))
            end = int(cut[end - 1])
    return tuple(sorted(set(chosen)))


def plan_epoch(
    seed: int, epoch: int, lengths: np.ndarray, batch_size: int, buckets: Sequence[int]
) -> list[PlannedBatch]:
    """The batches of one training epoch, in a random order.

    Args:
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        lengths: Tokens in each row, shape (rows,).
        batch_size: Rows a batch; only the batch with the last rows may have fewer.
        buckets: Lengths from `choose_lengths`.

    Returns:
        `ceil(rows / batch_size)` batches that hold every row once.
    """
    generator = np.random.default_rng([seed, epoch])
    batches = _cut(generator.permutation(len(lengths)), lengths, batch_size, buckets)
    return [batches[position] for position in generator.permutation(len(batches))]


def make_planner(
    seed: int, lengths: np.ndarray, batch_size: int, buckets: Sequence[int]
) -> Callable[[int], PlannedBatch]:
    """A function from a step, from 0, to its batch's rows, as an uninterrupted run has them.

    Example:
        >>> plan = make_planner(0, np.array([3, 4, 5, 6]), 2, (8,))
        >>> sorted([*plan(0).rows, *plan(1).rows]) == [0, 1, 2, 3], plan(0).length
        (True, 8)
    """
    per_epoch = -(-len(lengths) // batch_size)

    @functools.lru_cache(maxsize=2)
    def plan(epoch: int) -> list[PlannedBatch]:
        return plan_epoch(seed, epoch, lengths, batch_size, buckets)

    return lambda step: plan(step // per_epoch)[step % per_epoch]


def plan_in_order(
    lengths: np.ndarray, batch_size: int, buckets: Sequence[int]
) -> list[PlannedBatch]:
    """The batches of an evaluation: every row once, short rows first."""
    return _cut(np.arange(len(lengths)), lengths, batch_size, buckets)


def assemble(batch: PlannedBatch, rows: Rows, batch_size: int, padding: int) -> dict[str, Any]:
    """The arrays of one batch.

    Args:
        batch: Which rows, and the padded length.
        rows: All rows.
        batch_size: Rows in the arrays; missing ones repeat the first with weight 0, because a
            row without any token has no defined attention.
        padding: Token id of padding.

    Returns:
        `input_ids`, `attention_mask` and, of rows with types, `token_type_ids` of shape
        (batch_size, length), `classes` and `weights` of shape (batch_size,).
    """
    missing = batch_size - len(batch.rows)
    numbers = np.concatenate([batch.rows, np.repeat(batch.rows[:1], missing)])
    input_ids = np.full((batch_size, batch.length), padding, np.int32)
    attention_mask = np.zeros((batch_size, batch.length), np.int32)
    for position, number in enumerate(numbers):
        tokens = rows.tokens[number]
        input_ids[position, : len(tokens)] = tokens
        attention_mask[position, : len(tokens)] = 1
    arrays = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "classes": rows.classes[numbers].astype(np.int32),
        "weights": (np.arange(batch_size) < len(batch.rows)).astype(np.float32),
    }
    if rows.types is not None:
        types = np.zeros((batch_size, batch.length), np.int32)
        for position, number in enumerate(numbers):
            types[position, : len(rows.types[number])] = rows.types[number]
        arrays["token_type_ids"] = types
    return arrays


def assemble_span(
    batch: PlannedBatch, rows: Rows, span: tuple[int, int], padding: int
) -> dict[str, Any]:
    """Rows `span` of what `assemble` gives; past the last one, the first with weight 0."""
    places = np.arange(*span)
    real = places < len(batch.rows)
    numbers = batch.rows[np.where(real, places, 0)]
    found = assemble(PlannedBatch(numbers, batch.length), rows, len(numbers), padding)
    return found | {"weights": real.astype(np.float32)}


def _cut(
    order: np.ndarray, lengths: np.ndarray, batch_size: int, buckets: Sequence[int]
) -> list[PlannedBatch]:
    """Full batches within each bucket; the rows left over move up to the next bucket."""
    bucket_of = np.searchsorted(np.asarray(buckets), lengths[order])
    batches, waiting = [], order[:0]
    for number, length in enumerate(buckets):
        waiting = np.concatenate([waiting, order[bucket_of == number]])
        full = len(waiting) - len(waiting) % batch_size
        batches += [PlannedBatch(part, length) for part in _parts(waiting[:full], batch_size)]
        waiting = waiting[full:]
    if len(waiting):
        longest = int(np.searchsorted(np.asarray(buckets), lengths[waiting].max()))
        batches.append(PlannedBatch(waiting, buckets[longest]))
    return batches


def _parts(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
