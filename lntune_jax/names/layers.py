"""A tree whose layers are stacked, seen layer by layer under the names that a name map gives.

Adapters keep one leaf a layer, so that a model has the same adapters whether its layers are
stacked or not. A part of a leaf is called what its module is called in transformers, with the
leaf's own last segment: `layers.input_layernorm.scale` holds `layers.3.input_layernorm.scale`.
Its values are the leaf's along the layer axis; what a rule says of other axes and of an offset
concerns files of other libraries only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ..errors import SelectionError, TreeError
from ..messages import Advice, Argument
from ..paths import Leaf, get_shape, join
from .maps import NameMap, find_places


class Part(NamedTuple):
    """A leaf, or one layer of it: its name, the axis of layers (or None), and the place there."""

    name: str
    axis: int | None
    number: int


class LayerSlice:
    """One layer of an array, which stays where it is.

    Example:
        >>> import numpy as np
        >>> LayerSlice(np.ones((2, 8)), axis=0, index=1).shape
        (8,)
    """

    __slots__ = ("axis", "dtype", "index", "shape", "whole")

    def __init__(self, whole: Any, axis: int, index: int) -> None:
        self.whole, self.axis, self.index = whole, axis, index
        self.shape = tuple(whole.shape[:axis]) + tuple(whole.shape[axis + 1 :])
        self.dtype = whole.dtype


def list_parts(leaves: Sequence[Leaf], name_map: NameMap) -> dict[str, tuple[Part, ...]]:
    """For each leaf path what the leaf holds; itself, where the map has no rule for it.

    Raises:
        TreeError: two parts have one name, or a leaf has not the shape that its rule says.
    """
    parts: dict[str, tuple[Part, ...]] = {}
    taken: dict[str, str] = {}
    for leaf in leaves:
        name, shape = join(leaf.path), get_shape(leaf.value)
        known = leaf.is_parameter and shape is not None
        places = find_places(name, tuple(shape or ()), name_map) if known else None
        parts[name] = (Part(name, None, 0),)
        if places:
            modules = (place.parameter.rpartition(".")[0] for place in places)
            parts[name] = tuple(
                Part(f"{module}.{leaf.path[-1]}".lstrip("."), place.layer_axis, place.index)
                for module, place in zip(modules, places, strict=True)
            )
        for part in parts[name]:
            other = taken.setdefault(part.name, name)
            if other != name:
                raise TreeError(
                    f"the leaves {other!r} and {name!r} are both {part.name!r} by ",
                    Argument("name_map"),
                    ", which is for another tree",
                )
    return parts


def view(leaf: Leaf, parts: Sequence[Part]) -> list[Leaf]:
    """A leaf as its parts: arrays stay whole, behind a `LayerSlice`."""
    return [
        Leaf(tuple(part.name.split(".")), _slice(leaf.value, part), leaf.is_parameter)
        for part in parts
    ]


def fold_roles(
    leaves: Sequence[Leaf], parts: Mapping[str, Sequence[Part]], roles: Mapping[str, str]
) -> list[str]:
    """The role of each leaf, from the roles of its parts by name.

    Raises:
        SelectionError: they are not all the same.
    """
    folded = []
    for leaf in leaves:
        name = join(leaf.path)
        own = {roles[part.name]: part.name for part in reversed(parts[name])}
        if len(own) > 1:
            (role, one), (other, two) = list(own.items())[:2]
            raise SelectionError(
                f"{one!r} is {role} and {two!r} {other}, but {name!r} holds both, and a stack of "
                "layers trains whole or not at all: name all layers or none",
                Advice((", or load the model with ", Argument("scan_layers", False))),
            )
        folded.append(next(iter(own)))
    return folded


def split_arrays(
    arrays: Mapping[str, np.ndarray], parts: Mapping[str, Sequence[Part]]
) -> dict[str, np.ndarray]:
    """Arrays by leaf path as arrays by the names of their parts."""
    return {
        part.name: np.ascontiguousarray(
            array if part.axis is None else np.take(array, part.number, axis=part.axis)
        )
        for name, array in arrays.items()
        for part in parts[name]
    }


def join_arrays(
    arrays: Mapping[str, np.ndarray], parts: Mapping[str, Sequence[Part]]
) -> dict[str, np.ndarray]:
    """The inverse, for the leaves whose parts are all there."""
    return {
        name: arrays[own[0].name]
        if own[0].axis is None
        else np.stack([arrays[part.name] for part in own], axis=own[0].axis)
        for name, own in parts.items()
        if all(part.name in arrays for part in own)
    }


def _slice(value: Any, part: Part) -> Any:
    if part.axis is None:
        return value
    piece = LayerSlice(value, part.axis, part.number)
    if isinstance(value, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(piece.shape, piece.dtype)
    return piece
