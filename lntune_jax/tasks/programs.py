"""A function of a model's leaves and a batch, compiled once a padded length, over many rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..data.batches import PlannedBatch, plan_in_order
from ..data.spread import row_devices


class Program:
    """What evaluations and predictions of every task run.

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

        whole = None if mesh is None else jax.sharding.NamedSharding(mesh, jax.P())
        self._run = jax.jit(run, compiler_options=compiler_options(), out_shardings=whole)

    def run(
        self,
        trainable: Any,
        frozen: Any,
        lengths: np.ndarray,
        batch_size: int,
        buckets: Sequence[int],
        place: Callable[[PlannedBatch, int], Any],
        advance: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[tuple[PlannedBatch, Any]]:
        """The result of each batch, short rows first.

        Args:
            trainable: Flat dict of the trained leaves.
            frozen: The rest of the model.
            lengths: Tokens in each row, shape (rows,).
            batch_size: Rows a batch, at most.
            buckets: Padded lengths.
            place: Gives the arrays of a batch of so many rows.
            advance: Called with the batches done and their total.
        """
        # A few rows need no full batch of repeated ones.
        batch_size = min(batch_size, len(lengths))
        batch_size += -batch_size % row_devices(self.mesh)
        plan = plan_in_order(lengths, batch_size, buckets)
        found = []
        for done, planned in enumerate(plan, start=1):
            found.append((planned, self._run(trainable, frozen, place(planned, batch_size))))
            advance(done, len(plan))
        return found
