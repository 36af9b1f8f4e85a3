"""Where a bank's arrays lie, in which dtype, and how many rows they have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..config import LNTuningConfig
from ..errors import AdapterError, ConfigError
from ..names.maps import NameMap
from ..selection.select import select_leaves

_FEWEST_ROWS = 8


def bank_bytes(
    params: Any,
    adapters: int,
    *,
    config: LNTuningConfig | None = None,
    norms: Iterable[str] | None = None,
    name_map: str | NameMap | None = None,
    dtype: str | None = None,
    devices: int = 1,
) -> int:
    """The memory of a bank on each device: (adapters + 1) x values x bytes of one / devices.

    Args:
        params: the base; `jax.ShapeDtypeStruct` leaves will do.
        adapters: how many the bank is to hold, beside the base.
        config: as in `make_bank`.
        norms: as in `make_bank`.
        name_map: as in `make_bank`.
        dtype: as in `make_bank`.
        devices: over how many devices the rows are laid.

    Raises:
        ConfigError: `dtype` is no floating one, or a number is below its bound.
        SelectionError: `config` selects nothing.

    Example:
        >>> import jax
        >>> import lntune_jax as lnt
        >>> norm = jax.ShapeDtypeStruct((65 * 4096,), "bfloat16")  # as many as Llama-2-7B has
        >>> lnt.bank.bank_bytes({"norm": {"scale": norm}}, 10_000) / 1e9
        10.65066496
        >>> lnt.bank.bank_bytes({"norm": {"scale": norm}}, 10_000, dtype="bfloat16") / 1e9
        5.32533248
    """
    if adapters < 0 or devices < 1:
        raise ConfigError(f"adapters is {adapters} and devices {devices}; expected 0 and 1 or more")
    selection = select_leaves(params, config or LNTuningConfig(), norms, name_map, warn=False)
    trained = [
        leaf.value for index, leaf in enumerate(selection.leaves) if selection.is_trainable(index)
    ]
    row = sum(int(np.prod(leaf.shape)) * choose_dtype(leaf, dtype).itemsize for leaf in trained)
    return -(-(adapters + 1) // devices) * row


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
