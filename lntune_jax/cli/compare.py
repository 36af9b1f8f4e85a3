"""`lntune-jax compare`: how far adapters moved from their base, and how they relate."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from ..errors import AdapterError, ConfigError
from ..tasks.loading import check_model_directory
from .console import make_console, say, short_path
from .figures import draw_comparison
from .movement import BIASES, readable_names
from .options import CompareSettings

_FORMATS = (".png", ".svg", ".pdf")
_MOST_COLUMNS = 12  # of adapters in a table; the figure has all


class Norms(NamedTuple):
    """What of an adapter is compared.

    Attributes:
        kind: "lntune_jax" or "PEFT".
        tuned: the norms' values by name.
        base: the base's values under the same names.
        others: how many values it has besides, of a head and other saved modules.
    """

    kind: str
    tuned: dict[str, np.ndarray]
    base: dict[str, np.ndarray]
    others: int


def name_adapters(paths: Sequence[Path]) -> list[str]:
    """Short names: the directory's, or that of the run that an `adapter` lies in.

    Raises:
        ConfigError: one adapter is given twice.

    Example:
        >>> name_adapters([Path("runs/french/adapter"), Path("german")])
        ['french', 'german']
        >>> name_adapters([Path("one/adapter"), Path("two/one")])
        ['one/adapter', 'two/one']
    """
    places = [path.expanduser().resolve() for path in paths]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise ConfigError(f"the adapter {paths[number]} is given twice: leave one out")
    short = [place.parent.name if place.name == "adapter" else place.name for place in places]
    names = [
        name if short.count(name) == 1 and name else str(path)
        for name, path in zip(short, paths, strict=True)
    ]
    # "base" is the name of the base in a bank.
    return [f"./{name}" if name == "base" else name for name in names]


def read_norms(model: str, paths: Sequence[Path], name_map: str | None) -> list[Norms]:
    """Read each adapter's norms, with all the checks of `merge`: it must fit this base.

    Raises:
        LNTuningError: an adapter or the base cannot be read, they do not fit, or an adapter tunes
            no norm that the base has.
    """
    from ..models.loading import find_directory

    place = find_directory(model, None)

    @cache
    def load(quantize: str | None) -> Any:
        from .. import models

        return models.from_pretrained(place, task="CAUSAL_LM", quantize=quantize).params

    is_gguf = place.suffix == ".gguf"
    every = []
    for path in paths:
        found = _from_gguf(load, path) if is_gguf else _read(place, path, name_map)
        if not found.tuned:
            raise AdapterError(f"{path} tunes no norm of {model}: there is nothing to compare")
        every.append(found)
    return every


def _read(directory: Path, path: Path, name_map: str | None) -> Norms:
    from ..models.merging import map_tensor, read_parts

    parts = read_parts(directory, path, name_map)
    keys = {name: parts.names.keys[name] for name in parts.tuned.norms if name in parts.names.keys}
    tuned = {key: parts.tuned.arrays[name] for name, key in keys.items()}
    base = {key: np.asarray(map_tensor(parts.checkpoint.tensors[key])) for key in tuned}
    total = sum(array.size for array in parts.tuned.arrays.values())
    return Norms(parts.found.kind, tuned, base, total - _count(tuned))


def _from_gguf(load: Callable[[str | None], Any], path: Path) -> Norms:
    """A GGUF file has names of its own: the model is loaded, and its tree names the leaves."""
    from ..bank.sources import read_source
    from ..models.merging import find_adapter, read_quantization
    from ..paths import flatten, join
    from ..selection.roles import NORM_ROLE
    from ..selection.select import select_views
    from ..storage.leaves import to_numpy

    found = find_adapter(path)
    params = load(read_quantization(found))
    adapter: Any = read_source(found.directory, params)
    norms = select_views(params, adapter.config, warn=False).named.list_paths(NORM_ROLE)
    values = {join(leaf.path): leaf.value for leaf in flatten(params)[0]}
    tuned = {name: adapter.trainable[name] for name in norms}
    base = {name: to_numpy(name, values[name]) for name in tuned}
    return Norms(found.kind, tuned, base, _count(adapter.trainable) - _count(tuned))


def _count(arrays: dict[str, np.ndarray]) -> int:
    return sum(array.size for array in arrays.values())


def run(settings: CompareSettings) -> None:
    """Read the norms of adapters and base, print the tables, and draw the figure if it is asked."""
    console = make_console()
    _check(settings)
    target = settings.figure and settings.figure.expanduser()
    if target is not None:
        with _writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
    from .. import bank as banks

    names = name_adapters(settings.adapters)
    found = read_norms(settings.model, settings.adapters, settings.name_map)
    params = {path: value for each in found for path, value in each.base.items()}
    modules = list(dict.fromkeys(path.rpartition(".")[0] for path in params))
    adapters = {name: each.tuned for name, each in zip(names, found, strict=True)}
    bank = banks.make_bank(params, adapters, norms=modules, on_host=True)
    related = banks.compare_adapters(bank, names, paths=_in_order(params))
    scales, biases, modules = _split_movement(related, [each.tuned for each in found])
    rows = readable_names(modules)
    _print_summary(console, names, found, scales, biases, rows)
    if len(names) <= _MOST_COLUMNS:
        _print_movement(console, names, scales, biases, rows)
    if 1 < len(names) <= _MOST_COLUMNS:
        _print_matrix(console, "Cosine between their changes", names, related.cosine)
        _print_matrix(console, "Distance between them", names, related.distance)
    if len(names) > _MOST_COLUMNS:
        where = "--figure FILE.png draws them" if target is None else "see the figure"
        say(console, f"the tables of {len(names)} adapters would be wide: {where}")
    if target is not None:
        related_by = related.cosine, related.distance
        with _writing(target):
            draw_comparison(target, names, modules, scales, biases, *related_by)
        say(console, f"figure: {short_path(target)}")


def _check(settings: CompareSettings) -> None:
    if not settings.adapters:
        raise ConfigError("give at least one adapter directory: lntune-jax compare A B --model M")
    if settings.figure is not None and settings.figure.suffix.lower() not in _FORMATS:
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
    return scales, biases, modules


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
