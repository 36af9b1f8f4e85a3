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

from ..errors import AdapterError
from ..partition import merge_params
from ..paths import get_shape
from .core import AdapterBank
from .rows import Ids, count_rows, take_rows


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
