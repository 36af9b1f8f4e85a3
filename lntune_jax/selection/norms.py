"""Which modules of a tree are LayerNorm or RMSNorm modules, by type or by names and shapes.

The type decides where the module object is in the tree; names and shapes where it is not.

A module is known by its module path: all segments of its leaves' paths but the last.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from ..errors import TreeError
from ..paths import Leaf, Path, flatten, get_shape
from . import norm_names as names

NORM, GROUP_NORM, UNCERTAIN, OTHER = "norm", "group norm", "uncertain", "other"

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


def find_norms(
    tree: Any,
    leaves: Sequence[Leaf] | None = None,
    typed: Mapping[Path, str] | None = None,
) -> dict[Path, str]:
    """Finds the norm modules of a tree: module path to `NORM` or `GROUP_NORM`.

    Works on arrays, numpy arrays and `jax.ShapeDtypeStruct`; looks at no values.

    Args:
        tree: any pytree of parameters.
        leaves: what `flatten(tree)` gave, if it is at hand.
        typed: what `find_by_type(tree)` gave, if it is at hand.

    Example:
        >>> import jax.numpy as jnp
        >>> find_norms({"ln_1": {"scale": jnp.ones(4)}, "fc": {"kernel": jnp.ones((4, 4))}})
        {('ln_1',): 'norm'}
    """
    leaves = flatten(tree)[0] if leaves is None else leaves
    typed = find_by_type(tree) if typed is None else typed
    with_statistics = {
        leaf.path[1:-1] for leaf in leaves if leaf.path[:1] == ("batch_stats",)
    }  # a Linen variables dict keeps them in a collection of their own
    modules = _group_by_module(leaves)
    parents = {module[:end] for module in modules for end in range(len(module))}
    norms: dict[Path, str] = {}
    for module, members in modules.items():
        if module in typed:
            kind = typed[module]
        elif module in with_statistics:
            kind = OTHER
        else:
            kind = _judge(module, members, has_children=module in parents)
        if kind != OTHER:
            norms[module] = kind
    return norms


def get_kind(kinds: Mapping[Path, str], path: Path) -> str | None:
    """The kind of norm that a leaf belongs to: known of the leaf itself, or of its module."""
    return kinds.get(path) or kinds.get(path[:-1])


def find_by_type(tree: Any) -> dict[Path, str]:
    """The norm modules that are objects in the tree itself (Equinox, NNX), whatever their names."""
    kinds = {}
    for module_name, table in _TYPES.items():
        library = sys.modules.get(module_name)  # not loaded: no such object can be in the tree
        for kind, types in table.items() if library else ():
            kinds |= {getattr(library, n): kind for n in types if hasattr(library, n)}
    if not kinds:
        return {}
    all_types = tuple(kinds)
    found: dict[Path, str] = {}
    for leaf in flatten(tree, is_leaf=lambda x: isinstance(x, all_types))[0]:
        for parent in type(leaf.value).__mro__:
            if parent in kinds:
                found[leaf.path] = kinds[parent]
                break
    return found


def find_statistics(leaves: Sequence[Leaf]) -> frozenset[Path]:
    """The leaves that are running statistics, which no gradient reaches."""
    found: set[Path] = set()
    named = names.STATISTICS | names.AMBIGUOUS_STATISTICS
    candidates = (leaf for leaf in leaves if leaf.path and leaf.path[-1] in named)
    for module, members in _group_by_module(candidates).items():
        statistics = names.STATISTICS & members.keys()
        if members.keys() >= names.AMBIGUOUS_STATISTICS:
            statistics |= names.AMBIGUOUS_STATISTICS
        found.update((*module, name) for name in statistics)
    return frozenset(found)


def is_trainable_array(leaf: Leaf) -> bool:
    """Whether a leaf is a floating-point parameter with an axis, as the leaves of norms are."""
    shape = get_shape(leaf.value)
    return leaf.is_parameter and bool(shape) and jnp.issubdtype(leaf.value.dtype, jnp.floating)


def split_modules(norms: Iterable[str] | None) -> frozenset[Path] | None:
    """Paths of norm modules or of their leaves, given by the caller as strings or as segments.

    Raises:
        TreeError: an entry is neither.
    """
    if norms is None:
        return None
    paths: set[Path] = set()
    try:
        for entry in [norms] if isinstance(norms, str) else norms:
            parts = re.split(r"[./]", entry) if isinstance(entry, str) else entry
            path = tuple(part for part in parts if part)  # "" is the root itself
            paths.add(path[1:] if path[:1] == ("params",) else path)
    except TypeError:
        raise TreeError(
            f"norms must be module paths such as 'encoder.ln_1', not {norms!r}: pass what "
            "norm_modules(model) or discover_norms(apply_fn, params, ...) returns"
        ) from None
    return frozenset(paths)


def judge_name(name: str) -> str:
    """What the name of a module says: `NORM`, `GROUP_NORM` or `OTHER`.

    Example:
        >>> [judge_name(name) for name in ("pre_layrnorm", "BatchNorm_0", "GroupNorm_0")]
        ['norm', 'other', 'group norm']
    """
    words = _split_words(name)
    place = _find_norm_word(words)
    if place is None:
        return OTHER
    beside = {*words[max(place - 1, 0) : place], *words[place + 1 : place + 2]}
    if words[place] in names.OTHER_NORM_WORDS or names.OTHER_WORDS & set(words[:place][-1:]):
        return OTHER
    if words[place] in names.GROUP_NORM_WORDS or names.GROUP_WORDS & beside:
        return GROUP_NORM
    return NORM


def _judge(module: Path, members: Mapping[str, Leaf], *, has_children: bool) -> str:
    """What the names and shapes of a module's own leaves say about it."""
    if not members.keys() <= names.SCALE_NAMES | names.BIAS_NAMES:
        return OTHER
    if not all(is_trainable_array(leaf) for leaf in members.values()):
        return OTHER
    shapes = {get_shape(leaf.value) for leaf in members.values()}
    if len(shapes) != 1 or not members.keys() & names.SCALE_NAMES:
        return OTHER
    axes = len(shapes.pop() or ())
    if axes > 1 and members.keys() & names.ONE_AXIS_NAMES:
        return OTHER
    name = module[-1] if module else ""
    if name.isdigit() and len(module) > 1 and judge_name(module[-2]) != OTHER:
        name = module[-2]  # an entry of a list that is called `norms`
    words = _split_words(name)
    says_nothing = all(word.isdigit() or word in names.EMPTY_WORDS for word in words)
    if says_nothing and name[-1:].isdigit():
        return NORM if axes == 1 and len(members) == 2 and not has_children else OTHER
    place = _find_norm_word(words)
    if axes > 1 and len(members) == 1 and place is not None:
        after = words[place + 1 :]
        if not all(word.isdigit() or word in names.AFTER_STACKED for word in after):
            return OTHER
    return judge_name(name)


def _group_by_module(leaves: Iterable[Leaf]) -> dict[Path, dict[str, Leaf]]:
    """The array leaves that each module holds itself, by their names."""
    modules: dict[Path, dict[str, Leaf]] = {}
    for leaf in leaves:
        if leaf.path and get_shape(leaf.value) is not None:
            modules.setdefault(leaf.path[:-1], {})[leaf.path[-1]] = leaf
    return modules


def _find_norm_word(words: Sequence[str]) -> int | None:
    """The place of the last word that means a norm."""
    for place in reversed(range(len(words))):
        word = words[place]
        if word in names.NORMALIZATION_WORDS:
            if names.BEFORE_NORMALIZATION.intersection(words[:place]):
                return place
        elif word in names.NORM_WORDS or word.endswith(("norm", "norms")):
            return place
    return None


@functools.lru_cache(maxsize=1024)  # the names of a large tree's modules are few, and repeated
def _split_words(name: str) -> tuple[str, ...]:
    return tuple(w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name))
