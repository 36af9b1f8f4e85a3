"""A function of a model's leaves and a batch, compiled once a padded length, over many rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..data.batches import PlannedBatch, plan_in_order
from ..data.spread import row_devices

# The batches of some rows, and what the function gives of each.
Found = Sequence[tuple[PlannedBatch, Any]]


class Program:
    """What evaluations and predictions of every task run; a subclass says how rows go in and out.

    Attributes:
        compilations: Programs compiled so far.
        mesh: The devices that share a batch, or `None` for one device.
    """

    def __init__(self, function: Callable[[Any, Any], Any], mesh: Any = None):
        """Compile `function(params, batch)`; on a mesh every process gets the whole result."""
        import jax

        import lntune_jax as lnt

        from ..training.xla_cpu import compiler_options

        self.compilations, self.mesh = 0, mesh

        def run(trainable: Any, frozen: Any, batch: Any) -> Any:
            self.compilations += 1  # Runs when JAX traces, which is once a shape.
            return function(lnt.merge_params(trainable, frozen), batch)

        def run_many(trainables: Any, frozen: Any, batch: Any, at_once: int) -> Any:
            self.compilations += 1

            def run_one(trainable: Any) -> Any:
                return function(lnt.merge_params(trainable, frozen), batch)

            count = len(jax.tree.leaves(trainables)[0])
            if at_once >= count:
                return jax.vmap(run_one)(trainables)
            return jax.lax.map(run_one, trainables, batch_size=at_once)

        whole = None if mesh is None else jax.sharding.NamedSharding(mesh, jax.P())
        options: dict[str, Any] = {"compiler_options": compiler_options(), "out_shardings": whole}
        self._run = jax.jit(run, **options)
        self._run_many = jax.jit(run_many, static_argnums=3, **options)

    def place(self, planned: PlannedBatch, rows: Any, size: int, padding: int) -> Any:
        """The arrays of a batch of so many rows."""
        raise NotImplementedError

    def join(self, found: Found, rows: Any) -> Any:
        """What all batches give together."""
        raise NotImplementedError

    def measure(
        self,
        trainable: Any,
        frozen: Any,
        rows: Any,
        batch_size: int,
        buckets: Sequence[int],
        padding: int,
        advance: Callable[[int, int], None] = lambda done, total: None,
    ) -> Any:
        """What `join` makes of the rows' batches, short rows first.

        Args:
            trainable: Flat dict of the trained leaves.
            frozen: The rest of the model.
            rows: The rows; they have `lengths`.
            batch_size: Rows a batch, at most.
            buckets: Padded lengths.
            padding: Token id of padding.
            advance: Called with the batches done and their total.
        """
        size, plan = self._plan(rows, batch_size, buckets)
        found = []
        for done, planned in enumerate(plan, start=1):
            batch = self.place(planned, rows, size, padding)
            found.append((planned, self._run(trainable, frozen, batch)))
            advance(done, len(plan))
        return self.join(found, rows)

    def measure_many(
        self,
        trainables: Any,
        frozen: Any,
        rows: Any,
        batch_size: int,
        buckets: Sequence[int],
        padding: int,
        at_once: int | None = None,
    ) -> list[Any]:
        """What `measure` gives of each of several adapters, whose batches run together.

        Args:
            trainables: The trained leaves, each with the adapters' axis first.
            frozen: As for `measure`.
            rows: As for `measure`.
            batch_size: As for `measure`.
            buckets: As for `measure`.
            padding: As for `measure`.
            at_once: Adapters that share a pass, to bound the memory; `None` for all.
        """
        import jax

        count = len(next(iter(trainables.values())))
        size, plan = self._plan(rows, batch_size, buckets)
        found = []
        for planned in plan:
            batch = self.place(planned, rows, size, padding)
            found.append((planned, self._run_many(trainables, frozen, batch, at_once or count)))
        every = [(planned, jax.tree.map(np.asarray, values)) for planned, values in found]

        def take(number: int) -> Found:
            return [
                (planned, jax.tree.map(lambda x: x[number], values)) for planned, values in every
            ]

        return [self.join(take(number), rows) for number in range(count)]

    def _plan(
        self, rows: Any, batch_size: int, buckets: Sequence[int]
    ) -> tuple[int, Sequence[PlannedBatch]]:
        # A few rows need no full batch of repeated ones.
        batch_size = min(batch_size, len(rows.lengths))
        batch_size += -batch_size % row_devices(self.mesh)
        return batch_size, plan_in_order(rows.lengths, batch_size, buckets)
