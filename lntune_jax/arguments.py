"""What arguments that many functions take may be, checked where they are given.

JAX and numpy are imported where they are needed: the command line's help needs neither.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

from .errors import ArgumentError, LNTuningError, TreeError
from .messages import shorten


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
    import numpy as np
    from jax.core import Tracer

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


def check_flag(name: str, value: Any, advice: str = "") -> None:
    """Raises an `ArgumentError` for what is neither True nor False, such as "no".

    Example:
        >>> try:
        ...     check_flag("cast", None)
        ... except ArgumentError as error:
        ...     print(error)
        cast must be True or False, not None
    """
    if isinstance(value, bool):
        return
    import numpy as np

    if not isinstance(value, np.bool_):
        raise ArgumentError(f"{name} must be True or False, not {shorten(repr(value))}{advice}")


def check_leaves(trainable: Any, error: type[LNTuningError] = TreeError) -> None:
    """Raises `error` for what is no dict, and says where its dict is.

    Example:
        >>> try:
        ...     check_leaves([1.0])
        ... except TreeError as error:
        ...     print(str(error).partition(":")[0])
        trainable must be a dict of leaf paths, not list
    """
    if isinstance(trainable, Mapping):
        return
    cure = "the first half that partition_params returned"
    if isinstance(getattr(trainable, "trainable", None), Mapping):
        cure = "its .trainable"
    found = type(trainable).__name__
    raise error(f"trainable must be a dict of leaf paths, not {found}: pass {cure}")


def check_optimizer(tx: Any) -> None:
    """Raises an `ArgumentError` for what is no Optax optimizer."""
    if not (callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))):
        raise ArgumentError(
            f"tx must be an Optax optimizer, such as optax.adamw(1e-3), not {type(tx).__name__}"
        )
