"""`lntune-jax compare`: how far adapters moved from their base, and how they relate."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ..errors import ConfigError
from .base import check_model_directory
from .compare_figure import draw_comparison
from .compare_reading import Norms, name_adapters, read_norms
from .console import make_console, say, short_path
from .movement import BIASES, readable_names
from .options import CompareSettings

_FORMATS = (".png", ".svg", ".pdf")
_MOST_COLUMNS = 12  # of adapters in a table; the figure has all


def run(settings: CompareSettings) -> None:
    """Read the adapters' norms and the base's, print the tables and draw the figure."""
    console = make_console()
    _check(settings)
    with _writing(settings.figure.expanduser()):
        settings.figure.expanduser().parent.mkdir(parents=True, exist_ok=True)
    from .. import bank as banks

    names = name_adapters(settings.adapters)
    found = read_norms(settings.model, settings.adapters, settings.name_map)
    params = {path: value for each in found for path, value in each.base.items()}
    modules = list(dict.fromkeys(path.rpartition(".")[0] for path in params))
    adapters = {name: each.tuned for name, each in zip(names, found, strict=True)}
    bank = banks.make_bank(params, adapters, norms=modules, on_host=True)
    related = banks.compare_adapters(bank, names, paths=_in_order(params))
    scales, biases, rows = _split_movement(related, [each.tuned for each in found])
    _print_summary(console, names, found, scales, biases, rows)
    if len(names) <= _MOST_COLUMNS:
        _print_movement(console, names, scales, biases, rows)
    if 1 < len(names) <= _MOST_COLUMNS:
        _print_matrix(console, "Cosine between their changes", names, related.cosine)
        _print_matrix(console, "Distance between them", names, related.distance)
    if len(names) > _MOST_COLUMNS:
        say(console, f"the tables of {len(names)} adapters would be wide: see the figure")
    target = settings.figure.expanduser()
    with _writing(target):
        draw_comparison(target, names, rows, scales, biases, related.cosine, related.distance)
    say(console, f"figure: {short_path(target)}")


def _check(settings: CompareSettings) -> None:
    if not settings.adapters:
        raise ConfigError("give at least one adapter directory: lntune-jax compare A B --model M")
    if settings.figure.suffix.lower() not in _FORMATS:
        raise ConfigError(
            f"--figure {settings.figure} must end in one of {', '.join(_FORMATS)}: the suffix says "
            "what is written"
        )
    check_model_directory(settings.model)


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"--figure {target} cannot be written: {reason}") from error


def _in_order(params: dict[str, Any]) -> list[str]:
    from .movement import natural_order

    return sorted(params, key=natural_order)


def _split_movement(
    related: Any, tuned: Sequence[Mapping[str, Any]]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The RMS changes as (adapters, norms) of scales and of biases, NaN where none is tuned."""
    places = [path.rpartition(".") for path in related.paths]
    modules = list(dict.fromkeys(module for module, _, _ in places))
    shape = (len(related.names), len(modules))
    scales, biases = np.full(shape, np.nan), np.full(shape, np.nan)
    for column, (module, _, leaf) in enumerate(places):
        part = biases if leaf in BIASES else scales
        own = [related.paths[column] in each for each in tuned]
        part[own, modules.index(module)] = related.moved[own, column]
    return scales, biases, readable_names(modules)


def _print_summary(
    console: Console,
    names: Sequence[str],
    found: Sequence[Norms],
    scales: np.ndarray,
    biases: np.ndarray,
    rows: Sequence[str],
) -> None:
    table = Table(title="How far each adapter moved (RMS change)", title_justify="left")
    table.add_column("adapter")
    for head in ("kind", "scales", "biases"):
        table.add_column(head, justify="right")
    table.add_column("furthest norm")
    table.add_column("other values", justify="right")
    for index, name in enumerate(names):
        furthest = np.fmax(scales[index], biases[index])
        cells = [_number(_rms(part[index])) for part in (scales, biases)]
        place = rows[int(np.nanargmax(furthest))] if np.nanmax(furthest) > 0 else "none moved"
        table.add_row(name, found[index].kind, *cells, place, f"{found[index].others:,}")
    _print(console, table)


def _print_movement(
    console: Console,
    names: Sequence[str],
    scales: np.ndarray,
    biases: np.ndarray,
    rows: Sequence[str],
) -> None:
    with_biases = bool(np.isfinite(biases).any())
    kind = "scale / bias" if with_biases else "scale"
    table = Table(title=f"How far each norm moved ({kind}, RMS change)", title_justify="left")
    table.add_column("norm")
    for name in names:
        table.add_column(name, justify="right")
    for column, row in enumerate(rows):
        cells = [_number(value) for value in scales[:, column]]
        if with_biases:
            pairs = zip(cells, biases[:, column], strict=True)
            cells = [f"{scale} / {_number(bias)}" for scale, bias in pairs]
        table.add_row(row, *cells)
    _print(console, table)


def _print_matrix(console: Console, title: str, names: Sequence[str], values: np.ndarray) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for name, row in zip(names, values, strict=True):
        table.add_row(name, *map(_number, row))
    _print(console, table)


def _print(console: Console, table: Table) -> None:
    """As wide as it must be: cut columns would lose digits."""
    for column in table.columns:
        column.no_wrap = True
    wide = console.options.update(max_width=10_000)
    console.width = max(console.width, console.measure(table, options=wide).maximum)
    console.print(table)


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3g}" if abs(value) < 0.01 else f"{value:.3f}"


def _rms(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(known**2))) if known.size else float("nan")
