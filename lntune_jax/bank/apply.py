"""Mixed batches: each row of a batch with its own adapter, each matmul still one matmul.

An adapter of norms enters only through elementwise products, so that a batch of many adapters is
the program of a batch of one, with a norm parameter for each row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..errors import AdapterError, TreeError
from ..partition import Placeholder, is_placeholder, merge_params
from ..paths import flatten, get_shape, join
from .core import AdapterBank

Ids = Any  # integers (batch,), or the names of adapters


def freeze_base(params: Any, bank: AdapterBank | Mapping[str, Any]) -> Any:
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


def take_rows(bank: AdapterBank | Mapping[str, Any], ids: Ids) -> dict[str, Any]:
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
    ids = _check_ids(bank, leaves, ids)
    if all(isinstance(leaf, np.ndarray) for leaf in leaves.values()):
        if isinstance(ids, Tracer):
            raise AdapterError(
                "the bank is in the host's memory and the ids are traced: call take_rows outside "
                "jax.jit, and pass the rows to the jitted function (apply_rows)"
            )
        return {path: leaf[np.asarray(ids)] for path, leaf in leaves.items()}
    # Beyond the rows NaN, never another tenant's values: JAX would clamp or wrap the index.
    return {
        path: jnp.asarray(leaf)
        .at[ids]
        .get(mode="fill", fill_value=np.nan, wrap_negative_indices=False)
        for path, leaf in leaves.items()
    }


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


def apply_rows(
    apply_fn: Callable[..., Any],
    rows: Mapping[str, Any],
    frozen: Any,
    *batch: Any,
    cast: bool = True,
    **keywords: Any,
) -> Any:
    """`apply_per_example` with the rows taken before, as a bank on the host needs it.

    Args:
        apply_fn: as in `apply_per_example`.
        rows: `{leaf path: (batch, *shape)}`, from `take_rows`.
        frozen: as in `apply_per_example`.
        *batch: as in `apply_per_example`.
        cast: as in `merge_params`.
        **keywords: as in `apply_per_example`.

    Raises:
        AdapterError: an array of the batch has another first axis than the rows.
        TreeError: as for `merge_rows`.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"ln": {"scale": jnp.ones(2)}}
        >>> bank = lnt.bank.make_bank(params, {"a": {"ln.scale": jnp.zeros(2)}}, on_host=True)
        >>> rows = lnt.bank.take_rows(bank, ["a", "base"])
        >>> frozen = lnt.bank.freeze_base(params, bank)
        >>> apply = lambda params, x: x * params["ln"]["scale"]
        >>> lnt.bank.apply_rows(apply, rows, frozen, jnp.ones((2, 2))).tolist()
        [[0.0, 0.0], [1.0, 1.0]]
    """
    count = count_rows(rows)
    leaves, treedef = jax.tree_util.tree_flatten((batch, keywords))
    split = [_is_split(leaf) for leaf in leaves]
    for leaf, is_split in zip(leaves, split, strict=True):
        if is_split and leaf.shape[0] != count:
            raise AdapterError(
                f"an array of the batch has shape {tuple(leaf.shape)}, but there are {count} ids: "
                "the first axis must be the batch. What has no batch axis goes into apply_fn by "
                "functools.partial"
            )

    def apply_one(row: Mapping[str, Any], own: Sequence[Any]) -> Any:
        parts = iter(own)
        given = [
            _as_batch(next(parts)) if is_split else leaf
            for leaf, is_split in zip(leaves, split, strict=True)
        ]
        positional, named = treedef.unflatten(given)
        result = apply_fn(merge_params(row, frozen, cast=cast), *positional, **named)
        return jax.tree.map(_first, result)

    parts = [leaf for leaf, is_split in zip(leaves, split, strict=True) if is_split]
    return jax.vmap(apply_one)(dict(rows), parts)


def apply_per_example(
    apply_fn: Callable[..., Any],
    bank: AdapterBank | Mapping[str, Any],
    ids: Ids,
    frozen: Any,
    *batch: Any,
    cast: bool = True,
    **keywords: Any,
) -> Any:
    """Applies a model to a batch, each row with its own adapter.

    The program is that of one adapter for the batch, matmul for matmul. A saved module (a head)
    that the bank holds is another matmul for each row, in one batched product.

    Args:
        apply_fn: a pure function `apply_fn(params, *batch, **keywords)` whose batch axis is the
            first, of all its inputs and results. It sees one row at a time, as a batch of one, so
            it must not mix rows (as batch statistics would).
        bank: the bank, or, in a jitted function, `bank.leaves`.
        ids: integers (batch,), the row of each example's adapter; or names, with a bank.
        frozen: the other half of the base, from `freeze_base` or `partition_params`.
        *batch: the inputs. Arrays are split along their first axis; numbers, None and arrays
            without axes go to every row as they are.
        cast: as in `merge_params`: False leaves the rows in the bank's dtype.
        **keywords: more inputs, treated alike.

    Returns:
        What `apply_fn` returns, for the whole batch.

    Raises:
        AdapterError: as for `take_rows`; or an array has another first axis than the ids.
        TreeError: the bank's leaves are not the placeholders of `frozen`.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"ln": {"scale": jnp.ones(2)}}
        >>> bank = lnt.bank.make_bank(params, {"a": {"ln.scale": jnp.zeros(2)}})
        >>> frozen = lnt.bank.freeze_base(params, bank)
        >>> apply = lambda params, x: x * params["ln"]["scale"]
        >>> x = jnp.ones((2, 2))
        >>> lnt.bank.apply_per_example(apply, bank, ["a", "base"], frozen, x).tolist()
        [[0.0, 0.0], [1.0, 1.0]]
    """
    rows = take_rows(bank, _check_axis(ids))
    return apply_rows(apply_fn, rows, frozen, *batch, cast=cast, **keywords)


def apply_ensemble(
    apply_fn: Callable[..., Any],
    bank: AdapterBank | Mapping[str, Any],
    ids: Ids,
    frozen: Any,
    *batch: Any,
    cast: bool = True,
    **keywords: Any,
) -> Any:
    """Applies a model to one batch with each of several adapters: results (adapters, batch, ...).

    What comes before the first tuned norm is computed once for all adapters.

    Args:
        apply_fn: a pure function `apply_fn(params, *batch, **keywords)`.
        bank: the bank, or its leaves.
        ids: integers (adapters,), or names, with a bank.
        frozen: the other half of the base.
        *batch: the inputs, which all adapters see.
        cast: as in `merge_params`.
        **keywords: more inputs.

    Raises:
        AdapterError: as for `take_rows`.
        TreeError: the bank's leaves are not the placeholders of `frozen`.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"ln": {"scale": jnp.ones(2)}}
        >>> bank = lnt.bank.make_bank(params, {"a": {"ln.scale": jnp.zeros(2)}})
        >>> frozen = lnt.bank.freeze_base(params, bank)
        >>> apply = lambda params, x: x * params["ln"]["scale"]
        >>> votes = lnt.bank.apply_ensemble(apply, bank, bank.names, frozen, jnp.ones((3, 2)))
        >>> votes.shape, votes.mean(0)[0].tolist()
        ((2, 3, 2), [0.5, 0.5])
    """
    rows = take_rows(bank, _check_axis(ids))
    return jax.vmap(lambda row: apply_fn(merge_params(row, frozen, cast=cast), *batch, **keywords))(
        rows
    )


def get_leaves(bank: AdapterBank | Mapping[str, Any]) -> Mapping[str, Any]:
    """The leaves of a bank, which may be these themselves."""
    leaves = bank.leaves if isinstance(bank, AdapterBank) else bank
    if not isinstance(leaves, Mapping) or not leaves:
        raise AdapterError(f"expected a bank or its leaves, not {type(bank).__name__}")
    return leaves


def _check_ids(bank: Any, leaves: Mapping[str, Any], ids: Ids) -> Any:
    named = isinstance(ids, str) or (
        isinstance(ids, Sequence) and any(isinstance(name, str) for name in ids)
    )
    if named:
        if not isinstance(bank, AdapterBank):
            raise AdapterError("names need a bank: pass bank.get_ids(names) with bank.leaves")
        return bank.get_ids(ids)
    ids = ids if isinstance(ids, jax.Array) else np.asarray(ids)
    if ids.ndim > 1 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise AdapterError(
            f"ids has shape {ids.shape} and dtype {ids.dtype}; expected integers (batch,)"
        )
    if isinstance(ids, Tracer):
        return ids
    capacity = next(iter(leaves.values())).shape[0]
    for number in np.unique(np.asarray(ids)).tolist():
        if not 0 <= number < capacity:
            raise AdapterError(f"ids holds {number}; expected 0 to {capacity - 1}")
        if isinstance(bank, AdapterBank) and bank.rows[number] is None:
            raise AdapterError(
                f"ids holds {number}, a row without an adapter: it was removed, or never added"
            )
    return ids


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


def _check_axis(ids: Ids) -> Ids:
    """One id gives rows without a batch axis, whose first axis would pass for it."""
    if np.ndim(ids) == 0:
        raise AdapterError(
            f"ids is {ids!r}, without an axis: pass a sequence of ids or names, such as [{ids!r}]"
        )
    return ids


def _is_split(leaf: Any) -> bool:
    return bool(get_shape(leaf))


def _as_batch(leaf: Any) -> Any:
    """One example as a batch of one; a random key of its own as it is."""
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf[None]


def _first(leaf: Any) -> Any:
    if not get_shape(leaf):
        raise AdapterError(
            "apply_fn returns a value without a batch axis, such as a mean over the batch: return "
            "one for each row"
        )
    return leaf[0]
