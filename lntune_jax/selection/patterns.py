"""Patterns against paths: PEFT's rules first, regular expressions in lists after.

A pattern may come from a stranger's file: what is matched here ends (`expressions`). Nothing here
knows what a norm is. Source of the rules: PEFT's `check_target_module_exists` and
`match_target_against_key` (src/peft/tuners/tuners_utils.py, 0.21).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..errors import PatternError
from ..expressions import match_expressions

# An expression is matched against every path, so that their number bounds the time.
MOST_EXPRESSIONS = 64
PLAIN = re.compile(r"[\w.-]+")  # the end of a path, and not meant as an expression


class Match(NamedTuple):
    """What one pattern matched: names of modules or leaves, and whether literally."""

    pattern: str
    names: frozenset[str]
    is_literal: bool


def match_patterns(
    patterns: str | Sequence[str] | None,
    modules: Sequence[str],
    leaves: Sequence[str],
    *,
    is_inside: bool = False,
) -> list[Match]:
    """Matches the patterns of a field of a config, each for itself.

    A string is one regular expression that matches a whole module path or leaf path. An entry of
    a sequence matches the modules whose paths equal it or end with it (whole segments), or the leaf
    whose path it is; where there is none, it is read as a regular expression.

    Args:
        patterns: the field of the config.
        modules: all module paths of the tree, containers included.
        leaves: all leaf paths of the tree.
        is_inside: as `modules_to_save` is read: a string is a sequence of one, and what lies below
            a match counts too.

    Raises:
        PatternError: a pattern is no valid expression, or cannot be matched in time.

    Example:
        >>> match_patterns(["ln_1"], ["h.0.ln_1", "h.0.xln_1"], ["h.0.ln_1.scale"])[0].names
        frozenset({'h.0.ln_1'})
        >>> paths = ["head", "head.out", "ahead"]
        >>> sorted(match_patterns(["head"], paths, [], is_inside=True)[0].names)
        ['head', 'head.out']
    """
    entries = [patterns] if isinstance(patterns, str) else list(patterns or ())
    is_expression = isinstance(patterns, str) and not is_inside
    literal = {} if is_expression else _match_literally(entries, modules, leaves, is_inside)
    expressions = [entry for entry in dict.fromkeys(entries) if entry not in literal]
    if len(expressions) > MOST_EXPRESSIONS:
        raise PatternError(
            f"a list of patterns holds {len(expressions):,} that are no ends of module paths, such "
            f"as {expressions[0][:80]!r}; at most {MOST_EXPRESSIONS} are read as regular "
            "expressions: join them, or list the modules"
        )
    # What PEFT puts around an entry, without groups: an entry may count its own.
    around = {"before": r"(?:.*\.)?", "after": r"(?:\..*)?"} if is_inside else {}
    found = match_expressions(expressions, [*modules, *leaves], **around)
    return [
        Match(entry, literal[entry], True)
        if entry in literal
        else Match(entry, frozenset(found[entry]), False)
        for entry in entries
    ]


def _match_literally(
    entries: Sequence[str], modules: Sequence[str], leaves: Sequence[str], is_inside: bool
) -> dict[str, frozenset[str]]:
    """The entries that are ends of module paths or leaf paths, or plainly meant to be some."""
    names = {entry: entry.replace("/", ".") for entry in entries}
    ends, whole = _find_ends(set(names.values()), modules, is_inside), set(leaves)
    # PEFT reads `modules_to_save` with `re.match`, so that dots there are an expression's.
    plain = {n for n in ends if PLAIN.fullmatch(n) and not (is_inside and "." in n)}
    return {
        entry: frozenset(ends[name] or ([name] if name in whole else []))
        for entry, name in names.items()
        if ends[name] or name in plain or name in whole
    }


def _find_ends(names: set[str], modules: Iterable[str], is_inside: bool) -> dict[str, list[str]]:
    """For each name, the module paths that end with it (or hold it): one pass over the modules."""
    found: dict[str, list[str]] = {name: [] for name in names}
    for module in modules:
        prefix = module
        while prefix:
            end = prefix
            while end:
                if end in found:
                    found[end].append(module)
                end = end.partition(".")[2]
            prefix = prefix.rpartition(".")[0] if is_inside else ""
    return found
