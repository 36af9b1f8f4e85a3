"""Arithmetic on the adapters of a bank, around the base: an adapter is what it changes there.

Sums are taken in float64 and rounded once, to the bank's dtype. Where all adapters of a sum have
the same value, the sum has it too, bit for bit. So one adapter with weight 1, the mean of equal
ones, and both ends of an interpolation come out as they are, signs of zeros included (Ilharco et
al., "Editing models with task arithmetic", arXiv 2212.04089, does the same with whole models).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..adapters.store import Adapter
from ..config import LNTuningConfig
from ..errors import AdapterError
from ..messages import list_names
from ..storage.leaves import to_numpy
from .core import BASE, AdapterBank, check_bank, gather
from .rows import take_rows
from .sources import get_row_shapes, select_paths


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
    listed = weights if isinstance(weights, Mapping) else {}
    if not listed or not all(map(_is_finite, listed.values())):
        raise AdapterError(f"weights must hold finite numbers by name, not {weights!r:.200}")
    given = {name: float(weight) for name, weight in listed.items()}
    try:
        rest = 1.0 - math.fsum(given.values())  # of the base, in affine form
    except OverflowError as error:
        raise AdapterError(f"weights are too large to be added: {given!r:.200}") from error
    return _mix(bank, {**given, BASE: rest + given.get(BASE, 0.0)}, list(given))


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
    listed = _check_names(bank, names, is_once=True)
    return _mix(bank, dict.fromkeys(listed, 1.0), listed, divisor=len(listed))


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
    if not _is_finite(amount):
        raise AdapterError(f"amount is {amount!r:.80}; expected a finite number")
    share = float(amount)
    _check_names(bank, [start, end])
    weights = {start: 1.0} if start == end else {start: 1.0 - share, end: share}
    return _mix(bank, weights, list(weights))


def negate(bank: AdapterBank, name: str) -> Adapter:
    """The adapter that changes the base by as much the other way: base - (adapter - base).

    Where the adapter has the base's value, so has this. Elsewhere it is rounded once, and to
    negate twice gives the adapter back but for that.

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


class Soup(NamedTuple):
    """What `greedy_soup` returns.

    Attributes:
        adapter: the average of the adapters that were kept.
        names: these, in the order in which they were tried.
        score: of the average.
        scores: of each adapter alone, by name.

    Example:
        >>> import lntune_jax as lnt
        >>> lnt.bank.Soup(None, ("a",), 0.5, {"a": 0.5}).names
        ('a',)
    """

    adapter: Any
    names: tuple[str, ...]
    score: float
    scores: dict[str, float]


def greedy_soup(
    bank: AdapterBank,
    evaluate: Callable[[dict[str, Any]], Any],
    names: Sequence[str] | None = None,
) -> Soup:
    """Averages adapters, the best first, keeping each that does not make the average worse.

    Args:
        bank: the bank.
        evaluate: a score, the higher the better, of `{leaf path: array}` with every leaf that the
            bank has rows for: `merge_params(leaves, freeze_base(params, bank))` is the model.
        names: the adapters to try; None is all, without the base.

    Raises:
        AdapterError: there is no adapter, a name is not in the bank, or a score is NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> values = {"a": 2.0, "b": 5.0, "c": 60.0}
        >>> adapters = {name: {"ln.scale": jnp.full(2, value)} for name, value in values.items()}
        >>> bank = lnt.bank.make_bank({"ln": {"scale": jnp.ones(2)}}, adapters)
        >>> soup = lnt.bank.greedy_soup(bank, lambda leaves: -abs(leaves["ln.scale"] - 3.0).max())
        >>> soup.names, soup.adapter.trainable["ln.scale"].tolist()
        (('a', 'b'), [3.5, 3.5])
    """
    if not callable(evaluate):
        raise AdapterError(
            f"evaluate must be a function that gives a score, not {type(evaluate).__name__}"
        )
    listed = _check_names(bank, _list_adapters(bank, names), is_once=True)
    scores = {name: _score(evaluate, take_rows(bank, name), name) for name in listed}
    order = sorted(scores, key=lambda name: -scores[name])
    kept, best = order[:1], scores[order[0]]
    base = take_rows(bank, 0)
    for name in order[1:]:
        mixed = average(bank, [*kept, name]).trainable
        score = _score(evaluate, {**base, **mixed}, name)
        if score >= best:
            kept, best = [*kept, name], score
    return Soup(average(bank, kept), tuple(kept), best, scores)


def uniform_soup(bank: AdapterBank, names: Sequence[str] | None = None) -> Adapter:
    """The average of all adapters, or of some.

    Raises:
        AdapterError: there is no adapter, or a name is not in the bank.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> adapters = {"a": {"ln.scale": jnp.full(2, 2.0)}, "b": {"ln.scale": jnp.full(2, 5.0)}}
        >>> bank = lnt.bank.make_bank({"ln": {"scale": jnp.ones(2)}}, adapters)
        >>> lnt.bank.uniform_soup(bank).trainable
        {'ln.scale': array([3.5, 3.5], dtype=float32)}
    """
    return average(bank, _list_adapters(bank, names))


class Comparison(NamedTuple):
    """What `compare_adapters` returns; float64 numpy arrays.

    Attributes:
        names: of the adapters.
        paths: of the leaves that were compared.
        moved: (adapters, leaves), the RMS change from the base.
        distance: (adapters, adapters), the Euclidean distance over all leaves.
        cosine: (adapters, adapters), between the changes over all leaves; NaN for an adapter that
            did not move.
        leaf_distance: (leaves, adapters, adapters).
        leaf_cosine: (leaves, adapters, adapters).

    Example:
        >>> import lntune_jax as lnt
        >>> lnt.bank.Comparison._fields[:3]
        ('names', 'paths', 'moved')
    """

    names: tuple[str, ...]
    paths: tuple[str, ...]
    moved: np.ndarray
    distance: np.ndarray
    cosine: np.ndarray
    leaf_distance: np.ndarray
    leaf_cosine: np.ndarray


def compare_adapters(
    bank: AdapterBank,
    names: Sequence[str] | None = None,
    *,
    paths: Iterable[str] | None = None,
) -> Comparison:
    """Distances and cosines between adapters, as changes of the base, over all and leaf by leaf.

    Args:
        bank: the bank.
        names: of the adapters; None is all of them, without the base.
        paths: the leaves to compare; None is every leaf that one of them tunes.

    Raises:
        AdapterError: a name or a path is not in the bank, or there is no adapter.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> values = {"a": jnp.array([4.0, 5.0]), "b": jnp.array([-2.0, -3.0])}
        >>> adapters = {name: {"ln.scale": value} for name, value in values.items()}
        >>> bank = lnt.bank.make_bank({"ln": {"scale": jnp.ones(2)}}, adapters)
        >>> related = lnt.bank.compare_adapters(bank)
        >>> related.distance[0, 1].item(), related.cosine[0, 1].item()
        (10.0, -1.0)
    """
    listed = _list_adapters(bank, names)
    numbers = [0, *map(bank.get_number, listed)]
    if paths is not None and not isinstance(paths, Iterable):
        raise AdapterError(f"paths must be leaf paths, not {type(paths).__name__}")
    paths = [paths] if isinstance(paths, str) else paths
    chosen = _list_tuned(bank, listed) if paths is None else list(paths)
    absent = [path for path in chosen if path not in bank.leaves]
    if absent or not chosen:
        raise AdapterError(f"paths: the bank has no leaf {list_names(absent)}")
    changes = []
    for path in chosen:
        rows = _read_rows(bank, path, numbers).astype(np.float64)
        changes.append((rows[1:] - rows[0]).reshape(len(listed), -1))
    products = np.stack([change @ change.T for change in changes])
    squares = np.stack([_squared_distances(change) for change in changes])
    sizes = np.array([change.shape[1] for change in changes])
    moved = np.sqrt(np.diagonal(products, axis1=1, axis2=2).T / sizes)
    return Comparison(
        tuple(listed),
        tuple(chosen),
        moved,
        np.sqrt(squares.sum(0)),
        _cosines(products.sum(0)),
        np.sqrt(squares),
        np.stack([_cosines(product) for product in products]),
    )


def _mix(
    bank: AdapterBank, weights: Mapping[str, float], names: Sequence[str], divisor: int = 1
) -> Adapter:
    """The sum of rows times weights, which add up to `divisor`, divided by it.

    A row holds the base's values where it tunes nothing.
    """
    check_bank(bank)
    tuned = [name for name in names if name != BASE] or [BASE]
    paths = _list_tuned(bank, tuned)
    numbers = {bank.get_number(name): weight for name, weight in weights.items() if weight}
    mixed = {
        path: _sum_rows(path, _read_rows(bank, path, numbers), numbers, divisor) for path in paths
    }
    return Adapter(mixed, _unite_configs(bank, tuned, paths))


def _sum_rows(
    path: str, rows: np.ndarray, factors: Mapping[int, float], divisor: int
) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        terms = [f * row.astype(np.float64) for f, row in zip(factors.values(), rows, strict=True)]
        mixed = (functools.reduce(np.add, terms) / divisor).astype(rows.dtype)
    # By bits, since equal zeros may have other signs.
    bits = rows.view(f"u{rows.dtype.itemsize}")
    mixed = np.where((bits == bits[0]).all(0), rows[0], mixed)
    if not np.isfinite(mixed).all():
        raise AdapterError(f"the sum is too large for {rows.dtype} in {path!r}: lower the weights")
    return mixed


def _is_finite(number: Any) -> bool:
    try:
        return math.isfinite(number)
    except (TypeError, OverflowError):
        return False


def _list_tuned(bank: AdapterBank, names: Sequence[str]) -> list[str]:
    """The leaves that one of the adapters tunes, in the bank's order; of the base alone, all."""
    tuned = {path for name in names for path in bank.get_row(name).paths}
    return [path for path in bank.leaves if path in tuned] or list(bank.leaves)


def _read_rows(bank: AdapterBank, path: str, numbers: Iterable[int]) -> np.ndarray:
    """Some rows of one leaf, on the host."""
    leaf = bank.leaves[path]
    return to_numpy(path, gather(leaf, list(numbers)))


def _list_adapters(bank: AdapterBank, names: str | Sequence[str] | None) -> list[str]:
    """The names given, or all but the base's."""
    check_bank(bank)
    if names is None and len(bank.names) == 1:
        raise AdapterError("there is no adapter: the bank holds the base alone")
    return _check_names(bank, bank.names[1:] if names is None else names)


def _check_names(
    bank: AdapterBank, names: str | Sequence[str], *, is_once: bool = False
) -> list[str]:
    """The names as a list, each of them in the bank."""
    check_bank(bank)
    listed = [names] if isinstance(names, str) else names
    count = np.size(bank.get_ids(listed))
    if not count or (is_once and len(set(listed)) != count):
        raise AdapterError(f"names must list adapters, each once, not {listed!r:.200}")
    return list(listed)


def _unite_configs(bank: AdapterBank, names: Sequence[str], paths: Sequence[str]) -> LNTuningConfig:
    """The adapters' own config where all have the same and tune the same; else a new one."""
    rows = [bank.get_row(name) for name in names]
    config = rows[0].config
    if config is not None and all(
        row.config == config and set(row.paths) == set(paths) for row in rows
    ):
        return config
    return select_paths(paths, get_row_shapes(bank))


def _score(evaluate: Callable[..., Any], leaves: dict[str, Any], name: str) -> float:
    found = evaluate(leaves)
    try:
        score = float(found)
    except (TypeError, ValueError):
        raise AdapterError(
            f"evaluate gave {found!r:.80} for the adapter {name!r}; expected one number"
        ) from None
    if math.isnan(score):
        raise AdapterError(f"evaluate gave NaN when it came to the adapter {name!r}")
    return score


def _squared_distances(change: np.ndarray) -> np.ndarray:
    """From the differences themselves: of near adapters the norms' difference would cancel."""
    return np.stack([np.square(change - own).sum(1) for own in change])


def _cosines(products: np.ndarray) -> np.ndarray:
    lengths = np.sqrt(np.diagonal(products))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip(products / np.outer(lengths, lengths), -1, 1)
