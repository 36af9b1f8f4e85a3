"""What the arguments of this folder's functions may be, checked where they are given."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
from jax.core import Tracer

from ..errors import ArgumentError


def check_number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Raises an `ArgumentError` for what is no number, or lies outside the bounds.

    Example:
        >>> try:
        ...     check_number("ema_decay", 1.0, least=0, below=1)
        ... except ArgumentError as error:
        ...     print(error)
        ema_decay must be a number that is at least 0 and less than 1, not 1.0
    """
    is_number = np.ndim(value) == 0 and not isinstance(value, bool | np.bool_ | str)
    if is_number and isinstance(value, Tracer):
        return
    try:
        number = float(value) if is_number else float("nan")
    except (TypeError, ValueError):
        number = float("nan")
    bounds = {
        f"at least {least}": least is None or number >= least,
        f"more than {above}": above is None or number > above,
        f"less than {below}": below is None or number < below,
    }
    if np.isnan(number) or not all(bounds.values()):
        said = [text for text in bounds if not text.endswith("None")]
        raise ArgumentError(f"{name} must be a number that is {' and '.join(said)}, not {value!r}")


def check_count(name: str, value: Any) -> None:
    """Raises an `ArgumentError` for what is no whole number of 1 or more."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < 1:
        raise ArgumentError(f"{name} must be a whole number of 1 or more, not {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Raises an `ArgumentError` for what is neither True nor False."""
    if not isinstance(value, bool | np.bool_):
        raise ArgumentError(f"{name} must be True or False, not {value!r}")


def check_optimizer(tx: Any) -> None:
    """Raises an `ArgumentError` for what is no Optax optimizer."""
    if not (callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))):
        raise ArgumentError(
            f"tx must be an Optax optimizer, such as optax.adamw(1e-3), not {type(tx).__name__}"
        )
