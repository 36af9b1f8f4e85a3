"""A config's rotary positions, in transformers 5's spelling and in 4's, checked key by key.

Version 5 keeps everything in `rope_parameters`, for Gemma 3 one set for each type of layer;
version 4 has `rope_theta` and `rope_scaling`. A key that the scaling would not read is refused,
because whoever wrote it meant something by it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..nn.rope import Rope
from .base import is_integer, is_number, one_of, read, require

_ORIGINAL = "original_max_position_embeddings"

# Kind: (keys it needs, keys it may have).
KINDS = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), (_ORIGINAL,)),
    "longrope": (("short_factor", "long_factor"), ("factor", _ORIGINAL, "attention_factor")),
    "yarn": (
        (),
        (
            "factor",
            _ORIGINAL,
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ),
    ),
}

_EVERY_KIND = ("rope_type", "type", "rope_theta", "partial_rotary_factor")

LAYER_TYPES = ("full_attention", "sliding_attention")


def read_rope(
    config: Any,
    width: int,
    *,
    theta: float = 10_000.0,
    layer_type: str | None = None,
    partial: bool = False,
) -> Rope:
    """Read the rotary positions of a config.

    Args:
        config: a transformers config, of version 4 or 5.
        width: entries of a head.
        theta: the base, where the config names none.
        layer_type: the type of layer, where the config has a set for each.
        partial: whether the family's code lets a part of each head turn, if the config says so.

    Raises:
        ModelError: the scaling is unknown, or one of its keys cannot be honoured.
    """
    field, given = _parameters(config, layer_type)
    keys = {key: value for key, value in given.items() if value is not None}
    kind = keys.get("rope_type", keys.get("type", "default"))
    require(f"{field}.rope_type", kind, isinstance(kind, str) and kind in KINDS, one_of(KINDS))
    _check_keys(field, kind, keys)
    width = _turning(config, field, keys, width, partial=partial)
    base = keys.get("rope_theta", _theta(config, layer_type, theta))
    require(f"{field}.rope_theta", base, is_number(base) and base > 1, "a number above 1")
    numbers = _Numbers(field, keys)
    if kind == "default":
        return Rope(kind, float(base), width)
    longest = _positions(config, "max_position_embeddings")
    if kind == "linear":
        return Rope(kind, float(base), width, factor=numbers.positive("factor"))
    if kind == "dynamic":
        require("head_dim", width, width > 2, "more than 2, for dynamic rotary positions")
        return Rope(kind, float(base), width, longest, numbers.positive("factor"))
    original = _original(config, numbers, longest, nested=layer_type is not None)
    if kind == "longrope":
        return _longrope(numbers, float(base), width, original, longest)
    if kind == "llama3":
        low, high = numbers.positive("low_freq_factor"), numbers.positive("high_freq_factor")
        require(f"{field}.high_freq_factor", high, high > low, "more than low_freq_factor")
        return Rope(
            kind,
            float(base),
            width,
            original,
            numbers.positive("factor"),
            low_factor=low,
            high_factor=high,
        )
    return _yarn(numbers, float(base), width, original, longest, nested=layer_type is not None)


def _longrope(numbers: _Numbers, base: float, width: int, original: int, longest: int) -> Rope:
    factor = numbers.positive("factor", longest / original)
    require(f"{numbers.field}.{_ORIGINAL}", original, original > 1, "more than 1, for 'longrope'")
    usual = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return Rope(
        "longrope",
        base,
        width,
        original,
        amplitude=numbers.positive("attention_factor", usual),
        short=numbers.one_for_each("short_factor", width // 2),
        long=numbers.one_for_each("long_factor", width // 2),
    )


def _yarn(
    numbers: _Numbers, base: float, width: int, original: int, longest: int, *, nested: bool
) -> Rope:
    factor = numbers.positive("factor", longest / original)
    truncate = numbers.keys.get("truncate", True)
    # transformers reads `truncate` beside the sets for the types of layer, not in them.
    accepted = truncate is True if nested else isinstance(truncate, bool)
    require(f"{numbers.field}.truncate", truncate, accepted, "True" if nested else "True or False")
    return Rope(
        "yarn",
        base,
        width,
        original,
        factor,
        amplitude=numbers.positive("attention_factor", _yarn_amplitude(numbers, factor)),
        fast=numbers.positive("beta_fast", 32),
        slow=numbers.positive("beta_slow", 1),
        truncate=truncate,
    )


def _yarn_amplitude(numbers: _Numbers, factor: float) -> float:
    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if numbers.keys.get("mscale") and numbers.keys.get("mscale_all_dim"):
        return scale(numbers.positive("mscale")) / scale(numbers.positive("mscale_all_dim"))
    return scale(1.0)


class _Numbers:
    """The keys of one set of parameters, as checked numbers."""

    def __init__(self, field: str, keys: dict[str, Any]):
        self.field = field
        self.keys = keys

    def positive(self, key: str, default: float | None = None) -> float:
        value = self.keys.get(key, default)
        accepted = is_number(value) and value > 0 and math.isfinite(value)
        require(f"{self.field}.{key}", value, accepted, "a number above 0")
        return float(value)  # pyright: ignore[reportArgumentType]

    def one_for_each(self, key: str, count: int) -> tuple[float, ...]:
        value = self.keys.get(key)
        accepted = (
            isinstance(value, list | tuple)
            and len(value) == count
            and all(is_number(entry) and 0 < entry < math.inf for entry in value)
        )
        require(f"{self.field}.{key}", value, accepted, f"a list of {count} numbers above 0")
        return tuple(float(np.float32(entry)) for entry in value)  # pyright: ignore


def _parameters(config: Any, layer_type: str | None) -> tuple[str, dict[str, Any]]:
    new, old = read(config, "rope_parameters"), read(config, "rope_scaling")
    field, given = ("rope_parameters", new) if new else ("rope_scaling", old or {})
    require(field, given, isinstance(given, dict), "an object of keys and values")
    nested = any(name in given for name in LAYER_TYPES)
    if layer_type is None:
        require(field, given, not nested, "one set for all layers")
        return field, given
    if nested:
        own = given.get(layer_type) or {}
        require(f"{field}.{layer_type}", own, isinstance(own, dict), "an object of keys and values")
        return f"{field}.{layer_type}", own
    # Version 4 stretches the layers that see everything, and leaves the local ones.
    return field, given if layer_type == "full_attention" else {}


def _check_keys(field: str, kind: str, keys: dict[str, Any]) -> None:
    needed, optional = KINDS[kind]
    for key in needed:
        require(f"{field}.{key}", keys.get(key), key in keys, f"a value, for {kind!r}")
    for key, value in keys.items():
        known = key in (*_EVERY_KIND, *needed, *optional)
        require(f"{field}.{key}", value, known, f"no such key, for {kind!r}")


def _turning(config: Any, field: str, keys: dict[str, Any], width: int, *, partial: bool) -> int:
    """Give how many entries of a head turn."""
    places = {
        f"{field}.partial_rotary_factor": keys.get("partial_rotary_factor"),
        "partial_rotary_factor": read(config, "partial_rotary_factor"),
    }
    for name, value in places.items():
        if value is None:
            continue
        if not partial:
            require(name, value, value == 1, "1 (every entry of a head turns)")
            continue
        require(name, value, is_number(value) and 0 < value <= 1, "a number above 0, 1 at most")
        turning = int(width * value)
        found = turning >= 2 and turning % 2 == 0
        require(name, value, found, f"an even number of a head's {width} entries, at least 2")
        return turning
    return width


def _theta(config: Any, layer_type: str | None, default: float) -> Any:
    field = "rope_local_base_freq" if layer_type == "sliding_attention" else "rope_theta"
    value = read(config, field)
    return default if value is None else value


def _original(config: Any, numbers: _Numbers, longest: int, *, nested: bool) -> int:
    # transformers lets the config's own field win, except over sets for types of layer.
    if not nested and read(config, _ORIGINAL) is not None:
        return _positions(config, _ORIGINAL)
    value = numbers.keys.get(_ORIGINAL, longest)
    accepted = is_integer(value) and value >= 1
    require(f"{numbers.field}.{_ORIGINAL}", value, accepted, "an integer of at least 1")
    return value


def _positions(config: Any, field: str) -> int:
    value = read(config, field)
    require(field, value, is_integer(value) and value >= 1, "an integer of at least 1")
    return int(value)
