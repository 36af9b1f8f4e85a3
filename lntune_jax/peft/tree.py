"""The parameters of transformers that a tree holds, and where in the tree each of them lives.

Everything that reads or writes PEFT files sees a tree through this index.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import TreeError
from ..messages import Argument, Part, list_names
from ..names.maps import NameMap, Place, find_places
from ..paths import Leaf, Path, get_shape, join
from ..selection.norms import find_norms


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
    unclear: dict[str, tuple[Part, ...]]

    def explain(self, nameless: Sequence[str]) -> tuple[Part, ...]:
        """Why these leaves have no name in transformers."""
        unclear = [self.unclear[name] for name in nameless if name in self.unclear]
        if not unclear:
            return (list_names(nameless),)
        return unclear[0], f"; and {len(nameless) - 1:,} more" if len(nameless) > 1 else ""


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
    unclear: dict[str, tuple[Part, ...]] = {}
    kinds: set[str] = set()
    for leaf in leaves:
        shape = get_shape(leaf.value)
        if not leaf.is_parameter or shape is None:
            continue
        name, is_norm = join(leaf.path), not modules.isdisjoint((leaf.path, leaf.path[:-1]))
        try:
            found = _find(name, tuple(shape), name_map, is_norm)
        except TreeError as error:
            unclear[name] = error.args
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
                "transformers: rename one, or pass a ",
                Argument("name_map"),
                " that tells them apart",
            )
    return parameters


def _find(
    name: str, shape: tuple[int, ...], name_map: NameMap | None, is_norm: bool
) -> tuple[Place, ...] | None:
    if name_map is not None:
        return find_places(name, shape, name_map)
    return (find_place(name, shape, is_norm=is_norm),)


# Leaf names that PyTorch calls otherwise: of norms, and of what else a saved module may hold. There
# a `scale` or `gamma` is a parameter's own name (LayerScale).
NORM_LEAVES = {"scale": "weight", "gamma": "weight", "w": "weight", "kernel": "weight"} | {
    "beta": "bias",
    "offset": "bias",
    "b": "bias",
}
SAVED_LEAVES = {"kernel": "weight", "embedding": "weight", "embeddings": "weight"}

# A kernel's axes in PyTorch's order: dense, and convolutions of one, two and three dimensions.
_KERNEL_AXES = {2: (1, 0), 3: (2, 1, 0), 4: (3, 2, 0, 1), 5: (4, 3, 0, 1, 2)}
_TRANSPOSED = re.compile(r"transpose|deconv|upsampl")  # convolutions of another layout
# Modules of transformers' Conv1D class (GPT-2's), whose weight has the input axis first.
_INPUT_FIRST = frozenset({"c_attn", "c_fc", "c_proj", "q_attn"})


def find_place(leaf: str, shape: tuple[int, ...], *, is_norm: bool) -> Place:
    """The parameter that a leaf is, in a tree with the module paths of transformers.

    Args:
        leaf: the leaf path.
        shape: its shape.
        is_norm: whether its module is a norm.

    Raises:
        TreeError: the layout that PyTorch has for this leaf cannot be known.

    Example:
        >>> place = find_place("classifier.kernel", (32, 2), is_norm=False)
        >>> place.parameter, place.axes
        ('classifier.weight', (1, 0))
    """
    module, _, name = leaf.rpartition(".")
    prefix = f"{module}." if module else ""
    if is_norm:
        return Place(leaf, prefix + NORM_LEAVES.get(name, name))
    axes = None
    if name == "kernel":
        axes = _KERNEL_AXES.get(len(shape))
        if axes is None or _is_unclear(module, shape):
            raise TreeError(*_explain(leaf, shape))
    if name == "w" and len(shape) > 1:  # some libraries write the input axis first, some last
        raise TreeError(*_explain(leaf, shape))
    return Place(leaf, prefix + SAVED_LEAVES.get(name, name), axes=axes)


def _is_unclear(module: str, shape: tuple[int, ...]) -> bool:
    if module.rpartition(".")[2] in _INPUT_FIRST or _TRANSPOSED.search(module.lower()):
        return True
    # The shape tells a convolution from a transposed one, unless it has as many inputs as outputs.
    return len(shape) > 3 and shape[-1] == shape[-2]


def _explain(leaf: str, shape: tuple[int, ...]) -> tuple[Part, ...]:
    return (
        f"the layout of {leaf!r} (shape {shape}) in PyTorch cannot be known from its name: pass a ",
        Argument("name_map"),
        " with a rule for it, whose axes say how it is transposed",
    )
