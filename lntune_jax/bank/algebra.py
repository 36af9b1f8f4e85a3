"""Arithmetic on the adapters of a bank, around the base: an adapter is what it changes there.

Sums are taken in float64 and rounded once, to the bank's dtype. So one adapter with weight 1, the
mean of equal ones, and both ends of an interpolation come out bit for bit (Ilharco et al.,
"Editing models with task arithmetic", arXiv 2212.04089, does the same with whole models).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..adapters.reading import Adapter
from ..config import LNTuningConfig
from ..errors import AdapterError
from ..storage.arrays import to_numpy
from .core import AdapterBank
from .sources import select_paths
from .values import BASE
from .write import get_row_shapes


def weighted_sum(bank: AdapterBank, weights: Mapping[str, float]) -> Adapter:
    """The base plus each adapter's change times its weight.

    Args:
        bank: the bank.
        weights: by name, any finite numbers; they need not add up to 1.

    Returns:
        An `Adapter` of the leaves that one of them tunes, in the bank's dtype, ready for
        `add_adapter` and `save_adapter`. Its config is theirs if they have the same, else one that
        selects these leaves.

    Raises:
        AdapterError: a name is not in the bank, a weight is not finite, there is none, or the sum
            is too large for the bank's dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"ln": {"scale": jnp.ones(2)}}
        >>> bank = lnt.bank.make_bank(params, {"a": {"ln.scale": jnp.array([2.0, 3.0])}})
        >>> lnt.bank.weighted_sum(bank, {"a": 2.0}).trainable
        {'ln.scale': array([3., 5.], dtype=float32)}
    """
    broken = [name for name, weight in weights.items() if not math.isfinite(weight)]
    if broken or not weights:
        raise AdapterError(f"weights must hold finite numbers by name, not {dict(weights)!r:.200}")
    rest = 1.0 - math.fsum(weights.values())  # of the base, in affine form
    return _mix(bank, {BASE: rest + weights.get(BASE, 0.0)} | _without_base(weights))


def average(bank: AdapterBank, names: Sequence[str]) -> Adapter:
    """The mean of adapters; where one does not tune a leaf, the base's values count for it.

    Args:
        bank: the bank.
        names: of the adapters, each once.

    Raises:
        AdapterError: as for `weighted_sum`; or a name comes twice.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> adapters = {"a": {"ln.scale": jnp.full(2, 2.0)}, "b": {"ln.scale": jnp.full(2, 5.0)}}
        >>> bank = lnt.bank.make_bank({"ln": {"scale": jnp.ones(2)}}, adapters)
        >>> lnt.bank.average(bank, ["a", "b"]).trainable
        {'ln.scale': array([3.5, 3.5], dtype=float32)}
    """
    listed = _check_names(names)
    return _mix(bank, dict.fromkeys(listed, 1.0), divisor=len(listed))


def interpolate(bank: AdapterBank, start: str, end: str, amount: float) -> Adapter:
    """The point at `amount` of the way from one adapter to another; "base" may be either.

    Args:
        bank: the bank.
        start: where `amount` is 0.
        end: where `amount` is 1.
        amount: any finite number; beyond 0 and 1 it extrapolates.

    Raises:
        AdapterError: as for `weighted_sum`.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"ln": {"scale": jnp.ones(2)}}
        >>> bank = lnt.bank.make_bank(params, {"a": {"ln.scale": jnp.array([2.0, 3.0])}})
        >>> lnt.bank.interpolate(bank, "base", "a", 0.5).trainable
        {'ln.scale': array([1.5, 2. ], dtype=float32)}
    """
    if not math.isfinite(amount):
        raise AdapterError(f"amount is {amount}; expected a finite number")
    return _mix(bank, {start: 1.0} if start == end else {start: 1.0 - amount, end: amount})


def negate(bank: AdapterBank, name: str) -> Adapter:
    """The adapter that changes the base by as much the other way: base - (adapter - base).

    Rounded once; to negate twice gives the adapter back but for that.

    Raises:
        AdapterError: as for `weighted_sum`.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"ln": {"scale": jnp.ones(2)}}
        >>> bank = lnt.bank.make_bank(params, {"a": {"ln.scale": jnp.array([2.0, 3.0])}})
        >>> lnt.bank.negate(bank, "a").trainable
        {'ln.scale': array([ 0., -1.], dtype=float32)}
    """
    return weighted_sum(bank, {name: -1.0})


def _mix(bank: AdapterBank, weights: Mapping[str, float], divisor: int = 1) -> Adapter:
    """The sum of rows times weights; a row holds the base's values where it tunes nothing."""
    names = [name for name in weights if name != BASE] or [BASE]
    paths, numbers = list_tuned(bank, names), bank.get_ids(list(weights))
    factors = np.array(list(weights.values()), np.float64)
    mixed = {}
    for path in paths:
        exact = np.tensordot(factors, read_rows(bank, path, numbers), axes=1) / divisor
        with np.errstate(over="ignore"):
            mixed[path] = exact.astype(bank.leaves[path].dtype)
        if not np.isfinite(mixed[path]).all():
            raise AdapterError(
                f"the sum is too large for {bank.leaves[path].dtype} in {path!r}: lower the weights"
            )
    return Adapter(mixed, _unite_configs(bank, names, paths))


def _without_base(weights: Mapping[str, float]) -> dict[str, float]:
    return {name: weight for name, weight in weights.items() if name != BASE}


def list_tuned(bank: AdapterBank, names: Sequence[str]) -> list[str]:
    """The leaves that one of the adapters tunes, in the bank's order; of the base alone, all."""
    tuned = {path for name in names for path in bank.get_row(name).paths}
    return [path for path in bank.leaves if path in tuned] or list(bank.leaves)


def read_rows(bank: AdapterBank, path: str, numbers: Any) -> np.ndarray:
    """Some rows of one leaf, in float64 on the host."""
    leaf = bank.leaves[path]
    rows = leaf[np.asarray(numbers)] if isinstance(leaf, np.ndarray) else _take(leaf, numbers)
    return rows.astype(np.float64)


def _take(leaf: Any, numbers: Any) -> np.ndarray:
    return np.stack([to_numpy("a row", leaf[int(number)]) for number in numbers])


def _check_names(names: Sequence[str]) -> list[str]:
    listed = [names] if isinstance(names, str) else list(names)
    if not listed or len(set(listed)) != len(listed):
        raise AdapterError(f"names must list adapters, each once, not {listed!r:.200}")
    return listed


def _unite_configs(bank: AdapterBank, names: Sequence[str], paths: Sequence[str]) -> LNTuningConfig:
    """The adapters' own config where all have the same and tune the same; else a new one."""
    rows = [bank.get_row(name) for name in names]
    config = rows[0].config
    if config is not None and all(
        row.config == config and set(row.paths) == set(paths) for row in rows
    ):
        return config
    return select_paths(paths, get_row_shapes(bank))
