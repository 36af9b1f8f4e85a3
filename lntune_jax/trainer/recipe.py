"""How training goes: what can be set, for one adapter or for each of many."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

from ..errors import ConfigError

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


class Rule(NamedTuple):
    """What a value must be."""

    expected: str
    holds: Callable[[Any], bool]


AT_LEAST_ONE = Rule("1 or more", lambda value: value >= 1)
POSITIVE = Rule("a number above 0", lambda value: math.isfinite(value) and value > 0)
NOT_NEGATIVE = Rule("0 or more", lambda value: math.isfinite(value) and value >= 0)

RULES = {
    "learning_rate": POSITIVE,
    "head_learning_rate": POSITIVE,
    "schedule": Rule(
        f"one of {', '.join(get_args(Schedule))}", lambda value: value in get_args(Schedule)
    ),
    "warmup_fraction": Rule("0 or more, and below 1", lambda value: 0 <= value < 1),
    "weight_decay": NOT_NEGATIVE,
    "clip_norm": POSITIVE,
    "on_nan": Rule(f"one of {', '.join(get_args(OnNan))}", lambda value: value in get_args(OnNan)),
    "epochs": AT_LEAST_ONE,
    "max_steps": AT_LEAST_ONE,
    "batch_size": AT_LEAST_ONE,
    "eval_batch_size": AT_LEAST_ONE,
    "eval_every": AT_LEAST_ONE,
    "patience": AT_LEAST_ONE,
    "gradient_accumulation": AT_LEAST_ONE,
    "ema": Rule("0 or more, and below 1", lambda value: 0 <= value < 1),
    "seed": Rule("from 0 to 4294967295", lambda value: 0 <= value < 2**32),
}
_WHOLE = ("epochs", "max_steps", "batch_size", "eval_batch_size", "eval_every", "patience", "seed")


def check_recipe(recipe: Recipe, name: str = "recipe") -> None:
    """Refuse values that make no sense.

    Raises:
        ConfigError: The message names the field.

    Example:
        >>> check_recipe(Recipe(batch_size=0))
        Traceback (most recent call last):
        lntune_jax.errors.ConfigError: recipe.batch_size is 0; it must be a whole number, 1 or more
    """
    if not isinstance(recipe, Recipe):
        raise ConfigError(f"{name} is {type(recipe).__name__}; expected a trainer.Recipe")
    for each in fields(Recipe):
        value, rule = getattr(recipe, each.name), RULES.get(each.name)
        if (value is None and each.default is None) or rule is None:
            continue
        is_whole = each.name not in _WHOLE or (isinstance(value, int) and value is not True)
        try:
            holds = is_whole and rule.holds(value)
        except TypeError:
            holds = False
        if not holds:
            kind = "a whole number, " if each.name in _WHOLE else ""
            raise ConfigError(f"{name}.{each.name} is {value!r}; it must be {kind}{rule.expected}")
