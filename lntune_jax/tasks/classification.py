"""Text classification, as the training loop sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..cli.options import Metric, Recipe
from ..data.batches import PlannedBatch, Rows
from ..data.spread import place_batch
from ..trainer.history import Evaluation
from .programs import Classifier, classification_loss
from .scores import score


@dataclass(frozen=True)
class ClassificationWork:
    """A classifier to train; see `base.Work`.

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
    training: Rows
    evaluation: Rows
    buckets: tuple[int, ...]
    padding: int
    task: Mapping[str, Any]
    mesh: Any = None
    peak_learning_rate: float = 5e-3
    default_metric: Metric = "accuracy"
    # A new head knows nothing before the first step.
    evaluates_first: bool = False

    def loss_fn(self) -> Callable[..., Any]:
        """The mean cross entropy of a batch."""
        return classification_loss(self.model.apply)

    def evaluator(self) -> ClassificationEvaluator:
        """An evaluator of the evaluation rows."""
        return ClassificationEvaluator(self)

    def assemble(self, planned: PlannedBatch, batch_size: int) -> tuple[Mapping[str, Any], int]:
        """The arrays of one batch, and the tokens of its real rows, without padding."""
        batch = place_batch(planned, self.training, batch_size, self.padding, self.mesh)
        return batch, sum(len(self.training.tokens[number]) for number in planned.rows)

    def list_rows(self, planned: PlannedBatch) -> list[int]:
        """The rows of the data file that are in a batch."""
        return self.training.list_numbers(planned.rows)


class ClassificationEvaluator:
    """Accuracy, F1 and loss on the evaluation rows."""

    def __init__(self, work: ClassificationWork):
        self._work = work
        self._classifier = Classifier(work.model.apply, work.mesh)

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return self._classifier.compilations

    def evaluate(
        self, trainable: Any, frozen: Any, step: int, recipe: Recipe, rows: Any = None
    ) -> Evaluation:
        """The figures of these leaves, on the work's evaluation rows or on others."""
        work = self._work
        rows = work.evaluation if rows is None else rows
        logits = self._classifier.logits(
            trainable, frozen, rows, recipe.eval_batch_size, work.buckets, work.padding
        )
        scores = score(logits, np.asarray(rows.classes))
        return Evaluation(step, scores.loss, scores.accuracy, scores.macro_f1)
