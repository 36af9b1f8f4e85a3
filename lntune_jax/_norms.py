"""Which modules of a tree are LayerNorm or RMSNorm modules, by type or by names and shapes.

The type decides where the module object is in the tree; names and shapes where it is not.

A module is known by its module path: all segments of its leaves' paths but the last.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from ._norm_names import (
    AMBIGUOUS_STATISTICS,
    BEFORE_NORMALIZATION,
    BIAS_NAMES,
    EMPTY_WORDS,
    GROUP_WORDS,
    NORM_WORDS,
    NORMALIZATION_WORDS,
    ONE_AXIS_NAMES,
    OTHER_NOUNS,
    OTHER_WORDS,
    SCALE_NAMES,
    STATISTICS,
)
from ._paths import Leaf, Path, flatten, get_shape

NORM, GROUP_NORM, OTHER = "norm", "group norm", "other"

_TYPES = {
    "flax.nnx": {
        NORM: ("LayerNorm", "RMSNorm"),
        GROUP_NORM: ("GroupNorm", "InstanceNorm"),
        OTHER: ("BatchNorm", "WeightNorm", "SpectralNorm"),
    },
    "equinox.nn": {
        NORM: ("LayerNorm", "RMSNorm"),
        GROUP_NORM: ("GroupNorm",),
        OTHER: ("BatchNorm", "WeightNorm", "SpectralNorm"),
    },
}


def find_norms(tree: Any, leaves: Sequence[Leaf] | None = None) -> dict[Path, str]:
    """Finds the norm modules of a tree: module path to `NORM` or `GROUP_NORM`.

    Works on arrays, numpy arrays and `jax.ShapeDtypeStruct`; looks at no values.

    Args:
        tree: any pytree of parameters.
        leaves: what `flatten(tree)` gave, if it is at hand.

    Example:
        >>> import jax.numpy as jnp
        >>> find_norms({"ln_1": {"scale": jnp.ones(4)}, "fc": {"kernel": jnp.ones((4, 4))}})
        {('ln_1',): 'norm'}
    """
    leaves = flatten(tree)[0] if leaves is None else leaves
    typed = find_by_type(tree)
    with_statistics = {
        leaf.path[1:-1] for leaf in leaves if leaf.path[:1] == ("batch_stats",)
    }  # a Linen variables dict keeps them in a collection of their own
    norms: dict[Path, str] = {}
    for module, members in _group_by_module(leaves).items():
        if module in typed:
            kind = typed[module]
        elif module in with_statistics:
            kind = OTHER
        else:
            kind = _judge(module, members)
        if kind != OTHER:
            norms[module] = kind
    return norms


def is_norm_leaf(leaf: Leaf) -> bool:
    """Whether a leaf of a norm module is one that trains: a floating-point parameter."""
    shape = get_shape(leaf.value)
    return leaf.is_parameter and bool(shape) and jnp.issubdtype(leaf.value.dtype, jnp.floating)


def judge_name(name: str) -> str:
    """What the name of a module says: `NORM`, `GROUP_NORM` or `OTHER`.

    Example:
        >>> [judge_name(name) for name in ("pre_layrnorm", "norm_proj", "GroupNorm_0")]
        ['norm', 'other', 'group norm']
    """
    words = _split_words(name)
    places = [i for i, word in enumerate(words) if _is_norm_word(words, i, word)]
    if not places or OTHER_WORDS.intersection(words[: places[-1] + 1]):
        return OTHER
    if OTHER_NOUNS.intersection(words[places[-1] + 1 :]):
        return OTHER
    return GROUP_NORM if GROUP_WORDS.intersection(words) else NORM


def _judge(module: Path, members: Mapping[str, Leaf]) -> str:
    """What the names and shapes of a module's own leaves say about it."""
    if not members.keys() <= SCALE_NAMES | BIAS_NAMES:
        return OTHER
    if not all(is_norm_leaf(leaf) for leaf in members.values()):
        return OTHER
    shapes = {get_shape(leaf.value) for leaf in members.values()}
    if len(shapes) != 1 or not members.keys() & SCALE_NAMES:
        return OTHER
    axes = len(shapes.pop() or ())
    if axes > 1 and members.keys() & ONE_AXIS_NAMES:
        return OTHER
    name = module[-1] if module else ""
    if name.isdigit() and len(module) > 1 and judge_name(module[-2]) != OTHER:
        return judge_name(module[-2])  # an entry of a list that is called `norms`
    says_nothing = all(word.isdigit() or word in EMPTY_WORDS for word in _split_words(name))
    if says_nothing and re.search(r"\d", name):
        return NORM if axes == 1 and len(members) == 2 else OTHER
    return judge_name(name)


def _group_by_module(leaves: Iterable[Leaf]) -> dict[Path, dict[str, Leaf]]:
    """The array leaves that each module holds itself, by their names."""
    modules: dict[Path, dict[str, Leaf]] = {}
    for leaf in leaves:
        if leaf.path and get_shape(leaf.value) is not None:
            modules.setdefault(leaf.path[:-1], {})[leaf.path[-1]] = leaf
    return modules


def find_by_type(tree: Any) -> dict[Path, str]:
    """The norm modules that are objects in the tree itself (Equinox, NNX), whatever their names."""
    kinds = {}
    for module_name, table in _TYPES.items():
        library = sys.modules.get(module_name)  # not loaded: no such object can be in the tree
        for kind, names in table.items() if library else ():
            kinds |= {getattr(library, n): kind for n in names if hasattr(library, n)}
    if not kinds:
        return {}
    types = tuple(kinds)
    found: dict[Path, str] = {}
    for leaf in flatten(tree, is_leaf=lambda x: isinstance(x, types))[0]:
        for parent in type(leaf.value).__mro__:
            if parent in kinds:
                found[leaf.path] = kinds[parent]
                break
    return found


def _is_norm_word(words: Sequence[str], place: int, word: str) -> bool:
    if word in NORMALIZATION_WORDS:
        return bool((BEFORE_NORMALIZATION | GROUP_WORDS).intersection(words[:place]))
    return word in NORM_WORDS or word.endswith(("norm", "norms"))


def _split_words(name: str) -> list[str]:
    return [w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


def find_statistics(leaves: Sequence[Leaf]) -> frozenset[Path]:
    """The leaves that are running statistics, which no gradient reaches."""
    found: set[Path] = set()
    for module, members in _group_by_module(leaves).items():
        names = STATISTICS & members.keys()
        if members.keys() >= AMBIGUOUS_STATISTICS:
            names |= AMBIGUOUS_STATISTICS
        found.update((*module, name) for name in names)
    return frozenset(found)


def split_modules(norms: Iterable[str] | None) -> frozenset[Path] | None:
    """Module paths given by the caller as strings, as tuples of segments."""
    if norms is None:
        return None
    return frozenset(tuple(re.split(r"[./]", n)) if isinstance(n, str) else tuple(n) for n in norms)
