"""How the leaves of a tree are called in Hugging Face's model, and how their arrays differ.

A `NameMap` is a list of rules, one a kind of leaf: the leaf's path in the tree, the parameter's
name in transformers, and what must be done to the array on the way (split at its layer axis,
transposed, shifted by a constant). The tables are in `_name_tables`; what a map of the caller's
own may say is checked in `_name_map_checks`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import ConfigError, TreeError
from ..messages import Argument, nearest
from .rules import LAYER
from .rules import NameMap as NameMap
from .rules import NameRule as NameRule
from .rules import Place as Place


def get_name_map(name_map: str | NameMap | None) -> NameMap | None:
    """The map itself, or the table of that name.

    Raises:
        ConfigError: there is no table of that name.

    Example:
        >>> get_name_map("tunix_llama3").model_types
        ('llama',)
    """
    if name_map is None or isinstance(name_map, NameMap):
        return name_map
    from .tables import NAME_MAPS  # late: few programs need the tables

    if not isinstance(name_map, str) or name_map not in NAME_MAPS:
        hint = nearest(name_map, NAME_MAPS) if isinstance(name_map, str) else ""
        raise ConfigError(
            Argument("name_map", name_map),
            f" is not known{hint}: pass a NameMap, or one of {sorted(NAME_MAPS)}",
        )
    return NAME_MAPS[name_map]


def find_places(leaf: str, shape: tuple[int, ...], name_map: NameMap) -> tuple[Place, ...] | None:
    """All parameters of transformers that a leaf holds, in the order of its layer axis.

    Args:
        leaf: the leaf path, with or without a leading `params` collection.
        shape: the leaf's shape.
        name_map: the rules.

    Returns:
        One place, or one for each layer of a stacked leaf; None where no rule is for this leaf.

    Raises:
        ConfigError: two rules are for this leaf.
        TreeError: the leaf's shape is not what its rule says.

    Example:
        >>> rule = NameRule(leaf="blocks.ln.scale", parameter="h.{layer}.ln_1.weight", layer_axis=1)
        >>> name_map = NameMap(source="my_model.py", model_types=("gpt2",), rules=(rule,))
        >>> [place.parameter for place in find_places("blocks.ln.scale", (768, 2), name_map)]
        ['h.0.ln_1.weight', 'h.1.ln_1.weight']
    """
    path = leaf.removeprefix("params.")
    found = [(rule, match) for rule in name_map.rules if (match := _match(rule.leaf, path))]
    if not found:
        return None
    if len(found) > 1:
        patterns = [rule.leaf for rule, _ in found]
        raise ConfigError(
            Argument("name_map"), f": the leaf {leaf!r} is matched by several rules, {patterns}"
        )
    rule, match = found[0]
    axes = _get_axes(leaf, shape, rule)
    if rule.layer_axis is not None:
        count = _count_layers(leaf, shape, rule)
        numbers = [rule.first + rule.stride * index for index in range(count)]
    elif match.groups():
        here = int(match[1])
        if rule.layers is not None and here >= rule.layers:
            raise TreeError(
                f"the leaf {leaf!r} is number {here}, but ",
                Argument("name_map"),
                f" has {rule.layers} of them: it is for a model of another size",
            )
        numbers = [rule.first + rule.stride * here]
    else:
        numbers = [0]
    return tuple(
        Place(
            leaf=leaf,
            parameter=rule.parameter.replace(LAYER, str(number)),
            layer_axis=rule.layer_axis,
            index=index,
            axes=axes,
            offset=rule.offset,
        )
        for index, number in enumerate(numbers)
    )


def take(place: Place, value: Any) -> Any:
    """A parameter's array, as transformers holds it, out of the leaf's array.

    Without an offset the values are the leaf's, bit for bit (of a numpy array, a view). With one,
    they are shifted in float64 (jax arrays: in float32, or their own dtype if that is wider) and
    rounded to the leaf's dtype. A shift back need not give the first values bit for bit: what is
    stored near 1 has a coarser grid than what is stored near 0, so 1 + w keeps w only to half the
    spacing of the dtype's numbers near 1 + w. For w between -0.5 and 1 that is at most 6.0e-8 in
    float32, 3.9e-3 in bfloat16 and 4.9e-4 in float16.

    Example:
        >>> import numpy as np
        >>> place = Place("ln.scale", "h.1.ln_1.weight", layer_axis=1, index=1, offset=1.0)
        >>> take(place, np.array([[1.0, 1.5], [2.0, 2.5]]))
        array([0.5, 1.5])
    """
    value = value[_get_index(place)]
    if place.axes is not None:
        value = value.transpose(place.axes)
    return _shift(value, -place.offset)


def assemble(
    places: Sequence[Place],
    arrays: Mapping[str, Any],
    shape: tuple[int, ...],
    dtype: Any = None,
) -> np.ndarray:
    """The leaf's array from the arrays of the parameters it holds: the inverse of `take`.

    Args:
        places: what `find_places` gave for the leaf.
        arrays: parameter name to array; others than the leaf's are ignored.
        shape: the leaf's shape.
        dtype: of the result; None for the one to which the arrays' dtypes promote.

    Raises:
        TreeError: a parameter is missing, or its shape does not fit the leaf.

    Example:
        >>> import numpy as np
        >>> place = Place("head.kernel", "lm_head.weight", axes=(1, 0))
        >>> assemble([place], {"lm_head.weight": np.ones((5, 2))}, (2, 5)).shape
        (2, 5)
    """
    missing = sorted(place.parameter for place in places if place.parameter not in arrays)
    if missing:
        raise TreeError(f"the leaf {places[0].leaf!r} needs the parameters {missing}")
    parts = {place: np.asarray(arrays[place.parameter]) for place in places}
    for place, part in parts.items():
        expected = _get_part_shape(place, shape)
        if part.shape != expected:
            raise TreeError(
                f"the parameter {place.parameter!r} has shape {part.shape}; the leaf "
                f"{place.leaf!r} of shape {tuple(shape)} holds {expected} of it"
            )
    dtype = np.result_type(*(p.dtype for p in parts.values())) if dtype is None else dtype
    result = np.empty(shape, dtype)
    for place, part in parts.items():
        if place.axes is not None:
            part = part.transpose(np.argsort(place.axes))
        result[_get_index(place)] = _shift(part, place.offset, result.dtype)
    return result


def _match(pattern: str, path: str) -> re.Match[str] | None:
    literal = map(re.escape, pattern.removeprefix("params.").split(LAYER))
    return re.fullmatch("(0|[1-9][0-9]*)".join(literal), path)


def _get_axes(leaf: str, shape: tuple[int, ...], rule: NameRule) -> tuple[int, ...] | None:
    if rule.layer_axis is not None and rule.layer_axis >= len(shape):
        raise TreeError(
            f"the leaf {leaf!r} has shape {tuple(shape)}, which has no axis {rule.layer_axis} "
            "where ",
            Argument("name_map"),
            " says that the layers are stacked",
        )
    rank = len(shape) - (rule.layer_axis is not None)
    if rule.axes is not None and len(rule.axes) != rank:
        raise TreeError(
            f"the leaf {leaf!r} has shape {tuple(shape)}, but ",
            Argument("name_map"),
            f" gives it {len(rule.axes)} axes (apart from the layers')",
        )
    if not rule.transpose:
        return rule.axes
    if rank != 2:
        raise TreeError(
            f"the leaf {leaf!r} has shape {tuple(shape)}, but ",
            Argument("name_map"),
            " says that it holds matrices",
        )
    return (1, 0)


def _count_layers(leaf: str, shape: tuple[int, ...], rule: NameRule) -> int:
    count = shape[rule.layer_axis or 0]
    if count == 0:
        raise TreeError(f"the leaf {leaf!r} has shape {tuple(shape)}: it holds no layer")
    if rule.layers is not None and count != rule.layers:
        raise TreeError(
            f"the leaf {leaf!r} has shape {tuple(shape)}, but ",
            Argument("name_map"),
            f" says that axis {rule.layer_axis} has {rule.layers} layers: it is for a model of "
            "another size, or for another layer axis",
        )
    return count


def _get_part_shape(place: Place, shape: tuple[int, ...]) -> tuple[int, ...]:
    part = [size for axis, size in enumerate(shape) if axis != place.layer_axis]
    return tuple(part[axis] for axis in place.axes or range(len(part)))


def _get_index(place: Place) -> tuple[Any, ...]:
    """What picks one layer out of a leaf; everything where the leaf is no stack."""
    if place.layer_axis is None:
        return (...,)
    return (slice(None),) * place.layer_axis + (place.index,)


def _shift(value: Any, offset: float, dtype: Any = None) -> Any:
    """Adds `offset`, in a wide enough dtype, and casts to `dtype` or back to the array's own."""
    dtype = value.dtype if dtype is None else dtype
    if not offset:
        return value if value.dtype == dtype else value.astype(dtype)
    if not isinstance(value, jax.Array):
        wide = np.float64
    else:
        wide = jnp.float32 if value.dtype.itemsize < 4 else value.dtype.type
    return (value.astype(wide) + wide(offset)).astype(dtype)
