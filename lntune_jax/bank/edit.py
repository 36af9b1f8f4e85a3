"""Adding, replacing, removing and renaming the adapters of a bank; each gives a new bank."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..adapters.reading import Adapter
from ..errors import AdapterError
from ..names.maps import NameMap
from ..storage.arrays import to_numpy
from .core import AdapterBank, describe_row
from .sources import Source, read_source
from .values import BASE, check_name, fit_values
from .write import add_leaves, get_row_shapes, grow_bank, replace_at, write_row


def add_adapter(
    bank: AdapterBank,
    name: str,
    adapter: Source,
    *,
    params: Any = None,
    norms: Iterable[str] | None = None,
    name_map: str | NameMap | None = None,
    donate: bool = False,
) -> AdapterBank:
    """Adds an adapter in the first free row; a full bank doubles.

    No program is compiled anew, unless the bank doubles or gets a leaf that no row had.

    Args:
        bank: the bank; it stays as it is, unless it is donated.
        name: the adapter's name.
        adapter: an `Adapter`, a dict `{leaf path: array}`, or a directory's path.
        params: the base's tree; needed with a path, and where the adapter tunes a leaf that the
            bank has no rows for.
        norms: as in `make_bank`, for a path.
        name_map: as in `make_bank`, for a path.
        donate: whether the old bank's arrays are given up, so that a row is written in place. It
            cannot be used afterwards. Otherwise the bank is copied.

    Raises:
        AdapterError: the name is in use, or the adapter does not fit; nothing has changed then.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> bank = lnt.bank.make_bank({"ln": {"scale": jnp.ones(2)}})
        >>> bank = lnt.bank.add_adapter(bank, "french", {"ln.scale": jnp.array([2.0, 3.0])})
        >>> bank.names, bank.get_ids(["base", "french"]).tolist()
        (('base', 'french'), [0, 1])
    """
    if check_name(name) in bank.names:
        raise AdapterError(
            f"the bank has an adapter {name!r}: use another name, or call replace_adapter"
        )
    read = read_source(adapter, params, norms, name_map)
    if params is not None:
        bank = add_leaves(bank, read, params)
    values = fit_values(name, read, get_row_shapes(bank))
    if None not in bank.rows:
        bank = grow_bank(bank, 2 * bank.capacity)
    number = bank.rows.index(None)
    return write_row(bank, number, describe_row(name, read, get_row_shapes(bank)), values, donate)


def replace_adapter(
    bank: AdapterBank,
    name: str,
    adapter: Source,
    *,
    params: Any = None,
    norms: Iterable[str] | None = None,
    name_map: str | NameMap | None = None,
    donate: bool = False,
) -> AdapterBank:
    """Puts another adapter into the row of an existing one; its number stays.

    Args:
        bank: the bank.
        name: an adapter in it.
        adapter: as in `add_adapter`.
        params: as in `add_adapter`.
        norms: as in `add_adapter`.
        name_map: as in `add_adapter`.
        donate: as in `add_adapter`.

    Raises:
        AdapterError: the name is not in the bank, or is the base's; or the adapter does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"ln": {"scale": jnp.ones(2)}}
        >>> bank = lnt.bank.make_bank(params, {"a": {"ln.scale": jnp.zeros(2)}})
        >>> bank = lnt.bank.replace_adapter(bank, "a", {"ln.scale": jnp.array([2.0, 3.0])})
        >>> lnt.bank.get_adapter(bank, "a").trainable
        {'ln.scale': array([2., 3.], dtype=float32)}
    """
    number = int(bank.get_ids(check_name(name)))
    read = read_source(adapter, params, norms, name_map)
    if params is not None:
        bank = add_leaves(bank, read, params)
    values = fit_values(name, read, get_row_shapes(bank))
    return write_row(bank, number, describe_row(name, read, get_row_shapes(bank)), values, donate)


def remove_adapter(bank: AdapterBank, name: str, *, donate: bool = False) -> AdapterBank:
    """Frees the row of an adapter. The rows of the others stay where they are.

    Args:
        bank: the bank.
        name: an adapter in it.
        donate: as in `add_adapter`.

    Raises:
        AdapterError: the name is not in the bank, or is the base's.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"ln": {"scale": jnp.ones(2)}}
        >>> bank = lnt.bank.make_bank(params, {"a": {"ln.scale": jnp.zeros(2)}})
        >>> lnt.bank.remove_adapter(bank, "a").names
        ('base',)
    """
    number = int(bank.get_ids(check_name(name)))
    blank = {
        path: np.full(leaf.shape[1:], np.nan, leaf.dtype) for path, leaf in bank.leaves.items()
    }
    return write_row(bank, number, None, blank, donate)


def rename_adapter(bank: AdapterBank, old: str, new: str) -> AdapterBank:
    """Gives an adapter another name; no array changes.

    Raises:
        AdapterError: `old` is not in the bank or is the base's, or `new` is in use.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"ln": {"scale": jnp.ones(2)}}
        >>> bank = lnt.bank.make_bank(params, {"a": {"ln.scale": jnp.zeros(2)}})
        >>> lnt.bank.rename_adapter(bank, "a", "b").names
        ('base', 'b')
    """
    number = int(bank.get_ids(check_name(old)))
    if check_name(new) != old and new in bank.names:
        raise AdapterError(f"the bank has an adapter {new!r} already: use another name")
    return AdapterBank(
        bank.leaves, replace_at(bank.rows, number, bank.get_row(old)._replace(name=new))
    )


def get_adapter(bank: AdapterBank, name: str) -> Adapter:
    """One adapter's own leaves, as numpy arrays in the bank's dtype, and its config.

    Of the base the values of every leaf that a row has, and a config that selects nothing special.

    Raises:
        AdapterError: the name is not in the bank.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"ln": {"scale": jnp.ones(2)}}
        >>> bank = lnt.bank.make_bank(params, {"a": {"ln.scale": jnp.zeros(2)}})
        >>> lnt.bank.get_adapter(bank, "a").trainable
        {'ln.scale': array([0., 0.], dtype=float32)}
    """
    number, row = int(bank.get_ids(name)), bank.get_row(name)
    paths = tuple(bank.leaves) if row.name == BASE else row.paths
    values = {path: to_numpy(path, bank.leaves[path][number]).copy() for path in paths}
    config = row.config or describe_row(name, values, get_row_shapes(bank)).config
    assert config is not None
    return Adapter(values, config)
