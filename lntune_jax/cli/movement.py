"""How far training moved each norm: the RMS change of its scale and of its bias."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..tasks.base import Task

BIASES = ("bias", "beta", "offset")
# Wrappers that every architecture has around its layers; they tell norms apart only rarely.
_WRAPPERS = {"model", "transformer", "bert", "roberta", "encoder", "layers", "layer", "h", "self"}


class Movement(NamedTuple):
    """The change of one norm; `None` for a leaf that it lacks or that did not train."""

    module: str
    scale: float | None
    bias: float | None


def measure_movement(start: Mapping[str, Any], end: Mapping[str, Any]) -> list[Movement]:
    """The root mean square change of each trained norm, in model order.

    Args:
        start: Leaves of norms before training, by leaf path.
        end: The same leaves after it.

    Returns:
        One `Movement` a norm.
    """
    changes: dict[str, dict[str, float]] = {}
    for path in sorted(start, key=natural_order):
        module, _, leaf = path.rpartition(".")
        role = "bias" if leaf in BIASES else "scale"
        change = np.asarray(end[path], np.float64) - np.asarray(start[path], np.float64)
        changes.setdefault(module, {})[role] = float(np.sqrt(np.mean(change**2)))
    return [Movement(name, each.get("scale"), each.get("bias")) for name, each in changes.items()]


def movements_of(task: Task, start: Mapping[str, Any], best: Mapping[str, Any]) -> list[Movement]:
    """How far each norm moved in a run, from the leaves that it began with and those it kept."""
    from ..names.layers import split_arrays
    from ..selection.roles import NORM_ROLE
    from ..selection.select import select_views

    views = select_views(task.params, task.config, None, task.name_map, warn=False)
    if views.parts is not None:
        start, best = split_arrays(start, views.parts), split_arrays(best, views.parts)
    norms = views.named.list_paths(NORM_ROLE)
    return measure_movement(
        {path: start[path] for path in norms}, {path: best[path] for path in norms}
    )


class Layers(NamedTuple):
    """The norms of a model by where they stand.

    Attributes:
        kinds: For each kind of norm that several layers have, its module in each layer.
        others: The modules outside layers, by a short name.
    """

    kinds: dict[str, dict[int, str]]
    others: dict[str, str]


def group_by_layer(modules: Sequence[str]) -> Layers:
    """Part norms into kinds that repeat from layer to layer, and the rest.

    Example:
        >>> each = "model.layers.{}.input_layernorm", "model.layers.{}.self_attn.q_norm"
        >>> modules = [name.format(layer) for layer in (0, 1) for name in each]
        >>> found = group_by_layer([*modules, "model.norm"])
        >>> found.others, list(found.kinds)
        ({'norm': 'model.norm'}, ['input_layernorm', 'q_norm'])
        >>> found.kinds["q_norm"]
        {0: 'model.layers.0.self_attn.q_norm', 1: 'model.layers.1.self_attn.q_norm'}
    """
    found: dict[str, dict[int, str]] = {}
    for module in modules:
        parts = module.split(".")
        place = next((place for place, part in enumerate(parts) if part.isdigit()), None)
        if place is not None:
            kind = ".".join(parts[:place] + parts[place + 1 :])
            found.setdefault(kind, {})[int(parts[place])] = module
    # What only one layer has makes no line.
    found = {kind: layers for kind, layers in found.items() if len(layers) > 1}
    kinds = dict(zip(_name_kinds(list(found)), found.values(), strict=True))
    repeated = {module for layers in kinds.values() for module in layers.values()}
    names = zip(readable_names(list(modules)), modules, strict=True)
    return Layers(kinds, {name: module for name, module in names if module not in repeated})


def _name_kinds(kinds: list[str]) -> list[str]:
    """The last segment where that tells them apart, else what they do not have in common."""
    paths = [kind.split(".") for kind in kinds]
    last = [path[-1] or "norm" for path in paths]
    if len(set(last)) == len(last):
        return last
    for end in (0, -1):
        while all(len(path) > 1 for path in paths) and len({path[end] for path in paths}) == 1:
            for path in paths:
                del path[end]
    return [".".join(path) for path in paths]


def readable_names(modules: list[str]) -> list[str]:
    """Short names for norms, for the rows of a table and the axis of a figure.

    Example:
        >>> readable_names(["bert.embeddings.LayerNorm", "bert.encoder.layer.0.output.LayerNorm"])
        ['embeddings', 'layer 0 output']
    """
    paths = [module.split(".") for module in modules]
    everywhere = set.intersection(*map(set, paths)) if len(paths) > 1 else set()
    for dropped in (everywhere | _WRAPPERS, everywhere):
        names = [_join(part for part in path if part not in dropped) for path in paths]
        if all(names) and len(set(names)) == len(names):
            return names
    return modules


def _join(parts: Iterable[str]) -> str:
    return " ".join(f"layer {part}" if part.isdigit() else part for part in parts)


def natural_order(path: str) -> list[tuple[int, int, str]]:
    """Layer 10 comes after layer 9."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in path.split(".")]
