"""The norms of an adapter and of its base, under the names that the base's files have for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import AdapterError, ConfigError


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
