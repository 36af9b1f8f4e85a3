"""Reading a few elements of an array wherever it lives: on the host, a device, many devices.

Only the elements leave a device, from the shard that has them; an array in the host's memory is
read in place. Nothing is gathered, so a sharded 70B tree costs as little as a small one.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..errors import AdapterError
from ..names.layers import LayerSlice

ELEMENTS_SAMPLED = 8
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: its multiples spread evenly, in no row


def sample_leaf(path: str, value: Any) -> np.ndarray:
    """The elements of `value` at places that depend on its shape only.

    Raises:
        AdapterError: the array was donated and is gone.

    Example:
        >>> sample_leaf("w", np.arange(100)).tolist()
        [61, 23, 85, 47, 9, 70, 32, 94]
    """
    size = int(np.prod(value.shape, dtype=np.int64))
    flat = [((i + 1) * _GOLDEN % 2**64) * size >> 64 for i in range(ELEMENTS_SAMPLED)]
    places = np.stack(np.unravel_index(flat, value.shape)) if value.shape else _NO_AXES
    if isinstance(value, LayerSlice):
        places, value = np.insert(places, value.axis, value.index, axis=0), value.whole
    if not isinstance(value, jax.Array):
        return np.asarray(value)[tuple(places)] if value.shape else np.asarray(value)[None]
    if value.is_deleted():
        raise AdapterError(
            f"the leaf {path!r} of the base was donated to a jitted function and is gone: pass the "
            "arrays that are still there, and do not donate the base"
        )
    return _read_shards(value, places)


def holds_values(leaf: Any) -> bool:
    """Whether a leaf has values that can be read now."""
    whole = leaf.whole if isinstance(leaf, LayerSlice) else leaf
    return not isinstance(whole, jax.ShapeDtypeStruct | Tracer)


def is_sampled_kind(leaf: Any) -> bool:
    """Whether a leaf has elements to compare: real numbers, or integers as in a quantised base.

    Integer vectors are not: they are counters, positions and random states.
    """
    if 0 in leaf.shape:
        return False
    if jnp.issubdtype(leaf.dtype, jnp.integer):
        return len(leaf.shape) > 1
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


_NO_AXES = np.zeros((0, 1), np.int64)


def _read_shards(value: jax.Array, places: np.ndarray) -> np.ndarray:
    count = places.shape[1]
    found = np.zeros(count, value.dtype)
    known = np.zeros(count, bool)
    for shard in value.addressable_shards:
        starts = np.array([part.start or 0 for part in shard.index], np.int64)[:, None]
        sizes = np.array(shard.data.shape, np.int64)[:, None]
        local = places - starts
        here = ((local >= 0) & (local < sizes)).all(axis=0) & ~known
        if here.any():
            found[here] = _read_elements(shard.data, local[:, here])
            known |= here
        if known.all():
            break
    if not value.is_fully_addressable and not value.is_fully_replicated:
        found = _combine_processes(found, known)
    return found


def _read_elements(data: jax.Array, places: np.ndarray) -> np.ndarray:
    """Elements of an array on one device."""
    if _is_on_host(data) or not data.shape:
        return np.asarray(data)[tuple(places)]  # a view, no copy
    return np.asarray(data[tuple(places)])


def _is_on_host(data: jax.Array) -> bool:
    on_cpu = next(iter(data.devices())).platform == "cpu"
    return on_cpu or (data.sharding.memory_kind or "").endswith("host")


def _combine_processes(found: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Takes each element from a process that has it; the bytes travel, so no dtype is cast."""
    from jax.experimental import multihost_utils

    octets = found.view(np.uint8).reshape(len(found), -1)
    all_octets, all_known = multihost_utils.process_allgather((octets, known))
    owner = np.argmax(all_known, axis=0)
    chosen = np.ascontiguousarray(np.asarray(all_octets)[owner, np.arange(len(found))])
    return chosen.view(found.dtype).reshape(-1)
