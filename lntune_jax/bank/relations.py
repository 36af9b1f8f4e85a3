"""How far the adapters of a bank moved from the base, and how they relate, leaf by leaf."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ..errors import AdapterError
from ..messages import list_names
from .algebra import list_tuned, read_rows
from .core import AdapterBank


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
    listed = list(bank.names[1:] if names is None else names)
    if not listed:
        raise AdapterError("there is no adapter to compare: the bank holds the base alone")
    numbers = bank.get_ids(listed)
    chosen = list_tuned(bank, listed) if paths is None else list(paths)
    absent = [path for path in chosen if path not in bank.leaves]
    if absent or not chosen:
        raise AdapterError(f"paths: the bank has no leaf {list_names(absent)}")
    changes = []
    for path in chosen:
        rows = read_rows(bank, path, [0, *numbers])
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


def _squared_distances(change: np.ndarray) -> np.ndarray:
    """From the differences themselves: of near adapters the norms' difference would cancel."""
    return np.stack([np.square(change - own).sum(1) for own in change])


def _cosines(products: np.ndarray) -> np.ndarray:
    lengths = np.sqrt(np.diagonal(products))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip(products / np.outer(lengths, lengths), -1, 1)
