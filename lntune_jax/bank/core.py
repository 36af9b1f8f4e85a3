"""A bank of adapters over one base: each leaf stacked, one row for each adapter, row 0 the base.

`bank.leaves` is all that a compiled program sees. Names and configs lie beside it, so that adapters
come and go, up to the capacity, without compiling anything anew.

An id is never used twice: it is a row, and above that how many adapters had the row before. Each
row knows the id that it answers to, and a program compares. So the id of a removed adapter gives
NaN, also when another adapter has its row: a batch under way cannot get another tenant's values.
To keep removed rows unused would be simpler, but a server whose tenants come and go would grow
without end, and compile anew each time.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ..config import LNTuningConfig
from ..errors import AdapterError
from ..messages import list_names, shorten
from ..storage.processes import meet, spans_processes

BASE = "base"  # the name of row 0
MOST_ROWS = 2**20  # an id is row + MOST_ROWS * (how many adapters had the row before)
ID_BOUND = 2**31  # ids are int32; a row that has none left is not used again
_FEWEST_ROWS = 8


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
class BankLeaves(Mapping[str, Any]):
    """The arrays of a bank, by leaf path, and the id that each row answers to: a pytree.

    It is what a jitted function takes: `take_rows` and `apply_per_example` need both.

    Attributes:
        arrays: `{leaf path: (capacity, *shape)}`; free rows hold NaN.
        ids: int32 (capacity,), the id of the adapter in each row; of a free row the next one.

    Raises:
        AdapterError: when it is read after an edit with `donate=True` took its arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> leaves = lnt.bank.make_bank({"ln": {"scale": jnp.ones(2)}}, capacity=4).leaves
        >>> leaves["ln.scale"].shape, leaves.ids.tolist()
        ((4, 2), [0, 1, 2, 3])
    """

    arrays: dict[str, Any]
    ids: Any

    def __getitem__(self, path: str) -> Any:
        return self._get_arrays()[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._get_arrays())

    def __len__(self) -> int:
        return len(self._get_arrays())

    def _get_arrays(self) -> dict[str, Any]:
        if not self.arrays:
            raise AdapterError(
                "this bank was given up by an edit with donate=True: use the bank that the edit "
                "returned"
            )
        return self.arrays


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class AdapterBank:
    """Adapters over one base, stacked: an immutable pytree, made by `make_bank`.

    Pass `bank.leaves` to a jitted function, not the bank: names and configs belong to the bank's
    structure, and another name would compile the function anew.

    Attributes:
        leaves: the arrays and their ids; row 0 is the base, free rows hold NaN.
        rows: a `Row` for each row in use, else None.
        ids: the id of the adapter in each row; of a free row the next one.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> bank = lnt.bank.make_bank({"ln": {"scale": jnp.ones(2)}}, capacity=4)
        >>> bank.names, bank.capacity, bank.leaves["ln.scale"].shape
        (('base',), 4, (4, 2))
    """

    leaves: BankLeaves
    rows: tuple[Row | None, ...] = field(metadata={"static": True})
    ids: tuple[int, ...] = field(metadata={"static": True})

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
    def _ids_by_name(self) -> dict[str, int]:
        pairs = zip(self.rows, self.ids, strict=True)
        return {row.name: number for row, number in pairs if row is not None}

    def get_ids(self, names: str | Sequence[str] | np.ndarray) -> np.ndarray:
        """The id of each name, for `take_rows` and `apply_per_example`.

        An id stays valid until its adapter is removed, and no other adapter of this bank, or of
        one made from it by edits, ever gets it. It is no index of the arrays.

        Args:
            names: one name, or one for each row of a batch; "base" is the base.

        Returns:
            int32, of the shape () or (batch,).

        Raises:
            AdapterError: a name is not in the bank.
        """
        names = names.tolist() if isinstance(names, np.ndarray) else names
        single = isinstance(names, str)
        if not single and not isinstance(names, Iterable):
            raise AdapterError(f"names must be a name or a sequence of names, not {names!r:.80}")
        wanted = [names] if single else list(names)
        known = self._ids_by_name
        unknown = [name for name in wanted if not isinstance(name, str) or name not in known]
        if unknown:
            raise AdapterError(
                f"the bank has no adapter {shorten(repr(unknown[0]))}; it has "
                f"{list_names(self.names, most=8)}"
            )
        ids = np.array([known[name] for name in wanted], np.int32)
        return ids[0] if single else ids

    def get_row(self, name: str) -> Row:
        """What the bank knows of one adapter beside its values.

        Raises:
            AdapterError: the name is not in the bank.
        """
        row = self.rows[self.get_number(name)]
        assert row is not None
        return row

    def get_number(self, name: str) -> int:
        """The row of an adapter in the arrays; as `get_row`."""
        return int(self.get_ids([name])[0]) % MOST_ROWS


def check_bank(bank: Any, *, or_leaves: bool = False) -> None:
    """Refuses what is no bank (nor, with `or_leaves`, the leaves of one), or has lost its arrays.

    Raises:
        AdapterError: says what it is instead, and what to pass.
    """
    leaves = bank.leaves if isinstance(bank, AdapterBank) else bank
    if not isinstance(leaves, BankLeaves) or (leaves is bank and not or_leaves):
        wanted = "a bank or bank.leaves" if or_leaves else "a bank"
        advice = "pass what make_bank or load_bank returns"
        if isinstance(bank, Mapping):  # the arrays, or leaves without their bank
            advice = "only that knows names and ids"
        raise AdapterError(f"bank: expected {wanted}, not {type(bank).__name__}: {advice}")
    for leaf in leaves.values():
        if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) and leaf.is_deleted():
            raise AdapterError(
                "the bank's arrays were donated and are gone: use the bank that came from them"
            )


def build_bank(
    arrays: Iterable[tuple[str, np.ndarray]],
    rows: Mapping[int, Row],
    freed: Iterable[int],
    capacity: int | None,
    sharding: Any,
    on_host: bool,
) -> AdapterBank:
    """Makes a bank.

    Args:
        arrays: of each leaf path the values of `rows`, (len(rows), *shape), in their order.
        rows: by id.
        freed: the next ids of rows that had an adapter and are free.
        capacity: rows; None is a power of two that holds these.
        sharding: of the arrays.
        on_host: whether they stay numpy arrays.

    Raises:
        AdapterError: they cannot be laid out so, or the capacity is too small.
    """
    numbers = [number % MOST_ROWS for number in rows]
    given = {number % MOST_ROWS: number for number in (*rows, *freed)}
    least = max(given) + 1
    fitting = max(_FEWEST_ROWS, 1 << (least - 1).bit_length())
    count = check_capacity(fitting if capacity is None else capacity)
    if count < least:
        raise AdapterError(
            f"capacity is {count}, but there are {least} rows with the base's and those that "
            "adapters had before: pass at least that, or make a new bank of its adapters"
        )

    def spread(array: np.ndarray) -> np.ndarray:
        leaf = np.full((count, *array.shape[1:]), np.nan, array.dtype)
        leaf[numbers] = array
        return leaf

    placed = {path: _place(spread(array), sharding, on_host) for path, array in arrays}
    ids = tuple(given.get(number, number) for number in range(count))
    by_number = dict(zip(numbers, rows.values(), strict=True))
    return AdapterBank(
        BankLeaves(placed, place_ids(ids, placed)), tuple(map(by_number.get, range(count))), ids
    )


def check_capacity(capacity: Any) -> int:
    """Gives a number of rows that a bank may have."""
    if isinstance(capacity, bool) or not hasattr(capacity, "__index__"):
        raise AdapterError(f"capacity is {capacity!r:.80}; expected a whole number of rows")
    count = operator.index(capacity)
    if count > MOST_ROWS:
        raise AdapterError(f"capacity is {count:,}, and a bank has at most {MOST_ROWS:,} rows")
    return count


def _place(leaf: np.ndarray, sharding: Any, on_host: bool) -> Any:
    """A leaf of a bank where it is to be."""
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
    check_layout(leaf, sharding)
    return _put(leaf, sharding)


def check_layout(leaf: Any, sharding: Any) -> None:
    """Refuses a sharding that cannot lay out the rows of a leaf."""
    if not isinstance(sharding, jax.sharding.Sharding):
        raise AdapterError(
            f"sharding is {sharding!r:.80}; expected a jax.sharding.Sharding, such as "
            "NamedSharding(mesh, PartitionSpec('data'))"
        )
    if sharding.memory_kind == "pinned_host":
        raise AdapterError("sharding is in the host's memory: pass on_host=True in its place")
    if len(getattr(sharding, "spec", ())) > len(leaf.shape):
        raise AdapterError(f"{sharding} has more axes than a leaf of shape {leaf.shape}")
    try:
        sharding.shard_shape(leaf.shape)
    except ValueError as error:
        raise AdapterError(
            f"{leaf.shape[0]} rows cannot be laid out by {sharding}: pass a capacity that its "
            f"devices divide ({str(error).splitlines()[0]})"
        ) from error


def write_row(
    bank: AdapterBank, number: int, row: Row | None, values: Mapping[str, Any], donate: bool
) -> AdapterBank:
    """Puts values into one row, the base's where there are none; frees it where `row` is None.

    One small program serves every adapter: absent leaves come as zeros and a mark. The programs
    that use the bank see arrays of the same shapes as before.
    """
    if bank.on_host:
        arrays = {p: leaf if donate else leaf.copy() for p, leaf in bank.leaves.items()}
        for path, leaf in arrays.items():
            leaf[number] = values.get(path, leaf[0])
    else:
        pairs = bank.leaves.items()
        full = {p: values.get(p, np.zeros(leaf.shape[1:], leaf.dtype)) for p, leaf in pairs}
        tuned = {path: np.bool_(path in values) for path in full}
        write = _write_donated if donate else _write_copy
        arrays = write(bank.leaves.arrays, np.int32(number), full, tuned)
    rows, ids, placed = replace_at(bank.rows, number, row), bank.ids, bank.leaves.ids
    if row is None:  # whoever has the id of now gets NaN from now on
        ids = replace_at(ids, number, ids[number] + MOST_ROWS)
        placed = place_ids(ids, arrays)
    return AdapterBank(BankLeaves(arrays, placed), rows, ids)


def _set_row(leaves: Any, number: Any, values: Any, tuned: Any) -> Any:
    def write(leaf: Any, value: Any, is_tuned: Any) -> Any:
        laid = jax.typeof(leaf).sharding
        out = laid if AxisType.Explicit in laid.mesh.axis_types else None
        row = jnp.where(is_tuned, value, gather(leaf, 0))
        return leaf.at[number].set(row, out_sharding=out)

    return jax.tree.map(write, leaves, values, tuned)


_write_copy = jax.jit(_set_row)
_write_donated = jax.jit(_set_row, donate_argnums=0)


def gather(leaf: Any, numbers: Any, fill: float = np.nan) -> Any:
    """Copies of some rows of an array, or of one; on a mesh of explicit axes laid as `numbers`."""
    if isinstance(leaf, np.ndarray) and not isinstance(numbers, Tracer):
        return leaf[np.asarray(numbers)]  # no scalar, by which numpy would give a view
    whole, numbers = jnp.asarray(leaf), jnp.asarray(numbers)
    laid, out = jax.typeof(whole).sharding, None
    if AxisType.Explicit in laid.mesh.axis_types:
        spec = (*jax.typeof(numbers).sharding.spec, *tuple(laid.spec)[1:])
        out = NamedSharding(laid.mesh, PartitionSpec(*spec))
    return whole.at[numbers].get(mode="fill", fill_value=fill, out_sharding=out)


def replace_at(items: tuple[Any, ...], number: int, item: Any) -> tuple[Any, ...]:
    """The items with another one at `number`."""
    return (*items[:number], item, *items[number + 1 :])


def place_like(array: np.ndarray, like: Any, *, whole: bool = False) -> Any:
    """Lays an array where another one of the bank is: as its rows are, or whole on each device."""
    if isinstance(like, np.ndarray):
        return array
    if not like.committed:
        return jnp.asarray(array)
    laid = like.sharding
    if isinstance(laid, NamedSharding):
        spec = PartitionSpec() if whole else PartitionSpec(*tuple(laid.spec)[:1])
        laid = NamedSharding(laid.mesh, spec, memory_kind=laid.memory_kind)
    return _put(array, laid)


def _put(array: np.ndarray, sharding: Any) -> Any:
    """Puts values where they are to be; where that is on several processes, they must be the same.

    JAX compares them, and the NaN of free rows is unlike itself: the bits are compared instead.
    """
    if not spans_processes(sharding):
        return jax.device_put(array, sharding)
    meet()  # to put a value there is a collective
    try:
        bits = jax.device_put(array.view(f"u{array.dtype.itemsize}"), sharding)
    except AssertionError:
        raise AdapterError(
            "the values of the bank are not the same on each process: pass the same base and the "
            "same adapters"
        ) from None
    return jax.lax.bitcast_convert_type(bits, array.dtype)


def place_ids(ids: Sequence[int], arrays: Mapping[str, Any]) -> Any:
    """The ids as an array, whole on each device of the bank's arrays."""
    known = np.array(ids, np.int64)
    known = np.where(known < ID_BOUND, known, -1).astype(np.int32)
    return place_like(known, next(iter(arrays.values())), whole=True)
