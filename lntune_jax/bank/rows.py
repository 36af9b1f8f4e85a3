"""Rows of a bank by id, and a base with placeholders for them: put together, batched norms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..errors import AdapterError, TreeError
from ..partition import Placeholder, is_placeholder, merge_params
from ..paths import flatten, get_shape, join
from .core import ID_BOUND, MOST_ROWS, AdapterBank, BankLeaves, check_bank, gather

Ids = Any  # integers (batch,), or the names of adapters


def freeze_base(params: Any, bank: AdapterBank | BankLeaves) -> Any:
    """The frozen half of a base for a bank, placeholders where the bank has rows; no copies.

    `partition_params(params, config).frozen` is the same where `config` selects the bank's leaves.

    Args:
        params: the base's tree.
        bank: the bank, or its leaves.

    Raises:
        TreeError: `params` lacks a leaf of the bank, or has another shape there.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"ln": {"scale": jnp.ones(2)}, "fc": {"kernel": jnp.ones((2, 2))}}
        >>> lnt.bank.freeze_base(params, lnt.bank.make_bank(params))["ln"]
        {'scale': Placeholder('ln.scale', float32[2])}
    """
    rows = get_leaves(bank)
    leaves, treedef = flatten(params)
    names = [join(leaf.path) for leaf in leaves]
    absent = sorted(rows.keys() - set(names))
    if absent:
        raise TreeError(
            f"params has no leaf {absent[0]!r}, which the bank has rows for: pass the base's tree"
        )
    values = []
    for name, leaf in zip(names, leaves, strict=True):
        if name not in rows:
            values.append(leaf.value)
            continue
        shape, expected = get_shape(leaf.value), tuple(rows[name].shape[1:])
        if shape is None or tuple(shape) != expected:
            raise TreeError(
                f"params leaf {name!r} has shape {shape}, the bank's rows {expected}: pass the "
                "base that the bank was made over"
            )
        values.append(Placeholder(name, expected, leaf.value.dtype))
    return treedef.unflatten(values)


def take_rows(bank: AdapterBank | BankLeaves, ids: Ids) -> dict[str, Any]:
    """The rows of some adapters: `{leaf path: (batch, *shape)}`, or `(*shape)` for one id.

    A bank in the host's memory gives numpy arrays: only these rows then travel to the device.

    Args:
        bank: the bank, or its leaves.
        ids: integers of the shape () or (batch,), traced or not; or one name or a sequence of
            names, with a bank.

    Raises:
        AdapterError: an id that is not traced has no adapter; a name is not in the bank; the bank
            is on the host and the ids are traced. A traced id without an adapter gives NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"ln": {"scale": jnp.ones(2)}}
        >>> bank = lnt.bank.make_bank(params, {"a": {"ln.scale": jnp.zeros(2)}})
        >>> lnt.bank.take_rows(bank, ["a", "base"])["ln.scale"].tolist()
        [[0.0, 0.0], [1.0, 1.0]]
    """
    leaves = get_leaves(bank)
    numbers = _find_rows(bank, leaves, read_ids(bank, ids))
    # A row beyond the last gives NaN, never another tenant's values: JAX would clamp it.
    return {path: gather(leaf, numbers) for path, leaf in leaves.items()}


def merge_rows(rows: Mapping[str, Any], frozen: Any, *, cast: bool = True) -> Any:
    """Puts rows into a base: the whole tree, its norm parameters with a batch axis first.

    The models of `lntune_jax.models` take such a tree: `model.apply`, `generate` and `stream` then
    use the norm parameters of row i for row i of the batch.

    Args:
        rows: `{leaf path: (batch, *shape)}`, from `take_rows`.
        frozen: the other half, from `freeze_base` or `partition_params`.
        cast: as in `merge_params`.

    Raises:
        TreeError: rows and placeholders are not the same leaves, or shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"ln": {"scale": jnp.ones(2)}}
        >>> bank = lnt.bank.make_bank(params, {"a": {"ln.scale": jnp.zeros(2)}})
        >>> rows = lnt.bank.take_rows(bank, ["a", "base", "a"])
        >>> frozen = lnt.bank.freeze_base(params, bank)
        >>> lnt.bank.merge_rows(rows, frozen)["ln"]["scale"].shape
        (3, 2)
    """
    batch = count_rows(rows)

    def widen(leaf: Any) -> Any:
        return (
            Placeholder(leaf.path, (batch, *leaf.shape), leaf.dtype)
            if is_placeholder(leaf)
            else leaf
        )

    return merge_params(rows, jax.tree.map(widen, frozen, is_leaf=is_placeholder), cast=cast)


def count_rows(rows: Mapping[str, Any]) -> int:
    """How many rows `take_rows` gave.

    Raises:
        AdapterError: they have no batch axis.
    """
    shapes = [get_shape(row) for row in rows.values()] if isinstance(rows, Mapping) else []
    counts = {shape[0] for shape in shapes if shape}
    if len(counts) != 1 or not all(shapes):
        raise AdapterError(
            "rows must hold arrays with one batch axis first: pass take_rows(bank, ids) with ids "
            "of the shape (batch,)"
        )
    return counts.pop()


def get_leaves(bank: AdapterBank | BankLeaves) -> BankLeaves:
    """The leaves of a bank, which may be these themselves."""
    check_bank(bank, or_leaves=True)
    leaves = bank.leaves if isinstance(bank, AdapterBank) else bank
    if not jnp.issubdtype(leaves.ids.dtype, jnp.integer):
        raise AdapterError(
            f"bank.leaves.ids has dtype {leaves.ids.dtype}; expected int32: what casts or scales a "
            "bank must map over bank.leaves.arrays alone"
        )
    return leaves


def read_ids(bank: Any, ids: Ids) -> Any:
    """The ids as an array of integers, traced or numpy; names are looked up."""
    if isinstance(ids, np.ndarray) and ids.dtype.kind in "TUO":  # of texts
        ids = ids.tolist()
    if isinstance(ids, str) or (
        isinstance(ids, Sequence) and any(isinstance(name, str) for name in ids)
    ):
        if not isinstance(bank, AdapterBank):
            raise AdapterError("names need a bank: pass bank.get_ids(names) with bank.leaves")
        return np.asarray(bank.get_ids(ids))
    if isinstance(ids, list | tuple) and not ids:
        return np.zeros(0, np.int32)
    try:
        array = ids if isinstance(ids, jax.Array) else np.asarray(ids)
    except (ValueError, TypeError) as error:  # a ragged list, or traced numbers in one
        raise AdapterError(
            f"ids is no array of integers (batch,): {str(error).splitlines()[0]}. Inside jax.jit "
            "make one with jax.numpy.stack"
        ) from error
    if array.ndim > 1 or not jnp.issubdtype(array.dtype, jnp.integer):
        raise AdapterError(
            f"ids has shape {array.shape} and dtype {array.dtype}; expected integers (batch,), or "
            "names"
        )
    return array if isinstance(array, Tracer) else np.asarray(array).astype(np.int64)


def _find_rows(bank: Any, leaves: BankLeaves, ids: Any) -> Any:
    """The row of each id; where something is traced, a row beyond the last for what has none."""
    count = leaves.ids.shape[0]
    if isinstance(ids, np.ndarray):
        known = _list_known(bank, leaves)
        for number in np.unique(ids).tolist():
            row = number % MOST_ROWS
            fits = 0 <= number < ID_BOUND and row < count
            if not fits or (known is not None and known[row] != number):
                raise AdapterError(
                    f"ids holds {number}, which no adapter has: it was removed, or never added. "
                    "Look ids up by name, bank.get_ids(names), in the bank whose leaves you pass"
                )
        if known is not None:
            return ids % MOST_ROWS
    elif all(isinstance(leaf, np.ndarray) for leaf in leaves.values()):
        raise AdapterError(
            "the bank is in the host's memory and the ids are traced: call take_rows outside "
            "jax.jit, and pass the rows to the jitted function (apply_rows)"
        )
    ids = jnp.asarray(ids)
    ids = ids.astype(jnp.int64 if ids.dtype.itemsize > 4 else jnp.int32)  # wraps no id onto another
    numbers = ids % MOST_ROWS
    found = gather(leaves.ids, numbers, -1)
    return jnp.where(found.astype(ids.dtype) == ids, numbers, count)


def _list_known(bank: Any, leaves: BankLeaves) -> Sequence[int | None] | None:
    """The id that each row answers to; None where the leaves are traced without their bank."""
    if isinstance(bank, AdapterBank):
        return [None if row is None else i for row, i in zip(bank.rows, bank.ids, strict=True)]
    return None if isinstance(leaves.ids, Tracer) else np.asarray(leaves.ids).tolist()
