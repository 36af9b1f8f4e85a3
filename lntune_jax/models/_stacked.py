"""Which leaves of a scanned model hold all layers, and what each layer's part is called.

A part is called what it is called in the model whose layers are not scanned, and that is what
checkpoints and adapters go by.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import jax

from lntune_jax.names.rules import NameMap, NameRule

from ._scan import LOWER, UPPER

if TYPE_CHECKING:
    from ._build import Leaves
    from ._layout import Layout

    Path = tuple[str, ...]
    Stacks = dict[Path, tuple[Path, ...]]


def find_stacks(leaves: Leaves, layout: Layout, count: int) -> Stacks:
    """Give, for each stacked leaf, the paths of its layers' parts.

    Args:
        leaves: anything with a shape, by path.
        layout: the architecture's.
        count: the layers of the model, be they in one stack or in two.
    """
    stacks = {}
    for path, leaf in leaves.items():
        place = path.index(layout.layers) + 1 if layout.layers in path[:2] else 0
        if place:
            held = leaf.shape[0]
            first = count - held if path[place] == UPPER else 0
            rest = path[place + 1 :] if path[place] in (LOWER, UPPER) else path[place:]
            stacks[path] = tuple(
                (*path[:place], str(index), *rest) for index in range(first, first + held)
            )
    return stacks


def count_frozen(leaves: Leaves, layout: Layout) -> int:
    """Give how many layers are in the lower one of two stacks, 0 where there is one or none."""
    lower = (
        leaf.shape[0] for path, leaf in leaves.items() if (layout.layers, LOWER) in pairwise(path)
    )
    return next(lower, 0)


def unstack(leaves: Leaves, stacks: Stacks) -> Leaves:
    """Give the leaves with those of layers one by one."""
    return {
        part: jax.ShapeDtypeStruct(leaf.shape[1:] if path in stacks else leaf.shape, leaf.dtype)
        for path, leaf in leaves.items()
        for part in stacks.get(path, (path,))
    }


def write_name_map(leaves: Leaves, stacks: Stacks, layout: Layout, model_type: str) -> NameMap:
    """Give the map from every leaf of a scanned model to transformers' parameters."""
    return NameMap(
        source="lntune_jax.models, scan_layers=True",
        model_types=(model_type,),
        rules=tuple(_rule(path, stacks.get(path), layout) for path in leaves),
    )


def _rule(path: Path, parts: tuple[Path, ...] | None, layout: Layout) -> NameRule:
    leaf, transposed = ".".join(path), layout.transposed(path)
    if parts is None:
        return NameRule(leaf=leaf, parameter=layout.parameter(path), transpose=transposed)
    place = path.index(layout.layers) + 1
    numbered = (*parts[0][:place], "{layer}", *parts[0][place + 1 :])
    return NameRule(
        leaf=leaf,
        parameter=layout.parameter(numbered),
        layer_axis=0,
        first=int(parts[0][place]),
        layers=len(parts),
        transpose=transposed,
    )
