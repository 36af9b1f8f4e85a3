"""Regular expressions as trees of nodes; equal ones are one object, so that work is done once.

Derivatives stay few only because an alternative forgets order and repetition and a sequence leans
to the right (Owens, Reppy, Turon 2009, "Regular-expression derivatives re-examined"). Every node
made is counted, which bounds the time of whatever makes nodes.
"""

from __future__ import annotations

import re
from re import _constants as codes  # type: ignore[attr-defined]  # the parser behind re.compile
from typing import Any

from ..errors import PatternError

MOST_STEPS = 100_000  # nodes made: about a third of a second


class Node:
    """One node: its kind and parts. Two of the same kind and parts, of one table, are one.

    What has been found out about it is kept in it: whether it `accepts` the empty text, and the
    node `after` a character, which is another one at the `start` of the text.
    """

    __slots__ = ("accepts", "after", "kind", "parts", "start")

    def __init__(self, kind: str, parts: tuple[Any, ...]) -> None:
        self.kind = kind
        self.parts = parts
        self.accepts: dict[tuple[bool, bool], bool] = {}
        self.after: dict[str, Node] = {}
        self.start: dict[str, Node] = {}


class Work:
    """How many steps have been taken for one pattern, or for all patterns of one list."""

    def __init__(self) -> None:
        self.steps = 0

    def count(self, steps: int) -> None:
        """Adds steps.

        Raises:
            PatternError: they are more than allowed.
        """
        self.steps += steps
        if self.steps > MOST_STEPS:
            raise PatternError(
                f"it takes too long to match (more than {MOST_STEPS:,} steps): write it without "
                "nested repetitions"
            )


class Nodes:
    """Makes the nodes of one pattern, in a form in which equal languages often look equal."""

    def __init__(self, work: Work) -> None:
        self._made: dict[tuple[Any, ...], Node] = {}
        self._work = work
        self.never = self._make("never")
        self.empty = self._make("empty")
        self.begin = self._make("begin")
        self.end = self._make("end")
        anything = self.char(((codes.ANY, None),), negated=False, flags=re.DOTALL)
        self.anything = self.repeat(anything, 0, None)

    def _make(self, kind: str, *parts: Any) -> Node:
        self._work.count(1)
        key = (kind, *parts)
        node = self._made.get(key)
        if node is None:
            node = self._made[key] = Node(kind, parts)
        return node

    def char(self, items: tuple[Any, ...], *, negated: bool, flags: int) -> Node:
        """One character out of a set."""
        return self._make("char", items, negated, flags)

    def then(self, first: Node, rest: Node) -> Node:
        """`first` followed by `rest`: a set of right-leaning chains, so that equal ones are one."""
        chain = []
        while first.kind == "then":
            chain.append(first.parts[0])
            first = first.parts[1]
        for part in (first, *reversed(chain)):
            rest = self._then(part, rest)
        return rest

    def _then(self, first: Node, rest: Node) -> Node:
        if first is self.never or rest is self.never:
            return self.never
        if first is self.empty:
            return rest
        if rest is self.empty:
            return first
        if first.kind == "any":
            return self.any([self.then(option, rest) for option in first.parts[0]])
        return self._make("then", first, rest)

    def any(self, options: list[Node]) -> Node:
        """One of several."""
        flat: set[Node] = set()
        for option in options:
            if option.kind == "any":
                flat.update(option.parts[0])
                self._work.count(len(option.parts[0]))
            elif option is not self.never:
                flat.add(option)
        self._work.count(len(flat))
        if self.anything in flat:
            return self.anything
        if len(flat) < 2:
            return flat.pop() if flat else self.never
        return self._make("any", frozenset(flat))

    def both(self, first: Node, second: Node) -> Node:
        """What two nodes take alike."""
        if self.never in (first, second):
            return self.never
        for one, other in ((first, second), (second, first)):
            if one in (self.anything, other) or (one.kind == "not" and one.parts[0] is self.never):
                return other
        return self._make("both", first, second)

    def other(self, node: Node) -> Node:
        """What a node does not take."""
        return self._make("not", node)

    def repeat(self, body: Node, low: int, high: int | None) -> Node:
        """`body` so many times."""
        if high == 0 or body is self.empty:
            return self.empty
        return body if (low, high) == (1, 1) else self._make("repeat", body, low, high)


def accepts_nothing(node: Node, *, start: bool, end: bool) -> bool:
    """Whether a node takes the empty text, at the start or end of the whole one or not."""
    known = node.accepts.get((start, end))
    if known is None:
        known = node.accepts[start, end] = _accepts_nothing(node, start, end)
    return known


def _accepts_nothing(node: Node, start: bool, end: bool) -> bool:
    match node.kind:
        case "empty":
            return True
        case "begin":
            return start
        case "end":
            return end
        case "then" | "both":
            return all(accepts_nothing(part, start=start, end=end) for part in node.parts)
        case "any":
            return any(accepts_nothing(option, start=start, end=end) for option in node.parts[0])
        case "repeat":
            return node.parts[1] == 0 or accepts_nothing(node.parts[0], start=start, end=end)
        case "not":
            return not accepts_nothing(node.parts[0], start=start, end=end)
        case _:
            return False


def takes(node: Node, character: str) -> bool:
    """Whether a node of one character takes this one."""
    items, negated, flags = node.parts
    cases = (character,)
    if flags & re.IGNORECASE:
        cases = (character, character.lower(), character.upper())
    return negated != any(_is_in(items, case, flags) for case in cases)


def _is_in(items: tuple[Any, ...], character: str, flags: int) -> bool:
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
