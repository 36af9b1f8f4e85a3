"""A causal language model, as the training loop sees it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..cli.options import Metric, Recipe
from ..data.batches import PlannedBatch, plan_in_order
from ..data.packing import LanguageRows
from ..data.spread import place_language_batch, row_devices
from ..data.tokens import IGNORED
from ..trainer.history import Evaluation


@dataclass(frozen=True)
class LanguageWork:
    """A language model to train; see `base.Work`.

    Attributes:
        model: The base model, from `lntune_jax.models`.
        config: Which leaves train.
        training: Rows to train on.
        evaluation: Rows to evaluate on.
        buckets: Padded lengths.
        padding: Token id of padding.
        task: What the adapter says of itself.
        mesh: The devices that share a batch, or `None` for one device.
    """

    model: Any
    config: Any
    training: LanguageRows
    evaluation: LanguageRows
    buckets: tuple[int, ...]
    padding: int
    task: Mapping[str, Any]
    mesh: Any = None
    peak_learning_rate: float = 1e-3
    default_metric: Metric = "perplexity"
    # The base model is what tuning must improve on.
    evaluates_first: bool = True

    def loss_fn(self) -> Callable[..., Any]:
        """The mean loss of a batch, over its targets."""
        return language_loss(self.model, weighted=True)

    def evaluator(self) -> LanguageEvaluator:
        """An evaluator of the evaluation rows."""
        return LanguageEvaluator(self)

    def assemble(self, planned: PlannedBatch, batch_size: int) -> tuple[Mapping[str, Any], int]:
        """The arrays of one batch, and its tokens without padding."""
        batch = place_language_batch(planned, self.training, batch_size, self.padding, self.mesh)
        return batch, int(self.training.lengths[planned.rows].sum())

    def list_rows(self, planned: PlannedBatch) -> list[int]:
        """The documents of the data file that are in a batch, or parts of them."""
        numbers = (self.training.numbers[row] for row in planned.rows.tolist())
        return list(dict.fromkeys(number for own in numbers for number in own))


class LanguageEvaluator:
    """Loss and perplexity on the evaluation rows."""

    def __init__(self, work: LanguageWork):
        self._work = work
        self._losses = MeanLoss(work.model, work.mesh)

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return self._losses.compilations

    def evaluate(
        self, trainable: Any, frozen: Any, step: int, recipe: Recipe, rows: Any = None
    ) -> Evaluation:
        """The figures of these leaves, on the work's evaluation rows or on others."""
        work = self._work
        rows = work.evaluation if rows is None else rows
        loss = self._losses.measure(
            trainable, frozen, rows, recipe.eval_batch_size, work.buckets, work.padding
        )
        return Evaluation(step, loss, perplexity=perplexity_of(loss))


class MeanLoss:
    """The mean loss of many rows, through one compiled program a padded length."""

    def __init__(self, model: Any, mesh: Any = None):
        """Wrap a language model of `lntune_jax.models`, for one device or a mesh."""
        import jax

        import lntune_jax as lnt

        from ..training.xla_cpu import compiler_options

        self.compilations = 0
        loss_fn = language_loss(model)

        def loss_of(trainable: Any, frozen: Any, batch: Any) -> Any:
            self.compilations += 1  # Runs when JAX traces, which is once a shape.
            return loss_fn(lnt.merge_params(trainable, frozen), batch)

        # Every process reads the loss, to come to the same figures.
        whole = None if mesh is None else jax.sharding.NamedSharding(mesh, jax.P())
        self._mesh = mesh
        self._loss_of = jax.jit(
            loss_of,
            compiler_options=compiler_options(),
            out_shardings=whole,
        )

    def measure(
        self,
        trainable: Any,
        frozen: Any,
        rows: LanguageRows,
        batch_size: int,
        buckets: tuple[int, ...],
        padding: int,
        advance: Callable[[int, int], None] = lambda done, total: None,
    ) -> float:
        """The mean over all targets of all rows, summed in float64.

        Args:
            trainable: Flat dict of the trained leaves.
            frozen: The rest of the model.
            rows: The rows.
            batch_size: Rows a batch, at most.
            buckets: Padded lengths.
            padding: Token id of padding.
            advance: Called with the batches done and their total.
        """
        batch_size = min(batch_size, len(rows.tokens))
        batch_size += -batch_size % row_devices(self._mesh)
        plan = plan_in_order(rows.lengths, batch_size, buckets)
        pending, counts = [], []
        for done, planned in enumerate(plan, start=1):
            batch = place_language_batch(planned, rows, batch_size, padding, self._mesh)
            pending.append(self._loss_of(trainable, frozen, batch))
            labels = (rows.labels[number] for number in planned.rows)
            counts.append(sum(int((each != IGNORED).sum()) for each in labels))
            advance(done, len(plan))
        means = np.asarray([float(loss) for loss in pending], np.float64)
        return float(means @ np.asarray(counts, np.float64) / sum(counts))


def language_loss(model: Any, *, weighted: bool = False) -> Callable[..., Any]:
    """The mean loss of a batch, over its targets.

    Args:
        model: A language model of `lntune_jax.models`.
        weighted: Whether it is given as a `WeightedLoss`, for training in microbatches.

    Returns:
        `loss_fn(params, batch, rng=None)`; with an `rng`, dropout is on.
    """
    from ..models import causal_lm_loss

    def loss_fn(params: Any, batch: Mapping[str, Any], rng: Any = None) -> Any:
        return causal_lm_loss(
            model,
            params,
            batch["input_ids"],
            batch["labels"],
            segment_ids=batch.get("segment_ids"),
            dropout_rng=rng,
            weighted=weighted,
        )

    return loss_fn


def perplexity_of(loss: float) -> float:
    """The exponential of a mean loss; infinite where that is no longer a float."""
    return math.exp(loss) if loss < 700 else math.inf
