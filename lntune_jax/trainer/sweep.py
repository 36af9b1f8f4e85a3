"""The trials of a sweep: which values, seeds and tables are tried."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..messages import Argument
from .recipe import Recipe, Trial

if TYPE_CHECKING:
    from ..tasks.base import Task

# What may differ between adapters that share a compiled step: numbers that it takes as values.
SWEPT = ("learning_rate", "head_learning_rate", "weight_decay")
_MOST = 10_000


@dataclass(frozen=True)
class Grid:
    """Many adapters trained at once over one base; the best is kept as the run's own."""

    sweep: tuple[str, ...] = ()
    """Try each value of learning_rate, head_learning_rate or weight_decay, in every combination."""
    seeds: int = 1
    """How many seeds to train with, from --seed on (a count, 3; not a list)."""
    more_data: tuple[Path, ...] = ()
    """Tables beside --data: every combination is trained on each of them, alone."""
    adapters_at_once: int | None = None
    """How many adapters share a step, to bound the memory."""


def is_asked(sweep: Grid) -> bool:
    """Whether the flags name more than one adapter, or a value to try."""
    return bool(sweep.sweep or sweep.more_data) or sweep.seeds != 1


def list_trials(sweep: Grid, recipe: Recipe, data: Path = Path("data")) -> tuple[Trial, ...]:
    """Every combination of the tables, values and seeds.

    Args:
        sweep: The flags.
        recipe: What they change; its seed is the first.
        data: The first table.

    Raises:
        ConfigError: If a name cannot be swept, comes twice, or has a value that makes no sense.

    Example:
        >>> from lntune_jax.trainer.recipe import Recipe
        >>> [trial.name for trial in list_trials(Grid(("learning_rate=1e-3,0.01",)), Recipe())]
        ['learning_rate-0.001', 'learning_rate-0.01']
    """
    if sweep.seeds < 1:
        raise ConfigError(Argument("seeds"), f" is {sweep.seeds}; it must be 1 or more")
    if recipe.seed + sweep.seeds > 2**32:
        raise ConfigError(
            Argument("seeds", sweep.seeds),
            " from ",
            Argument("seed", recipe.seed),
            " on goes beyond 4294967295, the last",
        )
    named = dict[str, tuple[Any, ...]]()
    tables = name_tables((data, *sweep.more_data))
    if sweep.more_data:
        named["data"] = tables
    for entry in sweep.sweep:
        name, values = _parse(entry)
        if name in named:
            raise ConfigError(
                Argument("sweep"), f" names {name} twice; list all its values in one entry"
            )
        named[name] = values
    count = sweep.seeds * math.prod(map(len, named.values()))
    if count > _MOST:
        raise ConfigError(
            Argument("sweep"),
            " and ",
            Argument("seeds"),
            f" make {count:,} adapters; at most {_MOST:,} train",
        )
    if sweep.seeds > 1:
        named["seed"] = tuple(range(recipe.seed, recipe.seed + sweep.seeds))
    trials = []
    for combination in itertools.product(*named.values()):
        values = dict(zip(named, combination, strict=True))
        label = "-".join(f"{name}-{write_value(value)}" for name, value in values.items())
        own = replace(recipe, **{name: values[name] for name in values if name != "data"})
        table = tables.index(values["data"]) if "data" in values else 0
        trials.append(Trial(label or "trial", values, own, table))
    return tuple(trials)


def name_tables(paths: Sequence[Path]) -> tuple[str, ...]:
    """A name for each table: of its file, with its directory's or a number if that is not enough.

    Raises:
        ConfigError: If a table comes twice.

    Example:
        >>> name_tables([Path("de/train.csv"), Path("fr/train.csv")])
        ('de-train', 'fr-train')
    """
    whole = [path.expanduser().resolve() for path in paths]
    if len(set(whole)) < len(whole):
        twice = next(str(path) for path in paths if whole.count(path.expanduser().resolve()) > 1)
        raise ConfigError(
            Argument("data"),
            " and ",
            Argument("more_data"),
            f" name {twice} twice; leave one of them out",
        )
    for names in (
        [path.stem for path in whole],
        [f"{path.parent.name}-{path.stem}" for path in whole],
    ):
        if len(set(names)) == len(names):
            return tuple(names)
    return tuple(f"{number}-{path.stem}" for number, path in enumerate(whole, start=1))


def write_value(value: float | str) -> str:
    """As short as it can be and still this number: the names of trials must differ.

    Example:
        >>> write_value(0.001), write_value(20240101)
        ('0.001', '20240101')
    """
    if isinstance(value, str):
        return value
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def check_effect(task: Task, trials: Sequence[Trial], seed: int) -> None:
    """Refuse a sweep in which a number changes nothing, or a seed not all that it should.

    Raises:
        ConfigError: One of the two; the message names the flag.
    """
    names = trials[0].values
    idle = [name for name in ("head_learning_rate", "weight_decay") if name in names]
    if idle and not task.config.modules_to_save:
        raise ConfigError(
            Argument("sweep"),
            f" {idle[0]} changes nothing: it is for saved modules, and only norms train; leave it "
            "out, or name modules with ",
            Argument("save_modules"),
        )
    if "learning_rate" in names and task.config.target_modules == ():
        raise ConfigError(
            Argument("sweep"),
            " learning_rate changes nothing: it is for norms, and with ",
            Argument("targets", []),
            " no norm trains; leave it out, or sweep head_learning_rate",
        )
    kept = task.left_as_drawn() if any(trial.recipe.seed != seed for trial in trials) else []
    if kept:
        module = kept[0].rpartition(".")[0]
        raise ConfigError(
            Argument("seeds"),
            f" would leave {kept[0]} as seed {seed} drew it, because it does not train; name "
            f"{module} in ",
            Argument("save_modules"),
            " too",
        )


def _parse(entry: str) -> tuple[str, tuple[float, ...]]:
    name, equals, listed = entry.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or name not in SWEPT:
        raise ConfigError(
            Argument("sweep"),
            f" {entry!r} must be NAME=VALUE,VALUE with a name of {', '.join(SWEPT)}",
            *(("; seeds are ", Argument("seeds")) if name in ("seed", "seeds") else ()),
        )
    try:
        values = tuple(float(value) for value in listed.split(","))
    except ValueError:
        raise ConfigError(Argument("sweep"), f" {entry!r}: the values must be numbers") from None
    least = 0.0 if name == "weight_decay" else 1e-30
    if not all(least <= value < float("inf") for value in values):
        raise ConfigError(Argument("sweep"), f" {entry!r}: a value is out of range")
    if len(set(values)) != len(values):
        raise ConfigError(Argument("sweep"), f" {entry!r}: a value comes twice")
    return name, values
