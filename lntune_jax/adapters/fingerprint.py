"""Telling whether an adapter meets the base it was trained on, from a few kilobytes.

The names and shapes of all frozen leaves must be the same, and a few of their values: exactly in
the same dtype, else as closely as the coarser dtype can tell, so that the same model in another
precision passes.
"""

from __future__ import annotations

import base64
import hashlib
import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..errors import AdapterError
from ..messages import list_names
from ..names.layers import LayerSlice
from ..paths import join
from ..selection.quantized import describe_quantization
from ..selection.roles import FROZEN_ROLE, RoledTree
from ..storage.processes import meet

LEAVES_SAMPLED = 8
QUANTIZED = "quantized"  # the field that names the kinds of a quantised base's kernels
_LONGEST_LIST = 16_384  # bytes of the compressed list of leaves; a longer one is only hashed
_LONGEST_TEXT = 50_000_000
_FACTORS = ("_lora_a", "_lora_b")  # how qwix calls them, after the kernel beside


def list_frozen(selection: RoledTree) -> dict[str, Any]:
    """The frozen parameters by leaf path: no trainable leaf, running statistic or random state.

    LoRA's factors are left out: they train beside the base, which is the same without them.
    """
    return {
        join(leaf.path): leaf.value
        for leaf, role in zip(selection.leaves, selection.roles, strict=True)
        if role == FROZEN_ROLE
        and _is_numeric(leaf.value)
        and not join(leaf.path).endswith(_FACTORS)
    }


def make_fingerprint(frozen: Mapping[str, Any]) -> dict[str, Any]:
    """The fingerprint of a base, as JSON values.

    In a run of several processes each must call this.

    Args:
        frozen: `{leaf path: array}` of the frozen parameters. Abstract leaves give no values.

    Example:
        >>> fingerprint = make_fingerprint({"fc.kernel": np.eye(2, dtype=np.float32)})
        >>> fingerprint["leaves"], fingerprint["samples"][0]["path"]
        (1, 'fc.kernel')
        >>> explain_difference(fingerprint, {"fc.kernel": np.eye(2)}) is None
        True
    """
    text = _write_structure(frozen)
    packed = base64.b85encode(zlib.compress(text.encode(), 9)).decode()
    samples = []
    for path in _choose_leaves(frozen):
        values = sample_leaf(path, frozen[path])
        texts = [_write_number(value) for value in values]
        samples.append({"path": path, "dtype": frozen[path].dtype.name, "values": texts})
    quantized = describe_quantization(frozen)
    return {
        "leaves": len(frozen),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "list": packed if len(packed) <= _LONGEST_LIST else None,
        "samples": samples,
        **({QUANTIZED: quantized} if quantized else {}),
    }


def explain_difference(fingerprint: Mapping[str, Any], frozen: Mapping[str, Any]) -> str | None:
    """How a base differs from the one of `fingerprint`; None if it is the same.

    In a run of several processes each must call this. Abstract leaves have no values to compare.
    """
    text = _write_structure(frozen)
    same = hashlib.sha256(text.encode()).hexdigest() == fingerprint["sha256"]
    expected, found = fingerprint.get(QUANTIZED), describe_quantization(frozen)
    # An adapter saved before there was such a field may have a quantised base all the same.
    if expected != found and (expected or not same):
        return (
            f"quantised kernels: {expected or 'none'} expected, {found or 'none'} found (quantize= "
            "of lntune_jax.models.from_pretrained; a quantised base is another base)"
        )
    if not same:
        return _explain_structure(fingerprint, text, len(frozen))
    for sample in fingerprint["samples"]:
        value = frozen.get(sample["path"])
        if value is None:
            return f"the fingerprint has values of {sample['path'][:80]!r}, which is not there"
        if holds_values(value):
            difference = _compare(sample, value)
            if difference:
                return difference
    return None


def count_frozen(fingerprint: Mapping[str, Any]) -> int | None:
    """How many numbers the frozen leaves hold; None where the fingerprint does not tell.

    It does not for a tree of very many leaves, which it only hashes, nor for a quantised base,
    whose scales and packed values are no parameters of their own.

    Example:
        >>> count_frozen(make_fingerprint({"fc.kernel": np.eye(2, dtype=np.float32)}))
        4
    """
    if fingerprint["list"] is None or fingerprint.get(QUANTIZED):
        return None
    shapes = [line.rpartition(" [")[2].rstrip("]") for line in _read_structure(fingerprint)]
    return sum(math.prod(map(int, filter(None, shape.split(", ")))) for shape in shapes)


def _is_numeric(value: Any) -> bool:
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        return False
    return not jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def _write_structure(frozen: Mapping[str, Any]) -> str:
    """One line a leaf. Sorted, since the order of leaves depends on the containers."""
    lines = (f"{path!r} {list(map(int, frozen[path].shape))}" for path in sorted(frozen))
    return "\n".join(lines)


def _choose_leaves(frozen: Mapping[str, Any]) -> list[str]:
    """Leaves spread evenly over the tree: matrices, since vectors are often all zeros or ones."""
    usable = [path for path in sorted(frozen) if holds_values(frozen[path])]
    usable = [path for path in usable if is_sampled_kind(frozen[path])]
    matrices = [path for path in usable if len(frozen[path].shape) > 1]
    candidates = matrices or usable
    count = min(LEAVES_SAMPLED, len(candidates))
    last = len(candidates) - 1
    places = dict.fromkeys(i * last // max(count - 1, 1) for i in range(count))
    return [candidates[place] for place in places]


def _explain_structure(fingerprint: Mapping[str, Any], text: str, count: int) -> str:
    if fingerprint["list"] is None:
        return (
            f"other leaves or shapes ({fingerprint['leaves']:,} frozen leaves expected, "
            f"{count:,} found)"
        )
    try:
        expected, found = set(_read_structure(fingerprint)), set(text.splitlines())
    except (ValueError, zlib.error) as error:
        return f"other leaves or shapes (the list of those expected is damaged: {error})"
    parts = []
    if expected - found:
        parts.append(f"expected {list_names(sorted(expected - found), str)}")
    if found - expected:
        parts.append(f"found {list_names(sorted(found - expected), str)}")
    return "other frozen leaves or shapes: " + "; ".join(parts)


def _read_structure(fingerprint: Mapping[str, Any]) -> list[str]:
    packed = base64.b85decode(fingerprint["list"])
    return zlib.decompressobj().decompress(packed, _LONGEST_TEXT).decode().splitlines()


def _write_number(value: np.generic) -> str:
    return str(int(value)) if _is_integer(value.dtype) else float(value).hex()


def _read_number(text: str, dtype: Any) -> int | float:
    return int(text) if _is_integer(dtype) else float.fromhex(text)


def _is_same(found: Any, expected: int | float, recorded: Any, dtype: Any) -> bool:
    if _is_integer(dtype):
        return int(found) == expected
    return _is_close(float(found), expected, recorded, dtype)


def _is_integer(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.integer))


def _compare(sample: Mapping[str, Any], value: Any) -> str | None:
    path, recorded = sample["path"], jnp.dtype(sample["dtype"])
    dtype = jnp.dtype(value.dtype)
    about = f"the values of {path!r} differ"
    if _is_integer(recorded) != _is_integer(dtype) or not is_sampled_kind(value):
        return f"{about}: {recorded.name} expected, {dtype.name} found"
    found = sample_leaf(path, value)
    try:
        numbers = [_read_number(text, dtype) for text in sample["values"]]
    except (ValueError, OverflowError):
        numbers = []
    if len(numbers) != len(found):
        return f"{about}: {len(found)} numbers expected, {len(numbers)} recorded"
    pairs = zip(found, numbers, strict=True)
    same = [_is_same(x, y, recorded, dtype) for x, y in pairs]
    if all(same):
        return None
    first = same.index(False)
    return (
        f"{about}: {sum(not s for s in same)} of {len(same)} that were compared, such as "
        f"{numbers[first]:.9g} expected ({recorded.name}), {float(found[first]):.9g} found "
        f"({dtype.name})"
    )


def _is_close(found: float, expected: float, *dtypes: Any) -> bool:
    """Whether two numbers may be one number in two dtypes; in one dtype they must be equal."""
    if np.isnan(found) or np.isnan(expected):
        return bool(np.isnan(found) and np.isnan(expected))
    if np.isinf(found) or np.isinf(expected) or dtypes[0] == dtypes[1]:
        return found == expected
    relative = max(float(jnp.finfo(dtype).eps) for dtype in dtypes)
    absolute = max(float(jnp.finfo(dtype).smallest_subnormal) for dtype in dtypes)
    return abs(found - expected) <= relative * max(abs(found), abs(expected)) + absolute


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
    meet()
    all_octets, all_known = multihost_utils.process_allgather((octets, known))
    owner = np.argmax(all_known, axis=0)
    chosen = np.ascontiguousarray(np.asarray(all_octets)[owner, np.arange(len(found))])
    return chosen.view(found.dtype).reshape(-1)
