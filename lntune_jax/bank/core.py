"""A bank of adapters over one base: each leaf stacked, one row for each adapter, row 0 the base.

The arrays (`leaves`) are all that a compiled program sees. Names and configs lie beside them, so
that adapters come and go, up to the capacity, without compiling anything anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from ..adapters.reading import Adapter
from ..config import LNTuningConfig
from ..errors import AdapterError
from ..names.maps import NameMap
from ..paths import flatten, join
from ..selection.select import select_leaves
from ..storage.arrays import to_numpy
from .sources import Source, describe_source, read_source
from .storage import choose_dtype, place, round_capacity
from .values import BASE, check_name, fit_values, get_trainable


class Row(NamedTuple):
    """What a bank knows of one adapter beside its values.

    Attributes:
        name: its name in the bank.
        config: its config; None for the base.
        paths: the leaves that it tunes; in the others of its row the base's values stand.

    Example:
        >>> from lntune_jax.bank import Row
        >>> Row("french", None, ("ln.scale",)).name
        'french'
    """

    name: str
    config: LNTuningConfig | None
    paths: tuple[str, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class AdapterBank:
    """Adapters over one base, stacked: an immutable pytree, made by `make_bank`.

    Pass `bank.leaves` to a jitted function, not the bank: names and configs belong to the bank's
    structure, and another name would compile the function anew.

    Attributes:
        leaves: `{leaf path: (capacity, *shape)}`; row 0 is the base, rows not in use hold NaN, so
            that the number of a removed adapter cannot pass for another one.
        rows: a `Row` for each row in use, else None.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> bank = lnt.bank.make_bank({"ln": {"scale": jnp.ones(2)}}, capacity=4)
        >>> bank.names, bank.capacity, bank.leaves["ln.scale"].shape
        (('base',), 4, (4, 2))
    """

    leaves: dict[str, Any]
    rows: tuple[Row | None, ...] = field(metadata={"static": True})

    @property
    def names(self) -> tuple[str, ...]:
        """The names in the order of the rows, the base first."""
        return tuple(row.name for row in self.rows if row is not None)

    @property
    def capacity(self) -> int:
        """How many rows there are, the base's and free ones included."""
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """The bytes of all rows, over all devices."""
        return sum(leaf.nbytes for leaf in self.leaves.values())

    @property
    def on_host(self) -> bool:
        """Whether the leaves are numpy arrays in the host's memory."""
        return all(isinstance(leaf, np.ndarray) for leaf in self.leaves.values())

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {row.name: number for number, row in enumerate(self.rows) if row is not None}

    def get_ids(self, names: str | Sequence[str]) -> np.ndarray:
        """The row of each name, for `apply_per_example`.

        Args:
            names: one name, or one for each row of a batch; "base" is the base.

        Returns:
            int32, of the shape () or (batch,). Valid until one of the adapters is removed.

        Raises:
            AdapterError: a name is not in the bank.
        """
        single = isinstance(names, str)
        wanted = [names] if single else list(names)
        unknown = list(dict.fromkeys(n for n in wanted if n not in self._numbers))
        if unknown:
            raise AdapterError(f"the bank has no adapter {unknown[0]!r}; it has {_list(self)}")
        ids = np.array([self._numbers[name] for name in wanted], np.int32)
        return ids[0] if single else ids

    def get_row(self, name: str) -> Row:
        """What the bank knows of one adapter beside its values.

        Raises:
            AdapterError: the name is not in the bank.
        """
        row = self.rows[int(self.get_ids(name))]
        assert row is not None
        return row


def make_bank(
    params: Any,
    adapters: Mapping[str, Source] | None = None,
    *,
    config: LNTuningConfig | None = None,
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
    read = {
        check_name(name): read_source(source, params, norms, name_map)
        for name, source in (adapters or {}).items()
    }
    base = _read_base(params, config, norms, name_map, read)
    rows = [Row(BASE, None, ())]
    rows += [describe_row(name, adapter, base) for name, adapter in read.items()]
    count = round_capacity(len(rows), capacity)
    values = {path: np.asarray(leaf, choose_dtype(leaf, dtype)) for path, leaf in base.items()}
    fitted = [fit_values(name, adapter, values) for name, adapter in read.items()]

    def stack(path: str) -> np.ndarray:
        leaf = np.full((count, *values[path].shape), np.nan, values[path].dtype)
        leaf[0] = values[path]
        for number, own in enumerate(fitted, start=1):
            leaf[number] = own.get(path, values[path])
        return leaf

    leaves = {path: place(stack(path), sharding, on_host) for path in values}
    return AdapterBank(leaves, (*rows, *[None] * (count - len(rows))))


def describe_row(name: str, adapter: Adapter | Mapping[str, Any], leaves: Mapping[str, Any]) -> Row:
    """What a bank is to know of an adapter; a dict of leaves gets a config that selects these."""
    described = describe_source(adapter, leaves)
    return Row(name, described.config, tuple(described.trainable))


def _read_base(
    params: Any,
    config: LNTuningConfig | None,
    norms: Iterable[str] | None,
    name_map: str | NameMap | None,
    adapters: Mapping[str, Adapter | Mapping[str, Any]],
) -> dict[str, np.ndarray]:
    """The base's values of all leaves that a row has, in the tree's order."""
    if isinstance(params, str | os.PathLike):
        raise AdapterError("params must be the base's tree of arrays, not a path")
    known, warn = config or LNTuningConfig(), config is not None
    selection = select_leaves(params, known, norms, name_map, warn=warn)
    wanted = {
        join(leaf.path)
        for index, leaf in enumerate(selection.leaves)
        if selection.is_trainable(index)
    }
    wanted = wanted.union(*map(get_trainable, adapters.values()))
    return read_leaves(params, wanted)


def read_leaves(params: Any, paths: Iterable[str]) -> dict[str, np.ndarray]:
    """The values of some leaves of a tree, in the tree's order, on the host.

    Raises:
        AdapterError: `params` lacks one, or has no values there.
    """
    wanted = set(paths)
    found = {join(leaf.path): leaf.value for leaf in flatten(params)[0]}
    absent = sorted(wanted - found.keys())
    if absent:
        raise AdapterError(
            f"params has no leaf {absent[0]!r}, which an adapter tunes: pass the whole tree of the "
            "base that it was trained on"
        )
    return {path: to_numpy(path, value) for path, value in found.items() if path in wanted}


def _list(bank: AdapterBank, most: int = 8) -> str:
    shown = ", ".join(map(repr, bank.names[:most]))
    return shown + (f" and {len(bank.names) - most:,} more" if len(bank.names) > most else "")
