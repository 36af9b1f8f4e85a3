"""Soups: averages of adapters, of all or of those that help (Wortsman et al., arXiv 2203.05482)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..adapters.reading import Adapter
from ..errors import AdapterError
from .algebra import average
from .core import AdapterBank
from .rows import take_rows


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
    listed = list(bank.names[1:] if names is None else names)
    if not listed:
        raise AdapterError("there is no adapter to average: the bank holds the base alone")
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
    return average(bank, bank.names[1:] if names is None else names)


def _score(evaluate: Callable[..., Any], leaves: dict[str, Any], name: str) -> float:
    score = float(evaluate(leaves))
    if math.isnan(score):
        raise AdapterError(f"evaluate gave NaN when it came to the adapter {name!r}")
    return score
