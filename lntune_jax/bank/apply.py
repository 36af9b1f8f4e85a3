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
from ..messages import shorten
from ..partition import Placeholder, is_placeholder, merge_params
from ..paths import flatten, get_shape, join
from .core import ID_BOUND, MOST_ROWS, AdapterBank, BankLeaves

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
    numbers = _find_rows(bank, leaves, _read_ids(bank, ids))
    if not isinstance(numbers, np.ndarray):
        # A row beyond the last gives NaN, never another tenant's values: JAX would clamp it.
        return {
            path: jnp.asarray(leaf).at[numbers].get(mode="fill", fill_value=np.nan)
            for path, leaf in leaves.items()
        }
    return {path: leaf[numbers] for path, leaf in leaves.items()}


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
    in_axes: Any = 0,
    cast: bool = True,
    **keywords: Any,
) -> Any:
    """`apply_per_example` with the rows taken before, as a bank on the host needs it.

    Args:
        apply_fn: as in `apply_per_example`.
        rows: `{leaf path: (batch, *shape)}`, from `take_rows`.
        frozen: as in `apply_per_example`.
        *batch: as in `apply_per_example`.
        in_axes: as in `apply_per_example`.
        cast: as in `merge_params`.
        **keywords: as in `apply_per_example`.

    Raises:
        AdapterError: an input does not fit the rows or `in_axes`, as in `apply_per_example`.
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
    given, treedef = jax.tree_util.tree_flatten_with_path((batch, keywords), is_leaf=_is_none)
    axes = [
        _choose_axis(_name_input(keys), keys[2:], leaf, axis, count)
        for (keys, leaf), axis in zip(given, _list_axes(in_axes, batch, keywords), strict=True)
    ]
    leaves = [leaf for _, leaf in given]

    def apply_one(row: Mapping[str, Any], own: Sequence[Any]) -> Any:
        parts = iter(own)
        one = [
            leaf if axis is None else _as_batch(next(parts), axis)
            for leaf, axis in zip(leaves, axes, strict=True)
        ]
        positional, named = treedef.unflatten(one)
        result = apply_fn(merge_params(row, frozen, cast=cast), *positional, **named)
        return jax.tree.map(_first, result)

    split = [axis for axis in axes if axis is not None]
    parts = [leaf for leaf, axis in zip(leaves, axes, strict=True) if axis is not None]
    return jax.vmap(apply_one, in_axes=(0, split))(dict(rows), parts)


def apply_per_example(
    apply_fn: Callable[..., Any],
    bank: AdapterBank | BankLeaves,
    ids: Ids,
    frozen: Any,
    *batch: Any,
    in_axes: Any = 0,
    cast: bool = True,
    **keywords: Any,
) -> Any:
    """Applies a model to a batch, each row with its own adapter.

    The program is that of one adapter for the batch, matmul for matmul. A saved module (a head)
    that the bank holds is another matmul for each row, in one batched product.

    Args:
        apply_fn: a pure function `apply_fn(params, *batch, **keywords)` whose results have the
            batch axis first. It sees one row at a time, as a batch of one, so it must not mix rows
            (as batch statistics would).
        bank: the bank, or, in a jitted function, `bank.leaves`.
        ids: integers (batch,), from `bank.get_ids`; or names, with a bank.
        frozen: the other half of the base, from `freeze_base` or `partition_params`.
        *batch: the inputs: arrays, or trees of arrays.
        in_axes: the batch axis of each input, as in `jax.vmap`: one for all, or a tuple with one
            for each of `*batch`, or trees of them; None gives an input to every row as it is.
            Where an input is to be split, numbers, flags and arrays without axes still go to every
            row.
        cast: as in `merge_params`: False leaves the rows in the bank's dtype.
        **keywords: more inputs. Their arrays are split along the first axis, as in `jax.vmap`;
            what is not to be split goes into `apply_fn` by `functools.partial`.

    Returns:
        What `apply_fn` returns, for the whole batch.

    Raises:
        AdapterError: as for `take_rows`; an array has another batch axis than the ids; a list or
            a tuple holds plain numbers, where an array is meant; or `in_axes` fits no input.
        TreeError: the bank's leaves are not the placeholders of `frozen`.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"ln": {"scale": jnp.ones(2)}}
        >>> bank = lnt.bank.make_bank(params, {"a": {"ln.scale": jnp.zeros(2)}})
        >>> frozen = lnt.bank.freeze_base(params, bank)
        >>> apply = lambda params, x, shift: x * params["ln"]["scale"] + shift
        >>> x, shift = jnp.ones((2, 2)), jnp.array([5.0, 6.0])
        >>> found = lnt.bank.apply_per_example(
        ...     apply, bank, ["a", "base"], frozen, x, shift, in_axes=(0, None)
        ... )
        >>> found.tolist()
        [[5.0, 6.0], [6.0, 7.0]]
    """
    rows = take_rows(bank, _check_axis(bank, ids))
    return apply_rows(apply_fn, rows, frozen, *batch, in_axes=in_axes, cast=cast, **keywords)


def apply_ensemble(
    apply_fn: Callable[..., Any],
    bank: AdapterBank | BankLeaves,
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
    rows = take_rows(bank, _check_axis(bank, ids))
    return jax.vmap(lambda row: apply_fn(merge_params(row, frozen, cast=cast), *batch, **keywords))(
        rows
    )


def get_leaves(bank: AdapterBank | BankLeaves) -> BankLeaves:
    """The leaves of a bank, which may be these themselves."""
    leaves = bank.leaves if isinstance(bank, AdapterBank) else bank
    if not isinstance(leaves, BankLeaves):
        raise AdapterError(
            f"expected a bank or bank.leaves, not {type(bank).__name__}: only these know which "
            "ids are in use"
        )
    if not jnp.issubdtype(leaves.ids.dtype, jnp.integer):
        raise AdapterError(
            f"bank.leaves.ids has dtype {leaves.ids.dtype}; expected int32: what casts or scales a "
            "bank must map over bank.leaves.arrays alone"
        )
    for leaf in leaves.values():
        if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) and leaf.is_deleted():
            raise AdapterError(
                "the bank's arrays were donated and are gone: use the bank that came from them"
            )
    return leaves


def _read_ids(bank: Any, ids: Ids) -> Any:
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
            return np.asarray(ids % MOST_ROWS)  # no scalar, by which numpy would give a view
    elif all(isinstance(leaf, np.ndarray) for leaf in leaves.values()):
        raise AdapterError(
            "the bank is in the host's memory and the ids are traced: call take_rows outside "
            "jax.jit, and pass the rows to the jitted function (apply_rows)"
        )
    ids = jnp.asarray(ids)
    ids = ids.astype(jnp.int64 if ids.dtype.itemsize > 4 else jnp.int32)  # wraps no id onto another
    numbers = ids % MOST_ROWS
    found = jnp.asarray(leaves.ids).at[numbers].get(mode="fill", fill_value=-1)
    return jnp.where(found.astype(ids.dtype) == ids, numbers, count)


def _list_known(bank: Any, leaves: BankLeaves) -> Sequence[int | None] | None:
    """The id that each row answers to; None where the leaves are traced without their bank."""
    if isinstance(bank, AdapterBank):
        return [None if row is None else i for row, i in zip(bank.rows, bank.ids, strict=True)]
    return None if isinstance(leaves.ids, Tracer) else np.asarray(leaves.ids).tolist()


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


def _check_axis(bank: Any, ids: Ids) -> Any:
    """One id gives rows without a batch axis, whose first axis would pass for it."""
    array = _read_ids(bank, ids)
    if array.ndim == 0:
        raise AdapterError(
            f"ids is {ids!r}, without an axis: pass a sequence of ids or names, such as [{ids!r}]"
        )
    return array


def _list_axes(in_axes: Any, batch: tuple[Any, ...], keywords: Mapping[str, Any]) -> list[Any]:
    """The axis of each leaf of the inputs, None where it is not to be split."""
    prefix = tuple(in_axes) if isinstance(in_axes, list) else in_axes
    try:
        axes = jax.tree.broadcast(prefix, batch, is_leaf=_is_none)
    except ValueError as error:
        raise AdapterError(
            f"in_axes does not fit the {len(batch)} inputs after frozen: pass one axis, or a tuple "
            f"with one for each, as to jax.vmap ({str(error).splitlines()[0]})"
        ) from error
    listed = jax.tree.leaves(axes, is_leaf=_is_none)
    wrong = [a for a in listed if a is not None and (isinstance(a, bool) or not isinstance(a, int))]
    if wrong:
        raise AdapterError(f"in_axes holds {wrong[0]!r}; expected integers and None")
    return listed + [0] * len(jax.tree.leaves(keywords, is_leaf=_is_none))


def _is_none(value: Any) -> bool:
    return value is None


def _name_input(keys: tuple[Any, ...]) -> str:
    is_keyword, which = keys[0].idx == 1, keys[1]
    return f"the keyword {which.key!r}" if is_keyword else f"input {which.idx} after frozen"


def _choose_axis(
    name: str, inside: tuple[Any, ...], leaf: Any, axis: int | None, count: int
) -> int | None:
    """The axis along which a leaf is split; None gives it to every row as it is."""
    if axis is None or leaf is None:
        return None
    shape = get_shape(leaf)
    if not shape:
        if any(isinstance(key, jax.tree_util.SequenceKey) for key in inside):
            raise AdapterError(
                f"{name} is a sequence that holds {shorten(repr(leaf))}, which cannot be split "
                "into rows: pass an array (jax.numpy.asarray), or in_axes with None for what every "
                "row gets as it is"
            )
        return None
    if not -len(shape) <= axis < len(shape):
        raise AdapterError(f"{name} has shape {tuple(shape)}, which has no axis {axis} of in_axes")
    if shape[axis] != count:
        raise AdapterError(
            f"{name} has shape {tuple(shape)}, but there are {count} ids: axis {axis} must be the "
            "batch. For what has no batch axis pass in_axes with None there; a keyword goes into "
            "apply_fn by functools.partial"
        )
    return axis % len(shape)


def _as_batch(leaf: Any, axis: int) -> Any:
    """One example as a batch of one; a random key of its own as it is."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return leaf if is_key else jnp.expand_dims(leaf, axis)


def _first(leaf: Any) -> Any:
    if not get_shape(leaf):
        raise AdapterError(
            "apply_fn returns a value without a batch axis, such as a mean over the batch: return "
            "one for each row"
        )
    return leaf[0]
