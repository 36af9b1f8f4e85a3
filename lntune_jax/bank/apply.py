"""Mixed batches: each row of a batch with its own adapter, each matmul still one matmul.

An adapter of norms enters only through elementwise products, so that a batch of many adapters is
the program of a batch of one, with a norm parameter for each row.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..errors import AdapterError
from ..messages import shorten
from ..partition import merge_params
from ..paths import get_shape
from .core import AdapterBank, BankLeaves
from .rows import Ids, count_rows, read_ids, take_rows


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
    _check_function(apply_fn)
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
    _check_function(apply_fn)
    rows = take_rows(bank, _check_axis(bank, ids))
    return jax.vmap(lambda row: apply_fn(merge_params(row, frozen, cast=cast), *batch, **keywords))(
        rows
    )


def _check_function(apply_fn: Any) -> None:
    if not callable(apply_fn):
        raise AdapterError(
            f"apply_fn must be a function of params and inputs, not {type(apply_fn).__name__}"
        )


def _check_axis(bank: Any, ids: Ids) -> Any:
    """One id gives rows without a batch axis, whose first axis would pass for it."""
    array = read_ids(bank, ids)
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
    wrong = [a for a in listed if isinstance(a, bool) or not (a is None or hasattr(a, "__index__"))]
    if wrong:
        raise AdapterError(f"in_axes holds {wrong[0]!r}; expected integers and None")
    return [a if a is None else operator.index(a) for a in listed] + [0] * len(
        jax.tree.leaves(keywords, is_leaf=_is_none)
    )


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
