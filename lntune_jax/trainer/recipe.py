"""How training goes: what can be set, for one adapter or for each of many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Schedule = Literal["linear", "cosine", "constant"]
OnNan = Literal["stop", "skip"]


@dataclass(frozen=True)
class Recipe:
    """How training goes.

    Example:
        >>> Recipe(epochs=2, learning_rate=5e-3).schedule
        'linear'
    """

    learning_rate: float | None = None
    """Peak learning rate of the norms."""
    head_learning_rate: float = 1e-3
    """Peak learning rate of the saved modules (the head)."""
    schedule: Schedule = "linear"
    """How the learning rate falls after the warm-up."""
    warmup_fraction: float = 0.1
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.0
    """AdamW weight decay of the saved modules; norms are never decayed."""
    clip_norm: float | None = None
    """Largest gradient norm."""
    on_nan: OnNan = "stop"
    """Where a loss or gradient is NaN or infinite: stop, or skip that step's update."""
    epochs: int = 3
    """Passes over the training rows."""
    max_steps: int | None = None
    """Train for so many steps at most; the schedule ends there."""
    batch_size: int = 32
    """Rows a step."""
    eval_batch_size: int = 64
    """Rows a batch in evaluation."""
    eval_every: int | None = None
    """Evaluate after so many steps."""
    best_by: str | None = None
    """The evaluation figure that picks the adapter to keep."""
    patience: int | None = None
    """Stop after so many evaluations in a row without a better one."""
    gradient_accumulation: int = 1
    """Do each step in so many parts of the batch, for less memory; the step is the same."""
    ema: float | None = None
    """Evaluate and keep an exponential moving average of what trains, with this decay."""
    dropout: bool = False
    """Train with the model's own dropout."""
    seed: int = 0
    """Seed of the new head, the split, the order of rows and dropout."""


@dataclass(frozen=True)
class Trial:
    """One adapter of a run.

    Attributes:
        name: For tables and directories, for example `learning_rate-0.003-seed-1`; `None` for an
            adapter that trains alone.
        values: What was set for it; the seed and the table's name where there are several.
        recipe: How it trains.
        table: Number of the task that it is trained on.
    """

    name: str | None
    values: Mapping[str, float | str]
    recipe: Recipe
    table: int = 0
