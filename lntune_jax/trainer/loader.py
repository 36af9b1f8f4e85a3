"""The batches of a run's steps, from a loader whose position a checkpoint holds.

What is in a batch is a pure function of the step; Grain makes the next ones in a thread while a
step runs, and knows which were used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..cli.options import Recipe
from ..data.batches import PlannedBatch, plan_epoch
from ..tasks.base import Work, steps_per_epoch

# How many batches are made ahead.
_AHEAD = 2


class Item(NamedTuple):
    """What one step needs.

    Attributes:
        batch: The arrays.
        tokens: How many tokens it has.
        rows: The rows of the data file in it; of several adapters, a list for each.
    """

    batch: Any
    tokens: int
    rows: Sequence[Any]


@dataclass(frozen=True)
class _Steps:
    """Grain's random access source: the item of each step."""

    make: Callable[[int], Item]
    total: int

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: Any) -> Item:
        return self.make(int(index))


def open_loader(
    make: Callable[[int], Item], total: int, position: dict[str, Any] | None = None
) -> Any:
    """An iterator over the items of steps 0 to `total`.

    Args:
        make: Gives the item of a step, the same whenever it is asked.
        total: Steps of the run.
        position: What `get_state` of an earlier one gave: where it goes on.

    Returns:
        A `grain.DatasetIterator`; its `get_state()` is JSON.

    Example:
        >>> loader = open_loader(lambda step: Item(step, 1, []), 5)
        >>> [next(loader).batch for _ in range(3)]
        [0, 1, 2]
        >>> next(open_loader(lambda step: Item(step, 1, []), 5, loader.get_state())).batch
        3
    """
    import grain

    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_AHEAD)
    loader = iter(grain.MapDataset.source(_Steps(make, total)).to_iter_dataset(options))
    if position is not None:
        loader.set_state(position)
    return loader


def make_planner(work: Work, recipe: Recipe) -> Callable[[int], PlannedBatch]:
    """A function from a step to its batch's rows, as a run without interruption has them."""
    lengths, per_epoch = work.training.lengths, steps_per_epoch(work, recipe)

    @functools.lru_cache(maxsize=2)
    def plan(epoch: int) -> list[PlannedBatch]:
        return plan_epoch(recipe.seed, epoch, lengths, recipe.batch_size, work.buckets)

    return lambda step: plan(step // per_epoch)[step % per_epoch]


def make_item(work: Work, recipe: Recipe) -> Callable[[int], Item]:
    """A function from a step to its item, for one adapter."""
    plan = make_planner(work, recipe)

    def make(step: int) -> Item:
        planned = plan(step)
        batch, tokens = work.assemble(planned, recipe.batch_size)
        return Item(batch, tokens, work.list_rows(planned))

    return make
