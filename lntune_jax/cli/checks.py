"""Refuse numbers that make no sense before anything slow starts.

A rule is a flag's field name and a test with its description; the rules are data, and one
function walks a settings object, its groups included, and names the flag that breaks one.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ConfigError
from ..storage.directories import refuse_url
from ..trainer.recipe import AT_LEAST_ONE, NOT_NEGATIVE, POSITIVE, RULES, Rule
from .flags import write_flag

_S = TypeVar("_S")


def check_settings(settings: _S) -> _S:
    """Check every number of a settings dataclass against its rule, and that no path is a URL.

    Args:
        settings: An instance of one of the dataclasses in `options`.

    Returns:
        The settings, with the home directory in place of a path's `~`: a shell leaves it in
        `--data=~/x.csv`.

    Raises:
        ConfigError: If one does not hold; the message names the flag.

    Example:
        >>> from lntune_jax.cli.options import Recipe
        >>> check_settings(Recipe(batch_size=0))
        Traceback (most recent call last):
        lntune_jax.errors.ConfigError: --batch-size is 0; it must be 1 or more
    """
    changed: dict[str, Any] = {}
    for each in fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, each.name)
        if is_dataclass(value):
            changed[each.name] = check_settings(value)
            continue
        if isinstance(value, tuple):
            changed[each.name] = tuple(_check_path(each.name, single) for single in value)
        else:
            changed[each.name] = _check_path(each.name, value)
        if value is not None and each.name in _RULES:
            _check_value(each.name, value, _RULES[each.name])
    return replace(settings, **changed)  # type: ignore[type-var]


def _check_path(name: str, value: Any) -> Any:
    """A path with its `~` replaced; anything else as it is."""
    if not isinstance(value, Path) and (name != "model" or value is None):
        return value
    refuse_url(value, error=ConfigError, what=write_flag(name))
    try:
        whole = Path(value).expanduser()
    except RuntimeError:
        raise ConfigError(f"{write_flag(name)} {value}: there is no such user") from None
    # A hub id, or a path as it was written.
    return type(value)(whole) if str(value).startswith("~") else value


def _check_value(name: str, value: Any, rule: Rule) -> None:
    for single in value if isinstance(value, tuple) else (value,):
        if not rule.holds(single):
            raise ConfigError(f"{write_flag(name)} is {single}; it must be {rule.expected}")


_RULES = {
    **RULES,
    "eval_fraction": Rule("between 0 and 1, for example 0.1", lambda value: 0 < value < 1),
    "max_length": Rule("8 or more", lambda value: value >= 8),
    "max_new_tokens": AT_LEAST_ONE,
    "temperature": NOT_NEGATIVE,
    "top_k": AT_LEAST_ONE,
    "top_p": Rule("above 0 and at most 1", lambda value: 0 < value <= 1),
    "num_labels": AT_LEAST_ONE,
    "rank": AT_LEAST_ONE,
    "buckets": AT_LEAST_ONE,
    "max_train_rows": AT_LEAST_ONE,
    "steps": AT_LEAST_ONE,
    "checkpoint_every": AT_LEAST_ONE,
    "checkpoint_minutes": POSITIVE,
    "stop_after_steps": AT_LEAST_ONE,
    "adapters_at_once": AT_LEAST_ONE,
    "num_processes": AT_LEAST_ONE,
    "process_id": NOT_NEGATIVE,
    "heartbeat_seconds": AT_LEAST_ONE,
    "seeds": Rule("from 0 to 4294967295", lambda value: 0 <= value < 2**32),
}
