"""Regular expressions as trees of tuples, kept in a form in which equal ones look equal.

Derivatives stay few only because `make_any` forgets order and repetition and `make_then` leans to
the right (Owens, Reppy, Turon 2009, "Regular-expression derivatives re-examined").
"""

from __future__ import annotations

import re
from re import _constants as codes  # type: ignore[attr-defined]  # the parser behind re.compile

Node = tuple  # ("never",), ("empty",), ("char", ..), ("then", a, b), ("any", {..}), ...

NEVER: Node = ("never",)
EMPTY: Node = ("empty",)
ANYTHING: Node = ("repeat", ("char", ((codes.ANY, None),), False, re.DOTALL), 0, None)


def accepts_nothing(node: Node, *, start: bool, end: bool) -> bool:
    match node[0]:
        case "empty":
            return True
        case "begin":
            return start
        case "end":
            return end
        case "then" | "and":
            return all(accepts_nothing(part, start=start, end=end) for part in node[1:])
        case "any":
            return any(accepts_nothing(option, start=start, end=end) for option in node[1])
        case "repeat":
            return node[2] == 0 or accepts_nothing(node[1], start=start, end=end)
        case "not":
            return not accepts_nothing(node[1], start=start, end=end)
        case _:
            return False


def make_then(first: Node, rest: Node) -> Node:
    """`first` followed by `rest`: a set of right-leaning chains, so that equal ones look equal."""
    if first == NEVER or rest == NEVER:
        return NEVER
    if first == EMPTY:
        return rest
    if rest == EMPTY:
        return first
    if first[0] == "then":
        return make_then(first[1], make_then(first[2], rest))
    if first[0] == "any":
        return make_any([make_then(option, rest) for option in first[1]])
    return ("then", first, rest)


def make_any(options: list[Node]) -> Node:
    flat: set[Node] = set()
    for option in options:
        flat.update(option[1] if option[0] == "any" else () if option == NEVER else (option,))
    if ANYTHING in flat:
        return ANYTHING
    return NEVER if not flat else flat.pop() if len(flat) == 1 else ("any", frozenset(flat))


def make_and(first: Node, second: Node) -> Node:
    if NEVER in (first, second):
        return NEVER
    for one, other in ((first, second), (second, first)):
        if one in (ANYTHING, ("not", NEVER), other):
            return other
    return ("and", first, second)


def make_repeat(body: Node, low: int, high: int | None) -> Node:
    if high == 0 or body == EMPTY:
        return EMPTY
    return body if (low, high) == (1, 1) else ("repeat", body, low, high)


def takes(node: Node, character: str) -> bool:
    items, negated, flags = node[1:]
    cases = (character,)
    if flags & re.IGNORECASE:
        cases = (character, character.lower(), character.upper())
    return negated != any(_is_in(items, case, flags) for case in cases)


def _is_in(items: tuple, character: str, flags: int) -> bool:
    for code, value in items:
        if (
            (code is codes.LITERAL and ord(character) == value)
            or (code is codes.RANGE and value[0] <= ord(character) <= value[1])
            or (code is codes.CATEGORY and _CATEGORIES[value](character))
            or (code is codes.ANY and (character != "\n" or bool(flags & re.DOTALL)))
        ):
            return True
    return False


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


_CATEGORIES = {
    codes.CATEGORY_DIGIT: str.isdecimal,
    codes.CATEGORY_NOT_DIGIT: lambda character: not character.isdecimal(),
    codes.CATEGORY_SPACE: str.isspace,
    codes.CATEGORY_NOT_SPACE: lambda character: not character.isspace(),
    codes.CATEGORY_WORD: _is_word,
    codes.CATEGORY_NOT_WORD: lambda character: not _is_word(character),
}
