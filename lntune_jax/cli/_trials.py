"""The trials of a sweep: which values and seeds are tried, and what each starts from."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .._errors import ConfigError
from ._settings import Recipe, Sweep

# What may differ between adapters that share a compiled step: numbers that it takes as values.
SWEPT = ("learning_rate", "head_learning_rate", "weight_decay")


@dataclass(frozen=True)
class Trial:
    """One adapter of a sweep.

    Attributes:
        name: For tables and directories, for example `learning_rate-0.003-seed-1`.
        values: What was set for it, the seed included where several are tried.
        recipe: How it trains.
    """

    name: str
    values: Mapping[str, float]
    recipe: Recipe


def is_asked(sweep: Sweep) -> bool:
    """Whether the flags name more than one adapter, or a value to try."""
    return bool(sweep.sweep) or sweep.seeds != 1 or sweep.adapters_at_once is not None


def list_trials(sweep: Sweep, recipe: Recipe) -> tuple[Trial, ...]:
    """Every combination of the values and seeds.

    Args:
        sweep: The flags.
        recipe: What they change; its seed is the first.

    Raises:
        ConfigError: If a name cannot be swept, comes twice, or has a value that makes no sense.

    Example:
        >>> from lntune_jax.cli._settings import Recipe, Sweep
        >>> [trial.name for trial in list_trials(Sweep(("learning_rate=1e-3,0.01",)), Recipe())]
        ['learning_rate-0.001', 'learning_rate-0.01']
    """
    if sweep.seeds < 1:
        raise ConfigError(f"--seeds is {sweep.seeds}; it must be 1 or more")
    named = dict[str, tuple[float, ...]]()
    for entry in sweep.sweep:
        name, values = _parse(entry)
        if name in named:
            raise ConfigError(f"--sweep names {name} twice; list all its values in one entry")
        named[name] = values
    if sweep.seeds > 1:
        named["seed"] = tuple(range(recipe.seed, recipe.seed + sweep.seeds))
    trials = []
    for combination in itertools.product(*named.values()):
        values = dict(zip(named, combination, strict=True))
        label = "-".join(f"{name}-{value:g}" for name, value in values.items())
        trials.append(Trial(label or "trial", values, replace(recipe, **values)))
    return tuple(trials)


def start_leaves(work: Any, trials: tuple[Trial, ...], seed: int) -> list[dict[str, Any]]:
    """What each trial starts from: the base's own leaves, new ones drawn from the trial's seed.

    Args:
        work: The run's `_work.Work`.
        trials: The trials.
        seed: The seed with which the base was loaded.

    Returns:
        Flat dicts of trainable leaves, in the trials' order.
    """
    import jax.numpy as jnp

    import lntune_jax as lnt

    from ..models._loading import draw

    model = work.model
    trainable, _ = lnt.partition_params(model.params, work.config, name_map=model.name_map)
    starts = []
    for trial in trials:
        own = dict(trainable)
        for path in model.fresh if trial.recipe.seed != seed else ():
            if path in own:
                spread = model.settings.initializer_range
                drawn = draw(tuple(path.split(".")), own[path].shape, trial.recipe.seed, spread)
                own[path] = jnp.asarray(drawn, model.dtype).astype(own[path].dtype)
        starts.append(own)
    return starts


def _parse(entry: str) -> tuple[str, tuple[float, ...]]:
    name, equals, listed = entry.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or name not in SWEPT:
        raise ConfigError(
            f"--sweep {entry!r} must be NAME=VALUE,VALUE with a name of {', '.join(SWEPT)}"
            + ("; seeds are --seeds" if name in ("seed", "seeds") else "")
        )
    try:
        values = tuple(float(value) for value in listed.split(","))
    except ValueError:
        raise ConfigError(f"--sweep {entry!r}: the values must be numbers") from None
    least = 0.0 if name == "weight_decay" else 1e-30
    if not all(least <= value < float("inf") for value in values):
        raise ConfigError(f"--sweep {entry!r}: a value is out of range")
    if len(set(values)) != len(values):
        raise ConfigError(f"--sweep {entry!r}: a value comes twice")
    return name, values
