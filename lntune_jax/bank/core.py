"""A bank of adapters over one base: each leaf stacked, one row for each adapter, row 0 the base.

The arrays (`leaves`) are all that a compiled program sees. Names and configs lie beside them, so
that adapters come and go, up to the capacity, without compiling anything anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..config import LNTuningConfig
from ..errors import AdapterError, ConfigError


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


_FEWEST_ROWS = 8


def choose_dtype(leaf: Any, dtype: str | None) -> np.dtype:
    """The dtype of a leaf's rows: the one asked for, else float32, or the leaf's own if wider.

    Raises:
        ConfigError: it is no floating dtype.
    """
    if dtype is None:
        wide = jnp.dtype(leaf.dtype).itemsize > 4
        return np.dtype(leaf.dtype) if wide else np.dtype("float32")
    try:
        chosen = jnp.dtype(dtype)
    except TypeError:
        raise ConfigError(f"dtype is {dtype!r}, which is no dtype") from None
    if not jnp.issubdtype(chosen, jnp.floating):
        raise ConfigError(f"dtype is {dtype!r}; expected a floating one, such as 'float32'")
    return chosen


def round_capacity(rows: int, capacity: int | None) -> int:
    """How many rows to make for `rows` in use.

    Raises:
        AdapterError: the capacity asked for is too small.
    """
    if capacity is None:
        return max(_FEWEST_ROWS, 1 << (rows - 1).bit_length())
    if capacity < rows:
        raise AdapterError(
            f"capacity is {capacity}, but there are {rows} rows with the base's: pass at least that"
        )
    return int(capacity)


def place(leaf: np.ndarray, sharding: Any, on_host: bool) -> Any:
    """A leaf of a bank where it is to be.

    Raises:
        AdapterError: the rows cannot be laid out so, or JAX has the dtype turned off.
    """
    if on_host:
        if sharding is not None:
            raise AdapterError("pass sharding or on_host=True, not both")
        return leaf
    if jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
        raise AdapterError(
            f"the bank's rows are {leaf.dtype}, which JAX has turned off: pass dtype='float32', or "
            "call jax.config.update('jax_enable_x64', True)"
        )
    if sharding is None:
        return jnp.asarray(leaf)
    try:
        sharding.shard_shape(leaf.shape)
    except ValueError as error:
        raise AdapterError(
            f"{leaf.shape[0]} rows cannot be laid out by {sharding}: pass a capacity that its "
            f"devices divide ({str(error).splitlines()[0]})"
        ) from error
    return jax.device_put(leaf, sharding)


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


def _list(bank: AdapterBank, most: int = 8) -> str:
    shown = ", ".join(map(repr, bank.names[:most]))
    return shown + (f" and {len(bank.names) - most:,} more" if len(bank.names) > most else "")
