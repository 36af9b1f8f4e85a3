"""What the training loop asks of a task: rows, batches, a loss and an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from ..cli.options import Metric, Recipe
from ..data.batches import PlannedBatch
from ..trainer.history import Evaluation


class Evaluator(Protocol):
    """Compiled programs that measure leaves on the evaluation rows."""

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        ...

    def evaluate(
        self, trainable: Any, frozen: Any, step: int, recipe: Recipe, rows: Any = None
    ) -> Evaluation:
        """The figures of these leaves, on the work's evaluation rows or on others."""
        ...


class Work(Protocol):
    """What is trained, on what.

    Attributes:
        model: The base model, from `lntune_jax.models`.
        config: Which leaves train.
        task: What each adapter says of itself.
        buckets: Padded lengths.
        peak_learning_rate: Of the norms, where the recipe names none.
        default_metric: What picks the adapter to keep, where the recipe names nothing.
        evaluates_first: Whether the model is measured before the first step.
    """

    @property
    def model(self) -> Any:
        """The base model."""
        ...

    @property
    def config(self) -> Any:
        """Which leaves train."""
        ...

    @property
    def task(self) -> Mapping[str, Any]:
        """What each adapter says of itself."""
        ...

    @property
    def training(self) -> Any:
        """Rows to train on."""
        ...

    @property
    def evaluation(self) -> Any:
        """Rows to evaluate on."""
        ...

    @property
    def buckets(self) -> tuple[int, ...]:
        """Padded lengths."""
        ...

    @property
    def peak_learning_rate(self) -> float:
        """Of the norms, where the recipe names none."""
        ...

    @property
    def default_metric(self) -> Metric:
        """What picks the adapter to keep, where the recipe names nothing."""
        ...

    @property
    def evaluates_first(self) -> bool:
        """Whether the model is measured before the first step."""
        ...

    def loss_fn(self) -> Callable[..., Any]:
        """`loss_fn(params, batch, rng=None)`, a mean; with an `rng`, dropout is on."""
        ...

    def evaluator(self) -> Evaluator:
        """A new evaluator, which has compiled nothing yet."""
        ...

    def assemble(self, planned: PlannedBatch, batch_size: int) -> tuple[Mapping[str, Any], int]:
        """The arrays of one batch of training rows, and how many tokens it has."""
        ...

    def list_rows(self, planned: PlannedBatch) -> list[int]:
        """The rows of the data file, from 1, that are in a batch of training rows."""
        ...


def steps_per_epoch(work: Work, recipe: Recipe) -> int:
    """Batches in an epoch."""
    return -(-len(work.training.tokens) // recipe.batch_size)


def total_steps(work: Work, recipe: Recipe) -> int:
    """Steps of the whole run."""
    whole = recipe.epochs * steps_per_epoch(work, recipe)
    return whole if recipe.max_steps is None else min(whole, recipe.max_steps)


def share_steps(works: Sequence[Work], recipe: Recipe) -> Recipe:
    """The recipe with which all works take the steps, and are evaluated, as the largest does.

    Example:
        >>> from types import SimpleNamespace as Space
        >>> works = [Space(training=Space(tokens=range(rows))) for rows in (10, 40)]
        >>> shared = share_steps(works, Recipe(epochs=2, batch_size=8))
        >>> shared.max_steps, [total_steps(work, shared) for work in works], shared.eval_every
        (10, [10, 10], 5)
    """
    if len(works) == 1:
        return recipe
    epochs = [steps_per_epoch(work, recipe) for work in works]
    total = max(total_steps(work, recipe) for work in works)
    return replace(
        recipe,
        max_steps=total,
        epochs=-(-total // min(epochs)),
        eval_every=recipe.eval_every or max(epochs),
    )


def metric_of(work: Work, recipe: Recipe) -> Metric:
    """The evaluation figure that picks the adapter to keep."""
    return recipe.best_by or work.default_metric


def peak_learning_rate(work: Work, recipe: Recipe) -> float:
    """The highest learning rate of the norms."""
    return work.peak_learning_rate if recipe.learning_rate is None else recipe.learning_rate
