"""Telling whether an adapter meets the base it was trained on, from a few kilobytes.

The names and shapes of all frozen leaves must be the same, and some values of every matrix:
exactly in the same dtype, else as closely as the coarser dtype can tell, so that the same model in
another precision passes.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..errors import AdapterError
from ..messages import Advice, Argument, Message, list_names, warn
from ..names.layers import LayerSlice
from ..paths import join
from ..selection.quantized import describe_quantization
from ..selection.roles import FROZEN_ROLE, RoledTree
from ..storage.processes import meet

QUANTIZED = "quantized"  # the field that names the kinds of a quantised base's kernels
VALUES = 4  # of each matrix
VALUES_OF_INTEGERS = 12  # which have few values: two matrices of four bits agree here and there
_FACTORS = ("_lora_a", "_lora_b")  # how qwix calls them, after the kernel beside
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: its multiples spread evenly, in no row
_RECORD = re.compile(
    r"([a-z]{3,12}[0-9a-z_]*)\[((?:\d{1,20}(?:,\d{1,20}){0,31})?)\]((?: \S{1,40})*)"
)


class _Record(NamedTuple):
    """What a fingerprint says of one leaf."""

    dtype: str
    shape: tuple[int, ...]
    values: list[str]


def list_frozen(selection: RoledTree) -> dict[str, Any]:
    """The frozen parameters by leaf path: no trainable leaf, statistic, counter or random state.

    LoRA's factors are left out: they train beside the base, which is the same without them.
    """
    return {
        join(leaf.path): leaf.value
        for leaf, role in zip(selection.leaves, selection.roles, strict=True)
        if role == FROZEN_ROLE
        and _is_numeric(leaf.value)
        and not _is_counter(leaf.value)
        and not join(leaf.path).endswith(_FACTORS)
    }


def make_fingerprint(frozen: Mapping[str, Any]) -> dict[str, Any]:
    """The fingerprint of a base, as JSON values: a line for each leaf.

    In a run of several processes each must call this.

    Args:
        frozen: `{leaf path: array}` of the frozen parameters. Abstract leaves give no values.

    Example:
        >>> fingerprint = make_fingerprint({"fc.kernel": np.eye(2, dtype=np.float32)})
        >>> fingerprint
        {'leaves': {'fc.kernel': 'float32[2,2] 0 1 1 0'}}
        >>> explain_difference(fingerprint, {"fc.kernel": np.eye(2)}) is None
        True
    """
    samples = read_samples({path: frozen[path] for path in _choose_leaves(frozen)})
    leaves = {}
    for path in sorted(frozen):  # the order of leaves depends on the containers
        leaf = frozen[path]
        numbers = "".join(f" {_write_number(value)}" for value in samples.get(path, ()))
        leaves[path] = f"{leaf.dtype}{_write_shape(leaf.shape)}{numbers}"
    quantized = describe_quantization(frozen)
    return {"leaves": leaves, **({QUANTIZED: quantized} if quantized else {})}


def check_fingerprint(base: Any) -> None:
    """Checks what was read from a file.

    Raises:
        ValueError: says which part of it is not what a fingerprint has.
    """
    if not isinstance(base, dict) or not isinstance(base.get("leaves"), dict):
        raise ValueError("base: expected an object with leaves")
    if not isinstance(base.get(QUANTIZED), str | None):
        raise ValueError("base: 'quantized' is no text")
    for path, text in base["leaves"].items():
        try:
            record = _parse(text)
            numbers = [_read_number(number, record.dtype) for number in record.values]
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"base: {path[:80]!r} is {str(text)[:80]!r}") from None
        count = _count(record)
        if numbers and len(numbers) != count:
            raise ValueError(f"base: {path[:80]!r} has {len(numbers)} values, expected {count}")


def explain_difference(fingerprint: Mapping[str, Any], frozen: Mapping[str, Any]) -> Message | None:
    """How a base differs from the one of `fingerprint`; None if it is the same.

    In a run of several processes each must call this. Abstract leaves have no values to compare.

    Warns:
        UserWarning: `fingerprint` has no values for some matrices, so that they are not compared.
    """
    records = {path: _parse(text) for path, text in fingerprint["leaves"].items()}
    expected, found = fingerprint.get(QUANTIZED), describe_quantization(frozen)
    if expected != found:
        return (
            f"quantised kernels: {expected or 'none'} expected, {found or 'none'} found",
            Advice((" (", Argument("quantize"), ")")),
            "; a quantised base is another base",
        )
    before = {f"{path!r} {_write_shape(record.shape)}" for path, record in records.items()}
    now = {f"{path!r} {_write_shape(leaf.shape)}" for path, leaf in frozen.items()}
    if before != now:
        parts = []
        if before - now:
            parts.append(f"expected {list_names(sorted(before - now), str)}")
        if now - before:
            parts.append(f"found {list_names(sorted(now - before), str)}")
        return "other frozen leaves or shapes: " + "; ".join(parts)
    chosen = _choose_leaves(frozen)
    unknown = [path for path in chosen if not records[path].values]
    if unknown:
        warn(
            f"of {len(unknown):,} of the base's {len(chosen):,} matrices no values were recorded "
            f"({list_names(unknown)}), so whether they are those of the training cannot be told: "
            "save the adapter again with the parameters themselves as base, not their shapes",
            UserWarning,
        )
    return explain_values(fingerprint, frozen)


def explain_values(fingerprint: Mapping[str, Any], leaves: Mapping[str, Any]) -> str | None:
    """How the values of some leaves differ from those recorded; None if they are the same.

    In a run of several processes each must call this.

    Args:
        fingerprint: what `make_fingerprint` gave.
        leaves: `{leaf path: array}`. What is abstract or has no values recorded is passed over.
    """
    records = {path: _parse(fingerprint["leaves"][path]) for path in leaves}
    known = {
        path: leaf for path, leaf in leaves.items() if records[path].values and holds_values(leaf)
    }
    for path, leaf in known.items():
        expected, dtype = jnp.dtype(records[path].dtype), jnp.dtype(leaf.dtype)
        if _is_integer(expected) != _is_integer(dtype) or not is_sampled_kind(leaf):
            return f"the values of {path!r} differ: {expected} expected, {dtype} found"
    for path, found in read_samples(known).items():
        if difference := _compare(records[path], found):
            return f"the values of {path!r} differ: {difference}"
    return None


def list_sampled(fingerprint: Mapping[str, Any]) -> list[str]:
    """The paths of the leaves of which values are recorded."""
    return [path for path, text in fingerprint["leaves"].items() if _parse(text).values]


def count_frozen(fingerprint: Mapping[str, Any]) -> int | None:
    """How many numbers the frozen leaves hold; None where the fingerprint does not tell.

    It does not for a quantised base, whose scales and packed values are no parameters of their own.

    Example:
        >>> count_frozen(make_fingerprint({"fc.kernel": np.eye(2, dtype=np.float32)}))
        4
    """
    if fingerprint.get(QUANTIZED):
        return None
    return sum(math.prod(_parse(text).shape) for text in fingerprint["leaves"].values())


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
    if _is_integer(leaf.dtype):
        return len(leaf.shape) > 1
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def read_samples(leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A few elements of each array, at places that depend on its shape only, wherever it lives.

    Only the elements leave a device, from the shard that has them, all in one transfer; an array in
    the host's memory is read in place. Nothing is gathered, so a sharded 70B tree costs as little
    as a small one. In a run of several processes each must call this.

    Raises:
        AdapterError: an array was donated and is gone.

    Example:
        >>> read_samples({"w": np.arange(100)})["w"].tolist()
        [61, 23, 85, 47, 9, 70, 32, 94, 56, 18, 79, 41]
    """
    found: dict[str, np.ndarray] = {}
    known: dict[str, np.ndarray] = {}
    waiting: list[tuple[str, np.ndarray, Any]] = []
    spread = []
    for path, leaf in leaves.items():
        places, whole = _choose_places(leaf)
        if not isinstance(whole, jax.Array):
            found[path] = np.asarray(whole)[tuple(places)].reshape(-1)
            continue
        if whole.is_deleted():
            raise AdapterError(
                f"the leaf {path!r} of the base was donated to a jitted function and is gone: pass "
                "the arrays that are still there, and do not donate the base"
            )
        found[path] = np.zeros(places.shape[1], whole.dtype)
        known[path] = np.zeros(places.shape[1], bool)
        for here, local, data in _find_shards(whole, places):
            known[path] |= here
            if _is_on_host(data) or not data.shape:
                found[path][here] = np.asarray(data)[tuple(local)]  # a view, no copy
            else:
                waiting.append((path, here, _take(data, tuple(local.astype(np.int32)))))
        if not whole.is_fully_addressable and not whole.is_fully_replicated:
            spread.append(path)
    fetched = jax.device_get([values for _, _, values in waiting])
    for (path, here, _), values in zip(waiting, fetched, strict=True):
        found[path][here] = values
    if spread:
        _combine_processes(found, known, spread)
    return found


@jax.jit
def _take(data: Any, places: Any) -> Any:
    return data[places]


def _choose_places(leaf: Any) -> tuple[np.ndarray, Any]:
    """Indices into an array, one row for each axis, and the array."""
    places = _list_places(tuple(leaf.shape), _count(leaf))
    if isinstance(leaf, LayerSlice):
        return np.insert(places, leaf.axis, leaf.index, axis=0), leaf.whole
    return places, leaf


@functools.lru_cache(maxsize=256)  # the shapes of a large tree are few
def _list_places(shape: tuple[int, ...], count: int) -> np.ndarray:
    if not shape:
        return np.zeros((0, 1), np.int64)
    size = math.prod(shape)
    flat = [((i + 1) * _GOLDEN % 2**64) * size >> 64 for i in range(count)]
    return np.stack(np.unravel_index(flat, shape))


def _find_shards(value: jax.Array, places: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, Any]]:
    """For each shard that is needed: which elements it has, where in it, and its data."""
    known, needed = np.zeros(places.shape[1], bool), []
    for shard in value.addressable_shards:
        starts = np.array([part.start or 0 for part in shard.index], np.int64)[:, None]
        sizes = np.array(shard.data.shape, np.int64)[:, None]
        local = places - starts
        here = ((local >= 0) & (local < sizes)).all(axis=0) & ~known
        if here.any():
            needed.append((here, local[:, here], shard.data))
            known |= here
        if known.all():
            break
    return needed


def _is_on_host(data: jax.Array) -> bool:
    on_cpu = next(iter(data.devices())).platform == "cpu"
    return on_cpu or (data.sharding.memory_kind or "").endswith("host")


def _combine_processes(
    found: dict[str, np.ndarray], known: Mapping[str, np.ndarray], paths: list[str]
) -> None:
    """Takes each element from a process that has it; the bytes travel, so no dtype is cast."""
    from jax.experimental import multihost_utils

    octets = [found[path].view(np.uint8).reshape(len(found[path]), -1) for path in paths]
    marks = [
        np.repeat(known[path], each.shape[1]) for path, each in zip(paths, octets, strict=True)
    ]
    every = np.concatenate([each.reshape(-1) for each in octets])
    meet()
    all_octets, all_known = multihost_utils.process_allgather((every, np.concatenate(marks)))
    owner = np.argmax(all_known, axis=0)
    chosen = np.ascontiguousarray(np.asarray(all_octets)[owner, np.arange(len(every))])
    start = 0
    for path, each in zip(paths, octets, strict=True):
        own = chosen[start : start + each.size]
        found[path] = np.ascontiguousarray(own).view(found[path].dtype).reshape(-1)
        start += each.size


def _is_counter(value: Any) -> bool:
    """Whether a leaf is one whole number, as the count of a stream of random keys, or of batches.

    Only an nnx.State says that it is no parameter; the plain dict of the same model does not.
    """
    return value.shape == () and jnp.issubdtype(value.dtype, jnp.integer)


def _is_numeric(value: Any) -> bool:
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        return False
    return not jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def _choose_leaves(frozen: Mapping[str, Any]) -> list[str]:
    """Every matrix; where there is none every vector, though these are often all zeros or ones."""
    usable = [path for path in sorted(frozen) if holds_values(frozen[path])]
    usable = [path for path in usable if is_sampled_kind(frozen[path])]
    return [path for path in usable if len(frozen[path].shape) > 1] or usable


def _count(leaf: Any) -> int:
    if not leaf.shape:
        return 1
    return VALUES_OF_INTEGERS if _is_integer(jnp.dtype(leaf.dtype)) else VALUES


def _write_shape(shape: Any) -> str:
    return f"[{','.join(map(str, map(int, shape)))}]"


def _parse(text: Any) -> _Record:
    found = _RECORD.fullmatch(text)
    if found is None:
        raise ValueError("no record of a leaf")
    shape = tuple(int(size) for size in found[2].split(",") if size)
    return _Record(found[1], shape, found[3].split())


def _write_number(value: np.generic) -> str:
    """The fewest digits that give the number back in its dtype."""
    if _is_integer(value.dtype):
        return str(int(value))
    return f"{float(value):.{_count_digits(value.dtype)}g}"


@functools.lru_cache
def _count_digits(dtype: Any) -> int:
    return math.ceil(1 + (jnp.finfo(dtype).nmant + 1) * math.log10(2))


def _read_number(text: str, dtype: Any) -> int | float:
    kind = jnp.dtype(dtype)
    if _is_integer(kind):
        return int(text)
    if not jnp.issubdtype(kind, jnp.floating):
        raise ValueError("no real number")
    with np.errstate(over="ignore"):
        return float(np.asarray(float(text)).astype(kind))


def _is_integer(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.integer))


def _compare(record: _Record, found: np.ndarray) -> str | None:
    expected = [_read_number(text, record.dtype) for text in record.values]
    if len(expected) != len(found):
        return f"{len(found)} numbers expected, {len(expected)} recorded"
    dtypes = (jnp.dtype(record.dtype), found.dtype)
    same = [_is_same(x, y, dtypes) for x, y in zip(found, expected, strict=True)]
    if all(same):
        return None
    first = same.index(False)
    return (
        f"{same.count(False)} of {len(same)} that were compared, such as {expected[first]:.9g} "
        f"expected ({record.dtype}), {float(found[first]):.9g} found ({found.dtype})"
    )


def _is_same(value: Any, expected: int | float, dtypes: tuple[Any, Any]) -> bool:
    """Whether two numbers may be one number in two dtypes; in one dtype they must be equal."""
    if _is_integer(dtypes[1]):
        return int(value) == expected
    found = float(value)
    if np.isnan(found) or np.isnan(expected):
        return bool(np.isnan(found) and np.isnan(expected))
    if np.isinf(found) or np.isinf(expected) or dtypes[0] == dtypes[1]:
        return found == expected
    relative = max(float(jnp.finfo(dtype).eps) for dtype in dtypes)
    absolute = max(float(jnp.finfo(dtype).smallest_subnormal) for dtype in dtypes)
    return abs(found - expected) <= relative * max(abs(found), abs(expected)) + absolute
