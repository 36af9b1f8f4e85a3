r"""Regular expressions that match in bounded time, whatever the pattern.

Patterns may come from a downloaded `adapter_config.json`, and `re` needs exponential time for
some of them. CPython's own parser reads the pattern here; matching then takes derivatives: each
character turns the expression into the one that the rest of the text must match (Brzozowski 1964,
"Derivatives of regular expressions"). Derivatives are remembered, so a pattern becomes a
deterministic automaton, built as far as the texts need it.

Understood: all that `re` reads but backreferences, lookbehind, `\b`, possessive and atomic groups,
and lookahead inside a repetition, which are refused by name.
"""

from __future__ import annotations

from ._errors import PatternError
from ._regex_nodes import (
    EMPTY,
    NEVER,
    Node,
    accepts_nothing,
    make_and,
    make_any,
    make_repeat,
    make_then,
    takes,
)
from ._regex_parser import parse, shorten

MOST_STEPS = 200_000  # derivatives taken for one pattern, about half a second


class Pattern:
    """A compiled pattern; `fullmatch` says whether the whole text matches, as `re.fullmatch`.

    Raises:
        PatternError: the text is no valid expression, uses a construct that cannot be matched in
            bounded time, or would take too long; the message quotes the pattern.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._start = parse(source)
        self._next: dict[tuple[Node, str, bool], Node] = {}
        self._steps = 0

    def fullmatch(self, text: str) -> bool:
        """Says whether the pattern matches all of `text`."""
        node = self._start
        try:
            for position, character in enumerate(text):
                key = (node, character, position == 0)
                if (following := self._next.get(key)) is None:
                    following = self._next[key] = self._derive(node, character, position == 0)
                node = following
                if node == NEVER:
                    return False
            return accepts_nothing(node, start=not text, end=True)
        except RecursionError:
            raise PatternError(f"the pattern {self.source!r} is nested too deeply") from None

    def _derive(self, node: Node, character: str, start: bool) -> Node:
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise PatternError(
                f"the pattern {shorten(self.source)!r} takes too long to match "
                f"(more than {MOST_STEPS:,} steps): write it without nested repetitions"
            )
        match node[0]:
            case "char":
                return EMPTY if takes(node, character) else NEVER
            case "then":
                first, rest = node[1], node[2]
                taken = make_then(self._derive(first, character, start), rest)
                if accepts_nothing(first, start=start, end=False):
                    return make_any([taken, self._derive(rest, character, start)])
                return taken
            case "any":
                return make_any([self._derive(option, character, start) for option in node[1]])
            case "repeat":
                body, low, high = node[1:]
                fewer = None if high is None else high - 1
                rest = make_repeat(body, max(low - 1, 0), fewer)
                return make_then(self._derive(body, character, start), rest)
            case "and":
                return make_and(*(self._derive(part, character, start) for part in node[1:]))
            case "not":
                return ("not", self._derive(node[1], character, start))
            case _:  # never, empty, begin, end: none of them takes a character
                return NEVER
