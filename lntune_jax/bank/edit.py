"""Adding, replacing, removing and renaming the adapters of a bank; each gives a new bank."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..adapters.fit import fill_placeholders
from ..adapters.store import Adapter
from ..arguments import check_flag
from ..config import LNTuningConfig
from ..errors import AdapterError
from ..names.maps import NameMap
from ..selection.selection import Selection
from ..storage.leaves import to_numpy
from ..storage.processes import meet, spans_processes, together
from .core import (
    BASE,
    ID_BOUND,
    MOST_ROWS,
    AdapterBank,
    BankLeaves,
    Row,
    build_bank,
    check_bank,
    check_capacity,
    check_layout,
    gather,
    place_ids,
    place_like,
    replace_at,
    write_row,
)
from .sources import (
    Source,
    check_base,
    check_name,
    choose_dtype,
    describe_source,
    fit_values,
    get_own,
    get_row_shapes,
    get_trainable,
    read_base,
    read_leaves,
    read_source,
)


def make_bank(
    params: Any,
    adapters: Mapping[str, Source] | None = None,
    *,
    config: LNTuningConfig | Selection | None = None,
    norms: Iterable[str] | None = None,
    name_map: str | NameMap | None = None,
    capacity: int | None = None,
    dtype: str | None = None,
    sharding: jax.sharding.Sharding | None = None,
    on_host: bool = False,
) -> AdapterBank:
    """Makes a bank over one base.

    Args:
        params: the base: any pytree of arrays or numpy arrays.
        adapters: by name, each an `Adapter`, a dict `{leaf path: array}`, or the path of a
            directory that `save_adapter` or PEFT wrote, read strictly against `params`.
        config: selects the leaves that a row has, beside those of `adapters`; None is every norm.
            A leaf that no row has can be added later, which compiles programs anew.
        norms: module paths that are norms, where the caller knows them (`norm_modules`).
        name_map: of stacked layers (`model.name_map`): names for directories and `config`.
        capacity: rows, the base's included; None is the power of two that holds the adapters, at
            least 8. A full bank doubles.
        dtype: of the rows; None is float32, or wider where a leaf is. "bfloat16" halves the
            memory and rounds the adapters.
        sharding: of the leaves, such as `NamedSharding(mesh, PartitionSpec("data"))`, which lays
            the rows over an axis of the mesh; None leaves them on the default device.
        on_host: whether the leaves stay in the host's memory as numpy arrays; `take_rows` then
            moves only the rows of a batch.

    Raises:
        AdapterError: an adapter does not fit `params`, a name is no name, the capacity is too
            small or cannot be laid out by `sharding`.
        SelectionError: `config` selects nothing in `params`.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"ln": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}}
        >>> bank = lnt.bank.make_bank(params, {"french": {"ln.scale": jnp.array([2.0, 3.0])}})
        >>> bank.names
        ('base', 'french')
        >>> lnt.bank.get_adapter(bank, "french").trainable
        {'ln.scale': array([2., 3.], dtype=float32)}
    """
    given = adapters.values() if isinstance(adapters, Mapping) else ()
    with together(_span_processes(params, sharding, *given)):
        check_flag("on_host", on_host)
        if isinstance(params, str | os.PathLike | AdapterBank | BankLeaves):
            kind = type(params).__name__
            raise AdapterError(
                f"params must be the base's tree of arrays, not a path or a bank ({kind})"
            )
        if adapters is not None and not isinstance(adapters, Mapping):
            raise AdapterError(
                f"adapters must be a dict of adapters by name, not {type(adapters).__name__}"
            )
        read = {
            check_name(name): read_source(source, params, norms, name_map)
            for name, source in (adapters or {}).items()
        }
        base = read_base(params, config, norms, name_map, read.values())
        values = {path: np.asarray(leaf, choose_dtype(leaf, dtype)) for path, leaf in base.items()}
        fitted = [fit_values(name, adapter, values) for name, adapter in read.items()]
        rows = [Row(BASE, None, ())]
        rows += [describe_row(name, adapter, base) for name, adapter in read.items()]
        arrays = (
            (path, np.stack([value, *(own.get(path, value) for own in fitted)]))
            for path, value in values.items()
        )
        return build_bank(arrays, dict(enumerate(rows)), (), capacity, sharding, on_host)


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
    """Adds an adapter in a free row; a full bank doubles.

    No program is compiled anew, unless the bank doubles or gets a leaf that no row had.

    Args:
        bank: the bank; it stays as it is, unless it is donated.
        name: the adapter's name.
        adapter: an `Adapter`, a dict `{leaf path: array}`, or a directory's path.
        params: the base's tree; needed with a path, and where the adapter tunes a leaf that the
            bank has no rows for.
        norms: as in `make_bank`, for a path.
        name_map: as in `make_bank`, for a path.
        donate: whether the old bank is given up, so that a row is written in place: using it then
            is an error. Otherwise the bank is copied.

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
    return _put(bank, name, adapter, params, norms, name_map, donate, is_new=True)


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
    """Puts another adapter into the row of an existing one; its id stays.

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
    return _put(bank, name, adapter, params, norms, name_map, donate, is_new=False)


def _put(
    bank: AdapterBank,
    name: str,
    adapter: Source,
    params: Any,
    norms: Iterable[str] | None,
    name_map: str | NameMap | None,
    donate: bool,
    *,
    is_new: bool,
) -> AdapterBank:
    """The bank with an adapter in a free row, or in the row of the name."""
    spans = _span_processes(bank, params, adapter)
    with together(spans):
        check_flag("donate", donate)
        check_bank(bank)
        if is_new and check_name(name) in bank.names:
            raise AdapterError(
                f"the bank has an adapter {name!r}: use another name, or call replace_adapter"
            )
        number = None if is_new else bank.get_number(check_name(name))
        read = read_source(adapter, params, norms, name_map)
        if spans:
            meet()  # what follows has collectives
        wide = bank if params is None else _add_leaves(bank, read, params)
        shapes = get_row_shapes(wide)
        values, row = fit_values(name, read, shapes), describe_row(name, read, shapes)
        number = _find_free(wide) if number is None else number
        if spans:
            meet()
        if number is None:
            number, wide = wide.capacity, grow_bank(wide, 2 * wide.capacity)
        return _hand_over(bank, write_row(wide, number, row, values, donate), donate)


def _span_processes(*values: Any) -> bool:
    """Whether something of a call lies on devices of other processes too."""
    return any(spans_processes(getattr(value, "trainable", value)) for value in values)


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
    check_bank(bank)
    more = check_capacity(capacity) - bank.capacity
    if more < 0:
        raise AdapterError(f"the bank has {bank.capacity} rows, more than capacity={capacity}")

    def grow(leaf: Any) -> Any:
        missing = [(0, more)] + [(0, 0)] * (leaf.ndim - 1)
        if isinstance(leaf, np.ndarray):
            return np.pad(leaf, missing, constant_values=np.array(np.nan, leaf.dtype))
        check_layout(jax.ShapeDtypeStruct((capacity, *leaf.shape[1:]), leaf.dtype), leaf.sharding)
        grown = jnp.pad(leaf, missing, constant_values=jnp.array(jnp.nan, leaf.dtype))
        return jax.device_put(grown, leaf.sharding) if leaf.committed else grown

    arrays = {path: grow(leaf) for path, leaf in bank.leaves.items()}
    ids = (*bank.ids, *range(bank.capacity, bank.capacity + more))
    return AdapterBank(BankLeaves(arrays, place_ids(ids, arrays)), bank.rows + (None,) * more, ids)


def remove_adapter(bank: AdapterBank, name: str, *, donate: bool = False) -> AdapterBank:
    """Frees the row of an adapter; its id gives NaN from then on, and is never used again.

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
    with together(_span_processes(bank)):
        check_flag("donate", donate)
        check_bank(bank)
        number, shapes = bank.get_number(check_name(name)), get_row_shapes(bank)
        blank = {path: np.full(own.shape, np.nan, own.dtype) for path, own in shapes.items()}
        if _span_processes(bank):
            meet()  # to write a row is a collective
        return _hand_over(bank, write_row(bank, number, None, blank, donate), donate)


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
    check_bank(bank)
    number = bank.get_number(check_name(old))
    if check_name(new) != old and new in bank.names:
        raise AdapterError(f"the bank has an adapter {new!r} already: use another name")
    renamed = bank.get_row(old)._replace(name=new)
    return replace(bank, rows=replace_at(bank.rows, number, renamed))


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
    with together(_span_processes(bank)):
        check_bank(bank)
        number, row = bank.get_number(name), bank.get_row(name)
        paths = tuple(bank.leaves) if row.name == BASE else row.paths
        if _span_processes(bank):
            meet()  # to gather a row is a collective
        values = {path: to_numpy(path, gather(bank.leaves[path], number)).copy() for path in paths}
    config = row.config or describe_row(name, values, get_row_shapes(bank)).config
    assert config is not None
    return Adapter(values, config)


def _hand_over(old: AdapterBank, new: AdapterBank, donate: bool) -> AdapterBank:
    """The new bank. A donated one is emptied, so that using it says what is wrong."""
    if donate:
        old.leaves.arrays.clear()
    return new


def _add_leaves(bank: AdapterBank, adapter: Any, params: Any) -> AdapterBank:
    """The bank with rows for leaves that it lacks: the base's values in all that are in use.

    Raises:
        AdapterError: `params` is not the base that the bank was made over, or lacks a leaf.
    """
    absent = [path for path in get_trainable(adapter) if path not in bank.leaves]
    if not absent:
        return bank
    first = {path: to_numpy(path, gather(leaf, [0])) for path, leaf in bank.leaves.items()}
    check_base("params", first, get_own(fill_placeholders(params)[0], first), has_values=True)
    like = next(iter(bank.leaves.values()))
    used = np.array([row is not None for row in bank.rows])
    arrays = dict(bank.leaves)
    for path, value in read_leaves(params, absent).items():
        stacked = np.full((bank.capacity, *value.shape), np.nan, like.dtype)
        stacked[used] = value
        arrays[path] = place_like(stacked, like)
    return replace(bank, leaves=replace(bank.leaves, arrays=arrays))


def describe_row(name: str, adapter: Adapter | Mapping[str, Any], leaves: Mapping[str, Any]) -> Row:
    """What a bank is to know of an adapter; a dict of leaves gets a config that selects these."""
    described = describe_source(adapter, leaves)
    return Row(name, described.config, tuple(described.trainable))


def _find_free(bank: AdapterBank) -> int | None:
    """The free row that had the fewest adapters; None where the bank is full."""
    pairs = zip(bank.rows, bank.ids, strict=True)
    free = [number for row, number in pairs if row is None and number < ID_BOUND]
    return min(free) % MOST_ROWS if free else None
