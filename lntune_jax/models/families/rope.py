"""A config's rotary positions, in transformers 5's spelling and in 4's, checked key by key.

Version 5 keeps everything in `rope_parameters`, for Gemma 3 one set for each type of layer;
version 4 has `rope_theta` and `rope_scaling`. A key that the scaling would not read is refused,
because whoever wrote it meant something by it.
"""

from __future__ import annotations

import math
from typing import Any

from ..nn.rope import Rope
from .base import is_integer, is_number, one_of, read, require

_ORIGINAL = "original_max_position_embeddings"

# Kind: (keys it needs, keys it may have).
KINDS = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), (_ORIGINAL,)),
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
    config: Any, width: int, *, theta: float = 10_000.0, layer_type: str | None = None
) -> Rope:
    """Read the rotary positions of a config.

    Args:
        config: a transformers config, of version 4 or 5.
        width: entries of a head.
        theta: the base, where the config names none.
        layer_type: the type of layer, where the config has a set for each.

    Raises:
        ModelError: the scaling is unknown, or one of its keys cannot be honoured.
    """
    field, given = _parameters(config, layer_type)
    keys = {key: value for key, value in given.items() if value is not None}
    kind = keys.get("rope_type", keys.get("type", "default"))
    require(f"{field}.rope_type", kind, kind in KINDS, one_of(KINDS))
    _check_keys(field, kind, keys)
    _check_whole_head(config, field, keys)
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
        require(f"{field}.{key}", keys.get(key), key in keys, f"a number, for {kind!r}")
    for key, value in keys.items():
        known = key in (*_EVERY_KIND, *needed, *optional)
        require(f"{field}.{key}", value, known, f"no such key, for {kind!r}")


def _check_whole_head(config: Any, field: str, keys: dict[str, Any]) -> None:
    for name, value in (
        (f"{field}.partial_rotary_factor", keys.get("partial_rotary_factor")),
        ("partial_rotary_factor", read(config, "partial_rotary_factor")),
    ):
        require(name, value, value is None or value == 1, "1 (every entry of a head turns)")


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
