"""The parameters of transformers that a tree holds, and where in the tree each of them lives.

Everything that reads or writes PEFT files sees a tree through this index.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import TreeError
from ..messages import list_names
from ..names.maps import NameMap, Place, find_places
from ..paths import Leaf, Path, get_shape, join
from ..selection.norms import find_norms
from .torch_names import find_place


class Index(NamedTuple):
    """Both directions between leaves and parameters.

    Attributes:
        places: for each leaf path, all parameters that the leaf holds.
        parameters: for each parameter's name, its place.
        norms: the names of those parameters whose module is a norm, of whatever kind.
        unclear: leaves whose layout in PyTorch cannot be known, and why.
    """

    places: dict[str, tuple[Place, ...]]
    parameters: dict[str, Place]
    norms: frozenset[str]
    unclear: dict[str, str]


def index_tree(
    params: Any,
    leaves: Sequence[Leaf],
    name_map: NameMap | None,
    norms: Iterable[Path] | None = None,
) -> Index:
    """Names every parameter of a tree as transformers does.

    Args:
        params: the tree.
        leaves: what `flatten(params)` gave.
        name_map: for trees whose names differ from those of transformers; a leaf for which it has
            no rule belongs to no parameter. None where the module paths are transformers' own.
        norms: the paths of the norms' modules or leaves, where they are known; else they are found.

    Raises:
        TreeError: two leaves are one parameter.

    Example:
        >>> import jax.numpy as jnp
        >>> from lntune_jax.paths import flatten
        >>> tree = {"ln_1": {"scale": jnp.ones(4)}}
        >>> list(index_tree(tree, flatten(tree)[0], None).parameters)
        ['ln_1.weight']
    """
    modules = frozenset(find_norms(params, leaves) if norms is None else norms)
    places: dict[str, tuple[Place, ...]] = {}
    unclear: dict[str, str] = {}
    kinds: set[str] = set()
    for leaf in leaves:
        shape = get_shape(leaf.value)
        if not leaf.is_parameter or shape is None:
            continue
        name, is_norm = join(leaf.path), not modules.isdisjoint((leaf.path, leaf.path[:-1]))
        try:
            found = _find(name, tuple(shape), name_map, is_norm)
        except TreeError as error:
            unclear[name] = str(error)
            continue
        if found:
            places[name] = found
            kinds.update(place.parameter for place in found if is_norm)
    parameters = invert(places)
    return Index(places, parameters, frozenset(kinds), unclear)


def invert(places: Mapping[str, Sequence[Place]]) -> dict[str, Place]:
    """The place of each parameter, by its name.

    Raises:
        TreeError: two leaves are one parameter.
    """
    parameters: dict[str, Place] = {}
    for place in (place for found in places.values() for place in found):
        other = parameters.setdefault(place.parameter, place)
        if other is not place:
            raise TreeError(
                f"{list_names([other.leaf, place.leaf])} are both {place.parameter!r} in "
                "transformers: rename one, or pass a name_map that tells them apart"
            )
    return parameters


def _find(
    name: str, shape: tuple[int, ...], name_map: NameMap | None, is_norm: bool
) -> tuple[Place, ...] | None:
    if name_map is not None:
        return find_places(name, shape, name_map)
    return (find_place(name, shape, is_norm=is_norm),)
