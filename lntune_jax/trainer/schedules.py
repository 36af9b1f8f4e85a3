"""Learning rates over the steps of a run: a linear warm-up, then a fall to zero."""

from __future__ import annotations

from typing import Any

from ..cli.options import Recipe


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
