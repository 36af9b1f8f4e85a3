"""A results file's figures as tables of Markdown, and how a figure and its name are written.

Figures are `{row: {column: value}}`, such tables by name, lists of rows, and settings beside them:
single values, and what lies under one of the names in `SETTINGS`. The unit of a figure is read from
its key: `_seconds`, `_bytes`, `_mb`.
"""

import re
from collections.abc import Mapping, Sequence
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
SETTINGS = ("shape", "settings", "versions", "libraries", "model", "options")
# A limit is written beside the figure whose key it carries: `time_ratio` and `time_ratio_limit`.
LIMITS = {"_limit": "limit", "_bar": "bar", "_goal": "goal", "_bound": "bound"}
# Several tables become one if they have no more rows than this each, or so few columns.
_FEW_ROWS, _FEW_COLUMNS = 4, 3


def write_tables(
    figures: Any, columns: Mapping[str, str | None] | None = None, left_out: str | None = None
) -> list[str]:
    """The lines of all tables of a file, the settings below each.

    Args:
        figures: as above.
        columns: other keys in place of some, of columns, tables and settings (name and unit are
            read from them); `None` leaves one out, "" takes a table's name away.
        left_out: an expression; rows whose name it finds are left out.
    """
    if left_out is not None:
        figures = _leave_out(figures, re.compile(left_out))
    return _write(figures, "", dict(columns or {}))


def write_table(
    rows: Sequence[tuple[list[str], Mapping[str, Any]]],
    heads: list[str],
    columns: Mapping[str, str | None],
) -> list[str]:
    """One table: each row is the names at its left, and its figures by column."""
    keys = list(dict.fromkeys(key for _, row in rows for key in row))
    keys = [key for key in keys if not _is_limit(key, keys)]
    shown = {key: columns.get(key, key) for key in keys if columns.get(key, key) is not None}
    lines = _row([*heads, *map(name_column, shown.values())])
    lines += _row(["---"] * (len(heads) + len(shown)))
    for names, row in rows:
        lines += _row([*names, *(_cell(row, key, own) for key, own in shown.items())])
    return lines


def write_settings(settings: Mapping[str, Any], columns: Mapping[str, str | None]) -> str:
    """Settings in one line; those of a group without the group's name."""
    parts = []
    for key, value in settings.items():
        own = columns.get(key, key)
        if value is None or value == "":
            continue
        if key in SETTINGS and isinstance(value, dict):
            parts.append(write_settings(value, columns))
        elif own is not None:
            parts.append(f"{name_column(own)} {write_figure(value, own)}")
    return ", ".join(part for part in parts if part)


def _write(node: Mapping[str, Any], title: str, columns: dict[str, str | None]) -> list[str]:
    rows, tables, settings = _sort(node)
    lines: list[str] = []
    if rows:
        named = [([name], row) for name, row in rows.items()]
        lines += [*_title(title), "", *write_table(named, [""], columns)]
    if tables and (merged := _merge(tables)):
        lines += [*_title(title), "", *write_table(merged, ["", ""], columns)]
        tables = {}
    for name, table in tables.items():
        own = columns.get(name, name)
        if own is None:
            continue
        inner = ", ".join(part for part in (title, name_column(own)) if part)
        if isinstance(table, list):
            flat = [([], _flatten(row)) for row in table]
            lines += [*_title(inner), "", *write_table(flat, [], columns)]
        else:
            lines += _write(table, inner, columns)
    line = write_settings(settings, columns)
    return [*lines, "", line[:1].upper() + line[1:] + "."] if line else lines


def _leave_out(node: Any, pattern: re.Pattern[str]) -> Any:
    if not isinstance(node, dict):
        return node
    return {k: _leave_out(v, pattern) for k, v in node.items() if not pattern.search(k)}


def _sort(node: Mapping[str, Any]) -> tuple[dict, dict, dict]:
    """Rows, tables and settings of one level."""
    rows, tables, settings = {}, {}, {}
    for key, value in node.items():
        if not isinstance(value, dict | list) or not value:
            settings[key] = value
        elif isinstance(value, list):
            (tables if isinstance(value[0], dict) else settings)[key] = value
        elif any(isinstance(each, dict) and name not in SETTINGS for name, each in value.items()):
            tables[key] = value
        elif key in SETTINGS:
            settings[key] = value
        else:
            rows[key] = value
    return rows, tables, settings


def _merge(tables: Mapping[str, Any]) -> list[tuple[list[str], Mapping[str, Any]]] | None:
    """Several small tables as one, with a column for their names; None where that does not fit."""
    found: list[tuple[list[str], Mapping[str, Any]]] = []
    for name, table in tables.items():
        if isinstance(table, list):
            return None
        widest = max(len(row) if isinstance(row, dict) else 0 for row in table.values())
        if len(table) > _FEW_ROWS and widest > _FEW_COLUMNS:
            return None
        rows, inner, settings = _sort(table)
        if inner or settings:
            return None
        found += [([name, row], figures) for row, figures in rows.items()]
    shared = set.intersection(*(set(figures) for _, figures in found))
    return found if len(tables) > 1 and shared else None


def _cell(row: Mapping[str, Any], key: str, own: str) -> str:
    text = write_figure(row[key], own) if key in row else NONE
    for end, word in LIMITS.items():
        limit = row.get(key + end)
        if limit is not None:
            text = f"{text} ({word} {write_figure(limit, own)})"
    return text


def _is_limit(key: str, keys: list[str]) -> bool:
    """Whether a column is the limit of another, beside whose figures it is written."""
    return any(key.endswith(end) and key.removesuffix(end) in keys for end in LIMITS)


def _flatten(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a list: what lies in a cell's dict goes into the cell, in words."""
    return {k: write_figure(v) if isinstance(v, dict) else v for k, v in row.items()}


def _title(title: str) -> list[str]:
    return ["", f"**{title}**"] if title else []


def _row(cells: list[str]) -> list[str]:
    return ["| " + " | ".join(cells) + " |"]


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
