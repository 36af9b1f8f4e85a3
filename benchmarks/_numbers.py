"""How a figure and its name are written on a page: the unit is read from the key."""

import re
from typing import Any

NONE = "-"
# By the end of the key: what is written beside a column's name.
UNITS = {"_mb": "MB", "_gb": "GB", "_kb": "kB", "_gflops": "GFLOP", "_percent": "%", "_ms": "ms"}
_BYTES = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1))
_EXACT = ("ratio", "_to_", "= 1)", "found", "bar")  # three decimals: beside a bar they tell
_FLOPS = (("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6), ("FLOP", 1))
_SECONDS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
_WORDS = {
    "gflops": "GFLOP",
    "mfu": "MFU",
    "gb": "GB",
    "mb": "MB",
    "hlo": "HLO",
    "peft": "PEFT",
    "flops": "FLOPs",
}


def name_column(key: str) -> str:
    """A key as the head of a column.

    Example:
        >>> name_column("temporary_mb"), name_column("time_ratio"), name_column("gflops")
        ('temporary, MB', 'time ratio', 'GFLOP')
    """
    for end, unit in UNITS.items():
        if key.endswith(end):
            return f"{name_column(key[: -len(end)])}, {unit}"
    for end in ("_bytes", "_seconds"):  # the unit is beside each figure
        key = key.removesuffix(end)
    return " ".join(_WORDS.get(word, word) for word in key.split("_")) or key


def write_figure(value: Any, key: str = "") -> str:
    """A value as a reader wants it, in about three digits.

    Example:
        >>> [write_figure(1271.4), write_figure(0.51408, "time_ratio"), write_figure(9224)]
        ['1,271', '0.514', '9,224']
        >>> [write_figure(0.0123, "seconds"), write_figure(1_060_000, "state_bytes")]
        ['12.3 ms', '1.06 MB']
    """
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {write_figure(each, name)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(write_figure(each) for each in value)
    if not isinstance(value, int | float):
        return str(value).replace("|", "\\|").replace("\n", " ")
    if re.search(r"(^|_)bytes$", key):
        return _scale(value, _BYTES, 1e4)
    if re.search(r"(^|_)seconds$", key):
        return _scale(value, _SECONDS, 0)
    if re.search(r"(^|_)flops$", key):
        return _scale(value, _FLOPS, 1e5)
    if isinstance(value, int):
        return f"{value:,}"
    if any(part in key for part in _EXACT) and 0.1 <= abs(value) < 10:
        return f"{value:.3f}"
    return _digits(value)


def _scale(value: float, units: tuple[tuple[str, float], ...], least: float) -> str:
    """In the first unit that the value reaches; below `least` it is the last."""
    for unit, size in units[:-1]:
        if abs(value) >= max(size, least):
            return f"{_digits(value / size)} {unit}"
    unit, size = units[-1]
    whole = value if size == 1 else value / size
    return f"{whole:,} {unit}" if isinstance(whole, int) else f"{_digits(whole)} {unit}"


def _digits(value: float) -> str:
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 1:
        return f"{value:.1f}" if size >= 10 else f"{value:.2f}"
    if size >= 1e-3:
        return f"{value:.3g}"
    return f"{value:.1e}" if value else "0"
