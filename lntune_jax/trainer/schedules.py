"""What follows from a recipe: steps, learning rates, the optimizer, the figure that decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..messages import Argument, nearest
from ..tasks.base import LOSS, Metric, Task
from .recipe import Recipe


def total_steps(task: Task, recipe: Recipe) -> int:
    """Steps of the whole run."""
    whole = recipe.epochs * task.epoch_steps(recipe.batch_size)
    return whole if recipe.max_steps is None else min(whole, recipe.max_steps)


def share_steps(tasks: Sequence[Task], recipe: Recipe) -> Recipe:
    """The recipe with which all tasks take the steps, and are evaluated, as the largest does.

    Example:
        >>> from types import SimpleNamespace as Space
        >>> tasks = [Space(epoch_steps=lambda size, rows=rows: rows // size) for rows in (16, 40)]
        >>> shared = share_steps(tasks, Recipe(epochs=2, batch_size=8))
        >>> shared.max_steps, [total_steps(task, shared) for task in tasks], shared.eval_every
        (10, [10, 10], 5)
    """
    if len(tasks) == 1:
        return recipe
    epochs = [task.epoch_steps(recipe.batch_size) for task in tasks]
    total = max(total_steps(task, recipe) for task in tasks)
    return replace(
        recipe,
        max_steps=total,
        epochs=-(-total // min(epochs)),
        eval_every=recipe.eval_every or max(epochs),
    )


def metric_of(task: Task, recipe: Recipe) -> Metric:
    """The figure that picks the adapter to keep.

    Raises:
        ConfigError: The task has no figure of the name that the recipe gives.
    """
    check_best_by(recipe, task.metrics)
    known = (*task.metrics, LOSS)
    return next((each for each in known if each.name == recipe.best_by), known[0])


def check_best_by(recipe: Recipe, metrics: Sequence[Metric]) -> None:
    """Refuse a `best_by` that a task does not measure.

    Raises:
        ConfigError: The message lists what it measures.
    """
    known = [metric.name for metric in (*metrics, LOSS)]
    if recipe.best_by is not None and recipe.best_by not in known:
        raise ConfigError(
            Argument("best_by"),
            f" is {recipe.best_by!r}; this task measures {', '.join(known)}"
            f"{nearest(recipe.best_by, known)}",
        )


def peak_learning_rate(task: Task, recipe: Recipe) -> float:
    """The highest learning rate of the norms."""
    return task.learning_rate if recipe.learning_rate is None else recipe.learning_rate


def learning_rate_schedule(recipe: Recipe, peak: float, steps: int) -> Any:
    """An optax schedule that peaks after the warm-up and ends at zero after `steps`.

    Args:
        recipe: Shape of the schedule and share of the warm-up.
        peak: The highest learning rate.
        steps: Steps of the whole run.

    Returns:
        A function from the step number (from 0) to the learning rate.
    """
    import optax

    warmup = round(recipe.warmup_fraction * steps)
    fall = max(steps - warmup, 1)
    after = {
        "linear": optax.linear_schedule(peak, 0.0, fall),
        "cosine": optax.cosine_decay_schedule(peak, fall),
        "constant": optax.constant_schedule(peak),
    }[recipe.schedule]
    if warmup == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def list_learning_rates(recipe: Recipe, peak: float, steps: int) -> np.ndarray:
    """The norms' learning rate of every step, shape (steps,)."""
    import jax

    return np.asarray(jax.vmap(learning_rate_schedule(recipe, peak, steps))(np.arange(steps)))


def make_optimizer(task: Task, recipe: Recipe, total: int) -> Any:
    """AdamW of one adapter: the norms' rate, the saved modules' rate, no decay of norms."""
    from ..training import adamw

    return adamw(
        task.config,
        learning_rate_schedule(recipe, peak_learning_rate(task, recipe), total),
        head_learning_rate=learning_rate_schedule(recipe, recipe.head_learning_rate, total),
        weight_decay=recipe.weight_decay,
        clip_norm=recipe.clip_norm,
        name_map=task.name_map,
    )


def make_many_optimizer(task: Task, recipe: Recipe, total: int) -> Any:
    """The same for adapters that share a step: the numbers that differ are in the state.

    Returns:
        A function from one adapter's recipe to its optimizer.
    """
    import optax

    from ..training import adamw

    unit = learning_rate_schedule(recipe, 1.0, total)

    def build(learning_rate: Any, head_learning_rate: Any, weight_decay: Any) -> Any:
        return adamw(
            task.config,
            lambda count: learning_rate * unit(count),
            head_learning_rate=lambda count: head_learning_rate * unit(count),
            weight_decay=weight_decay,
            clip_norm=recipe.clip_norm,
            name_map=task.name_map,
        )

    def make(own: Recipe) -> Any:
        return optax.inject_hyperparams(build)(
            learning_rate=peak_learning_rate(task, own),
            head_learning_rate=own.head_learning_rate,
            weight_decay=own.weight_decay,
        )

    return make
