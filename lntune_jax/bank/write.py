"""Writing a row of a bank, and giving a bank more rows or leaves.

A row is written by one small program that never changes, so that a server can add adapters while
it runs; the programs that use the bank see arrays of the same shapes as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..adapters.checks import fill_placeholders
from ..errors import AdapterError
from ..storage.arrays import to_numpy
from .base import check_base, list_base
from .core import AdapterBank, Row, read_leaves
from .values import get_trainable


def grow_bank(bank: AdapterBank, capacity: int) -> AdapterBank:
    """Gives a bank more rows. Programs that use it are compiled anew, once.

    Raises:
        AdapterError: it has more rows than that, or its sharding cannot lay them out.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> bank = lnt.bank.make_bank({"ln": {"scale": jnp.ones(2)}}, capacity=2)
        >>> lnt.bank.grow_bank(bank, 16).capacity
        16
    """
    more = capacity - bank.capacity
    if more < 0:
        raise AdapterError(f"the bank has {bank.capacity} rows, more than capacity={capacity}")

    def grow(leaf: Any) -> Any:
        missing = [(0, more)] + [(0, 0)] * (leaf.ndim - 1)
        if isinstance(leaf, np.ndarray):
            return np.pad(leaf, missing, constant_values=np.array(np.nan, leaf.dtype))
        grown = jnp.pad(leaf, missing, constant_values=jnp.array(jnp.nan, leaf.dtype))
        return jax.device_put(grown, leaf.sharding) if leaf.committed else grown

    leaves = {path: grow(leaf) for path, leaf in bank.leaves.items()}
    return AdapterBank(leaves, bank.rows + (None,) * more)


def get_row_shapes(bank: AdapterBank) -> dict[str, jax.ShapeDtypeStruct]:
    """The shape and dtype of one row of each leaf."""
    return {
        path: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for path, leaf in bank.leaves.items()
    }


def add_leaves(bank: AdapterBank, adapter: Any, params: Any) -> AdapterBank:
    """The bank with rows for leaves that it lacks: the base's values in all that are in use.

    Raises:
        AdapterError: `params` is not the base that the bank was made over, or lacks a leaf.
    """
    absent = [path for path in get_trainable(adapter) if path not in bank.leaves]
    if not absent:
        return bank
    own = list_base(fill_placeholders(params)[0], bank.leaves)[1]
    first = {path: to_numpy(path, leaf[:1]) for path, leaf in bank.leaves.items()}
    check_base("params", first, own, has_values=True)
    like = next(iter(bank.leaves.values()))
    used = np.array([row is not None for row in bank.rows])
    leaves = dict(bank.leaves)
    for path, value in read_leaves(params, absent).items():
        stacked = np.full((bank.capacity, *value.shape), np.nan, like.dtype)
        stacked[used] = value
        if isinstance(like, np.ndarray):
            leaves[path] = stacked
        else:
            spec = getattr(like.sharding, "spec", None)
            rows_only = spec is None or all(axis is None for axis in spec[1:])
            sharding = like.sharding if like.committed and rows_only else None
            leaves[path] = (
                jnp.asarray(stacked) if sharding is None else jax.device_put(stacked, sharding)
            )
    return AdapterBank(leaves, bank.rows)


def write_row(
    bank: AdapterBank, number: int, row: Row | None, values: Mapping[str, Any], donate: bool
) -> AdapterBank:
    """Puts values into one row, the base's where there are none.

    One program serves every adapter: absent leaves come as zeros and a mark.
    """
    rows = replace_at(bank.rows, number, row)
    if bank.on_host:
        leaves = {path: leaf if donate else leaf.copy() for path, leaf in bank.leaves.items()}
        for path, leaf in leaves.items():
            leaf[number] = values.get(path, leaf[0])
        return AdapterBank(leaves, rows)
    full = {
        path: values.get(path, np.zeros(leaf.shape[1:], leaf.dtype))
        for path, leaf in bank.leaves.items()
    }
    tuned = {path: np.bool_(path in values) for path in bank.leaves}
    write = _write_donated if donate else _write_copy
    return AdapterBank(write(bank.leaves, np.int32(number), full, tuned), rows)


def _set_row(leaves: Any, number: Any, values: Any, tuned: Any) -> Any:
    def write(leaf: Any, value: Any, is_tuned: Any) -> Any:
        return leaf.at[number].set(jnp.where(is_tuned, value, leaf[0]))

    return jax.tree.map(write, leaves, values, tuned)


_write_copy = jax.jit(_set_row)
_write_donated = partial(jax.jit, donate_argnums=0)(_set_row)


def replace_at(
    rows: tuple[Row | None, ...], number: int, row: Row | None
) -> tuple[Row | None, ...]:
    """The rows with another one at `number`."""
    return (*rows[:number], row, *rows[number + 1 :])
