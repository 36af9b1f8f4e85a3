"""Patterns against paths: PEFT's rules first, regular expressions in lists after.

Nothing here knows what a norm is. Source of the rules: PEFT's `check_target_module_exists` and
`match_target_against_key` (src/peft/tuners/tuners_utils.py, 0.21).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ._regex import Pattern


class Match(NamedTuple):
    """What one pattern matched: names of modules or leaves, and whether literally."""

    pattern: str
    names: frozenset[str]
    is_literal: bool


def match_patterns(
    patterns: str | Sequence[str] | None, modules: Sequence[str], leaves: Sequence[str]
) -> list[Match]:
    """Matches the patterns of `target_modules` or `exclude_modules`, each for itself.

    A string is one regular expression that matches a whole module path or leaf path. An entry of
    a sequence matches the modules whose paths equal it or end with it (whole segments); where no
    module does, it is read as a regular expression.

    Args:
        patterns: the field of the config.
        modules: all module paths of the tree, containers included.
        leaves: all leaf paths of the tree.

    Example:
        >>> match_patterns(["ln_1"], ["h.0.ln_1", "h.0.xln_1"], ["h.0.ln_1.scale"])[0].names
        frozenset({'h.0.ln_1'})
    """
    if patterns is None:
        return []
    if isinstance(patterns, str):
        return [_match_expression(patterns, _with_dots(patterns), modules, leaves)]
    return [_match_entry(entry, modules, leaves) for entry in patterns]


def match_saved(
    entries: str | Sequence[str] | None, modules: Sequence[str], leaves: Sequence[str]
) -> list[Match]:
    """Matches the entries of `modules_to_save`: whole segments of a path, and all that lies below.

    Where no module path holds an entry it is read as a regular expression, and then as the whole
    path of a leaf (`["cls_token"]`).

    Example:
        >>> sorted(match_saved(["head"], ["head", "head.out", "ahead"], [])[0].names)
        ['head', 'head.out']
    """
    if entries is None:
        return []
    return [
        _match_saved(e, modules, leaves)
        for e in ([entries] if isinstance(entries, str) else entries)
    ]


def suggest(pattern: str, modules: Iterable[str]) -> list[str]:
    """The module paths whose ends are written most like `pattern`, at most three."""
    length = pattern.count(".") + 1
    ends: dict[str, str] = {}
    for module in modules:
        ends.setdefault(".".join(module.split(".")[-length:]), module)
    near = difflib.get_close_matches(pattern, list(ends)[:2000], n=3, cutoff=0.5)
    return [ends[end] for end in near]


def _match_entry(entry: str, modules: Sequence[str], leaves: Sequence[str]) -> Match:
    name = entry.replace("/", ".")
    literal = frozenset(m for m in modules if m == name or m.endswith("." + name))
    if literal:
        return Match(entry, literal, True)
    return _match_expression(entry, _with_dots(entry), modules, leaves)


def _match_saved(entry: str, modules: Sequence[str], leaves: Sequence[str]) -> Match:
    name = f".{entry.replace('/', '.')}."
    literal = frozenset(module for module in modules if name in f".{module}.")
    literal = literal or frozenset(leaf for leaf in leaves if leaf == name[1:-1])
    if literal:
        return Match(entry, literal, True)
    return _match_expression(entry, rf"(.*\.)?(?:{_with_dots(entry)})(\..*)?", modules, ())


def _match_expression(
    pattern: str, expression: str, modules: Sequence[str], leaves: Sequence[str]
) -> Match:
    matches: Callable[[str], bool] = Pattern(expression).fullmatch
    names = [*filter(matches, modules), *filter(matches, leaves)]
    return Match(pattern, frozenset(names), False)


def _with_dots(pattern: str) -> str:
    """Slashes stand for dots in a pattern, as they do in a key."""
    return pattern.replace("\\/", "/").replace("/", r"\.")
