"""Which modules of a tree are LayerNorm or RMSNorm modules, by type or by names and shapes.

The type decides where the module object is in the tree; names and shapes where it is not.

A module is known by its module path: all segments of its leaves' paths but the last.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from ..errors import TreeError
from ..paths import Leaf, Path, flatten, get_shape, holds_collections, join, split_name
from . import norm_names as names

NORM, GROUP_NORM, UNCERTAIN, OTHER = "norm", "group norm", "uncertain", "other"


class Judgement(NamedTuple):
    """What a module is taken for, and in a few words what speaks against it; "" if nothing does."""

    kind: str
    doubt: str = ""


_OTHER = Judgement(OTHER)


class Surroundings(NamedTuple):
    """What lies in each module, at any depth."""

    convolutions: dict[Path, int]  # how many kernels of convolutions
    matrices: dict[Path, int]  # how many other kernels
    sizes: dict[Path, set[int]]  # the sizes of the convolutions' axes
    with_other_norms: set[Path]  # modules beside whose norm one is called a BatchNorm or GroupNorm
    with_statistics: set[str]  # the names of modules that hold running statistics


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
    found = judge_modules(tree, leaves)
    return {path: judged.kind for path, judged in found.items() if judged.kind != UNCERTAIN}


def judge_modules(
    tree: Any,
    leaves: Sequence[Leaf] | None = None,
    typed: Mapping[Path, str] | None = None,
) -> dict[Path, Judgement]:
    """Judges the modules of a tree that are norms, or look like one: module path to judgement.

    `NORM` and `GROUP_NORM` are taken for norms of that kind. `UNCERTAIN` ones look like a norm, but
    may be none, or of another kind: they are not to be trained unless the caller names them. A
    caller must hear of a judgement with a doubt.

    Args:
        tree: any pytree of parameters.
        leaves: what `flatten(tree)` gave, if it is at hand.
        typed: what `find_by_type(tree)` gave, if it is at hand.

    Example:
        >>> import jax.numpy as jnp
        >>> norm = {"scale": jnp.ones(4), "bias": jnp.ones(4)}
        >>> for path, judged in judge_modules({"ln_1": norm, "final": norm}).items():
        ...     print(path, judged)
        ('final',) Judgement(kind='uncertain', doubt="'final' does not say that it is a norm")
        ('ln_1',) Judgement(kind='norm', doubt='')
    """
    leaves = flatten(tree)[0] if leaves is None else leaves
    typed = find_by_type(tree) if typed is None else typed
    with_statistics = _find_with_statistics(leaves)
    modules = _group_by_module(leaves)
    parents = {module[:end] for module in modules for end in range(len(module))}
    surroundings = _look_around(modules)
    judged: dict[Path, Judgement] = {}
    for module, members in modules.items():
        if module in typed:
            judgement = Judgement(typed[module])
        elif module in with_statistics:
            judgement = _OTHER
        else:
            judgement = _judge(module, members, module in parents, surroundings)
        if judgement.kind != OTHER:
            judged[module] = judgement
    return judged


def get_kind(kinds: Mapping[Path, str], path: Path) -> str | None:
    """The kind of norm that a leaf belongs to: known of the leaf itself, or of its module."""
    return kinds.get(path) or kinds.get(path[:-1])


def _list_told(tree: Mapping[Any, Any], above: Path) -> Iterator[tuple[Path, bool]]:
    """The leaf paths whose keys say whether they are a norm's."""
    for key, value in tree.items():
        is_norm = getattr(key, "is_norm", None)
        if is_norm is not None:
            yield (*above, *split_name(key)), is_norm
        elif isinstance(value, dict):
            yield from _list_told(value, (*above, *split_name(str(key))))


def find_by_type(tree: Any) -> dict[Path, str]:
    """The modules whose type is known, whatever their names: `NORM`, `GROUP_NORM` or `OTHER`.

    Objects in the tree itself (Equinox, NNX) say it, and keys of a dict that have an attribute
    `is_norm`, as those of `lntune_jax.integrations.torchax` do.
    """
    if isinstance(tree, dict):
        told = dict(_list_told(tree, ()))
        if told and holds_collections(tree):
            told = {path[1:] if path[0] == "params" else path: told[path] for path in told}
        if told:
            return {path[:-1]: NORM if is_norm else OTHER for path, is_norm in told.items()}
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


class GivenNorms(NamedTuple):
    """Norms that the caller named: their paths in the tree, and the entries that name none."""

    paths: frozenset[Path]
    unmatched: list[str]


def match_norms(norms: Iterable[str], leaves: Sequence[Leaf]) -> GivenNorms:
    """Finds the modules and leaves of a tree that the caller names as norms.

    An entry may begin with `params`, though it is no segment of a path in Linen's variables.

    Args:
        norms: paths of modules or leaves, as strings or as segments.
        leaves: what `flatten(tree)` gave.

    Raises:
        TreeError: an entry is neither.

    Example:
        >>> leaves = flatten({"params": {"ln": {"scale": 1.0}}})[0]
        >>> match_norms(["ln", "params.ln", "zz"], leaves)
        GivenNorms(paths=frozenset({('ln',)}), unmatched=['zz'])
    """
    known = {leaf.path[:end] for leaf in leaves for end in (len(leaf.path), len(leaf.path) - 1)}
    paths: set[Path] = set()
    unmatched: dict[str, None] = {}
    for path in _split(norms):
        if path in known:
            paths.add(path)
        elif path[:1] == ("params",) and path[1:] in known:
            paths.add(path[1:])
        else:
            unmatched[join(path)] = None
    return GivenNorms(frozenset(paths), list(unmatched))


def _split(norms: Iterable[Any]) -> list[Path]:
    try:
        entries = [
            re.split(r"[./]", entry) if isinstance(entry, str) else [str(part) for part in entry]
            for entry in ([norms] if isinstance(norms, str) else norms)
        ]
    except TypeError:
        raise TreeError(
            f"norms must be module paths such as 'encoder.ln_1', not {norms!r}: pass what "
            "norm_modules(model) or discover_norms(apply_fn, params, ...) returns"
        ) from None
    return [tuple(part for part in entry if part) for entry in entries]  # "" is the root itself


@functools.lru_cache(maxsize=1024)  # the names of a large tree's modules are few, and repeated
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


def _judge(
    module: Path,
    members: Mapping[str, Leaf],
    has_children: bool,
    surroundings: Surroundings,
) -> Judgement:
    """What the names and shapes of a module's own leaves say about it."""
    if members.keys().isdisjoint(names.SCALE_NAMES):
        return _OTHER
    name = _get_telling_name(module)
    said = judge_name(name)
    if said == OTHER and (_says_other(name) or has_children):
        return _OTHER
    own = {n: leaf for n, leaf in members.items() if n in names.SCALE_NAMES | names.BIAS_NAMES}
    shapes: set[tuple[int, ...]] = {tuple(get_shape(leaf.value) or ()) for leaf in own.values()}
    if len(shapes) != 1 or not all(is_trainable_array(leaf) for leaf in own.values()):
        return _OTHER
    shape = shapes.pop()
    if len(shape) > 1 and members.keys() & names.ONE_AXIS_NAMES:
        return _OTHER
    if others := members.keys() - own.keys():
        return _judge_with_others(said, shape, others)
    if len(shape) > 1 and len(own) == 1 and not _may_be_stacked(name, own):
        return _OTHER
    if said == GROUP_NORM:
        return Judgement(GROUP_NORM)
    if said == NORM:
        return _judge_beside_convolutions(module, name, own, surroundings)
    if shape[-1:] == (1,) or len(shape) > 2 or members.keys() & names.ONE_AXIS_NAMES:
        return _OTHER
    if name in surroundings.with_statistics and not _says_nothing(name):
        return Judgement(NORM, f"others called {name!r} are BatchNorms, by their statistics")
    if len(own) == 2 and _comes_first(module, surroundings):
        return Judgement(NORM, f"{name!r}, the first of a sequence, does not say that it is a norm")
    called = repr(name) if name else "the root of the tree"
    return Judgement(UNCERTAIN, f"{called} does not say that it is a norm")


def _judge_with_others(said: str, shape: tuple[int, ...], others: Iterable[str]) -> Judgement:
    """Judges a module that holds more than a scale and a bias."""
    statistics = names.STATISTICS | names.AMBIGUOUS_STATISTICS
    if said != NORM or len(shape) != 1 or not statistics.isdisjoint(others):
        return _OTHER
    return Judgement(UNCERTAIN, f"it holds {', '.join(sorted(others)[:3])} too")


def _may_be_stacked(name: str, own: Mapping[str, Leaf]) -> bool:
    """Whether a lone scale with several axes may be that of several layers, not a matrix."""
    words = _split_words(name)
    place = _find_norm_word(words)
    if place is None:
        return "scale" in own or "gamma" in own
    return all(word.isdigit() or word in names.AFTER_STACKED for word in words[place + 1 :])


def _judge_beside_convolutions(
    module: Path, name: str, own: Mapping[str, Leaf], surroundings: Surroundings
) -> Judgement:
    """Judges a module that is called a norm: among convolutions it may be a BatchNorm too."""
    scope = module[:-1]
    if len(module) > 1 and _says_nothing(module[-1]):
        scope = module[:-2]  # an entry of a list
    sizes = surroundings.sizes.get(scope)
    if not sizes or not names.TOKEN_WORDS.isdisjoint(_split_words(name)):
        return Judgement(NORM)
    if scope and any(word in scope[-1].lower() for word in names.EMBEDDING_WORDS):
        return Judgement(NORM)
    if any(kind in name for kind in names.TYPE_NAMES):
        return Judgement(NORM)
    (leaf, *_) = own.values()
    convolutions, matrices = surroundings.convolutions[scope], surroundings.matrices.get(scope, 0)
    if sizes.isdisjoint(leaf.value.shape) or scope in surroundings.with_other_norms:
        return Judgement(NORM)
    if matrices > 4 * convolutions and not any("conv" in part.lower() for part in scope[-1:]):
        return Judgement(NORM)
    # Explicit names are seldom wrong, and a lone scale is seldom a BatchNorm's.
    is_sure = _is_explicit(name) or len(own) == 1
    if is_sure and matrices:
        return Judgement(NORM)
    doubt = "among convolutions it may be a GroupNorm or a BatchNorm"
    return Judgement(NORM if is_sure or matrices else UNCERTAIN, doubt)


def _get_telling_name(module: Path) -> str:
    """The name of a module, or of the list that it is an entry of, called `norms`."""
    name = module[-1] if module else ""
    if len(module) > 1 and _says_nothing(name) and judge_name(module[-2]) != OTHER:
        return module[-2]
    return name


def _comes_first(module: Path, surroundings: Surroundings) -> bool:
    """Whether a module is the first of a sequence, and what has a kernel comes after it."""
    start, zero, end = (module or ("",))[-1].rpartition("0")
    second = (*module[:-1], start + "1")
    has_kernel = second in surroundings.convolutions or second in surroundings.matrices
    return bool(zero) and not end and not start[-1:].isdigit() and has_kernel


@functools.lru_cache(maxsize=1024)
def _is_explicit(name: str) -> bool:
    """Whether a name says LayerNorm or RMSNorm, not only norm."""
    words = _split_words(name)
    place = _find_norm_word(words) or 0
    return bool(names.EXPLICIT.search(" ".join(words[max(place - 1, 0) : place + 1])))


@functools.lru_cache(maxsize=1024)
def _says_nothing(name: str) -> bool:
    return all(word.isdigit() or word in names.EMPTY_WORDS for word in _split_words(name))


@functools.lru_cache(maxsize=1024)
def _says_other(name: str) -> bool:
    """Whether a name says that a module is something else than a LayerNorm or RMSNorm."""
    words = _split_words(name)
    return _says_batch_norm(name) or not names.SCALE_WORDS.isdisjoint(words)


@functools.lru_cache(maxsize=1024)
def _says_batch_norm(name: str) -> bool:
    """Whether a name says BatchNorm, GroupNorm, or another kind of norm."""
    words = _split_words(name)
    is_other = _find_norm_word(words) is not None and judge_name(name) != NORM
    return is_other or not names.BATCH_NORM_WORDS.isdisjoint(words)


def _find_with_statistics(leaves: Iterable[Leaf]) -> set[Path]:
    """The modules whose statistics Linen keeps in a collection of their own."""
    found: set[Path] = set()
    for leaf in leaves:
        if leaf.path[:1] == ("batch_stats",) and leaf.path[-1] in names.AMBIGUOUS_STATISTICS:
            found |= {leaf.path[1:-1], ("params", *leaf.path[1:-1])}
    return found


def _look_around(modules: Mapping[Path, Mapping[str, Leaf]]) -> Surroundings:
    around = Surroundings({}, {}, {}, set(), set())
    for module, members in modules.items():
        if module and _says_batch_norm(module[-1]):
            around.with_other_norms.add(module[:-1])
        if module and not names.STATISTICS.isdisjoint(members):
            around.with_statistics.add(module[-1])
        for leaf in members.values():
            shape = get_shape(leaf.value) or ()
            if len(shape) < 2:
                continue
            is_convolution = len(shape) > 3 or (
                len(shape) == 3 and any("conv" in part.lower() for part in module[-2:])
            )
            counts = around.convolutions if is_convolution else around.matrices
            for end in range(len(module) + 1):
                above = module[:end]
                counts[above] = counts.get(above, 0) + 1
                if is_convolution:
                    around.sizes.setdefault(above, set()).update(shape)
    return around


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


@functools.lru_cache(maxsize=1024)
def _split_words(name: str) -> tuple[str, ...]:
    return tuple(w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name))
