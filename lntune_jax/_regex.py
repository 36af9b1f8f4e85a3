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

import re
from re import _constants as codes  # type: ignore[attr-defined]  # the parser behind re.compile
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from ._errors import PatternError

Node = tuple  # ("never",) | ("empty",) | ("char", ...) | ("then", a, b) | ("any", {..}) | ...

NEVER: Node = ("never",)
EMPTY: Node = ("empty",)
ANYTHING: Node = ("repeat", ("char", ((codes.ANY, None),), False, re.DOTALL), 0, None)

LONGEST_PATTERN = 2_000  # characters
MOST_STEPS = 200_000  # derivatives taken for one pattern, about half a second
UNDERSTOOD_FLAGS = re.IGNORECASE | re.DOTALL | re.VERBOSE | re.UNICODE


class Pattern:
    """A compiled pattern; `fullmatch` says whether the whole text matches, as `re.fullmatch`.

    Raises:
        PatternError: the text is no valid expression, uses a construct that cannot be matched in
            bounded time, or would take too long; the message quotes the pattern.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._start = _parse(source)
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
            return _accepts_nothing(node, start=not text, end=True)
        except RecursionError:
            raise PatternError(f"the pattern {self.source!r} is nested too deeply") from None

    def _derive(self, node: Node, character: str, start: bool) -> Node:
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise PatternError(
                f"the pattern {_shorten(self.source)!r} takes too long to match "
                f"(more than {MOST_STEPS:,} steps): write it without nested repetitions"
            )
        match node[0]:
            case "char":
                return EMPTY if _matches(node, character) else NEVER
            case "then":
                first, rest = node[1], node[2]
                taken = _then(self._derive(first, character, start), rest)
                if _accepts_nothing(first, start=start, end=False):
                    return _any([taken, self._derive(rest, character, start)])
                return taken
            case "any":
                return _any([self._derive(option, character, start) for option in node[1]])
            case "repeat":
                body, low, high = node[1:]
                fewer = None if high is None else high - 1
                rest = _repeat(body, max(low - 1, 0), fewer)
                return _then(self._derive(body, character, start), rest)
            case "and":
                return _and(*(self._derive(part, character, start) for part in node[1:]))
            case "not":
                return ("not", self._derive(node[1], character, start))
            case _:  # never, empty, begin, end: none of them takes a character
                return NEVER


def _accepts_nothing(node: Node, *, start: bool, end: bool) -> bool:
    match node[0]:
        case "empty":
            return True
        case "begin":
            return start
        case "end":
            return end
        case "then" | "and":
            return all(_accepts_nothing(part, start=start, end=end) for part in node[1:])
        case "any":
            return any(_accepts_nothing(option, start=start, end=end) for option in node[1])
        case "repeat":
            return node[2] == 0 or _accepts_nothing(node[1], start=start, end=end)
        case "not":
            return not _accepts_nothing(node[1], start=start, end=end)
        case _:
            return False


def _then(first: Node, rest: Node) -> Node:
    """`first` followed by `rest`: a set of right-leaning chains, so that equal ones look equal."""
    if first == NEVER or rest == NEVER:
        return NEVER
    if first == EMPTY:
        return rest
    if rest == EMPTY:
        return first
    if first[0] == "then":
        return _then(first[1], _then(first[2], rest))
    if first[0] == "any":
        return _any([_then(option, rest) for option in first[1]])
    return ("then", first, rest)


def _any(options: list[Node]) -> Node:
    flat: set[Node] = set()
    for option in options:
        flat.update(option[1] if option[0] == "any" else () if option == NEVER else (option,))
    if ANYTHING in flat:
        return ANYTHING
    return NEVER if not flat else flat.pop() if len(flat) == 1 else ("any", frozenset(flat))


def _and(first: Node, second: Node) -> Node:
    if NEVER in (first, second):
        return NEVER
    for one, other in ((first, second), (second, first)):
        if one in (ANYTHING, ("not", NEVER), other):
            return other
    return ("and", first, second)


def _repeat(body: Node, low: int, high: int | None) -> Node:
    if high == 0 or body == EMPTY:
        return EMPTY
    return body if (low, high) == (1, 1) else ("repeat", body, low, high)


def _matches(node: Node, character: str) -> bool:
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


def _parse(source: str) -> Node:
    if len(source) > LONGEST_PATTERN:
        raise PatternError(
            f"the pattern {_shorten(source)!r} has {len(source):,} characters; at most "
            f"{LONGEST_PATTERN:,} are read: list the modules instead"
        )
    try:
        parsed = parser.parse(source)
        flags = parsed.state.flags
        if flags & ~UNDERSTOOD_FLAGS:
            raise _refuse(source, "an inline flag other than i, s, u or x")
        return _translate(source, list(parsed), EMPTY, flags, repeated=False)
    except re.error as error:
        where = "" if error.pos is None else f" at position {error.pos}"
        raise PatternError(
            f"the pattern {_shorten(source)!r} is not a valid regular expression: "
            f"{error.msg}{where}"
        ) from None
    except (RecursionError, OverflowError):
        raise PatternError(f"the pattern {_shorten(source)!r} is nested too deeply") from None


def _translate(source: str, items: list[Any], rest: Node, flags: int, *, repeated: bool) -> Node:
    """The parsed `items` followed by `rest`; a lookahead needs to see what follows it."""
    for code, value in reversed(items):
        if code in (codes.LITERAL, codes.ANY):
            rest = _then(("char", ((code, value),), False, flags), rest)
        elif code is codes.NOT_LITERAL:
            rest = _then(("char", ((codes.LITERAL, value),), True, flags), rest)
        elif code is codes.IN:
            negated = value[0][0] is codes.NEGATE
            rest = _then(("char", tuple(value[negated:]), negated, flags), rest)
        elif code is codes.BRANCH:
            options = [
                _translate(source, list(b), rest, flags, repeated=repeated) for b in value[1]
            ]
            rest = _any(options)
        elif code is codes.SUBPATTERN:
            _, added, removed, body = value
            inner = (flags | added) & ~removed
            rest = _translate(source, list(body), rest, inner, repeated=repeated)
        elif code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            low, high, body = value
            if (low, high) == (0, 1):
                rest = _any([_translate(source, list(body), rest, flags, repeated=repeated), rest])
            else:
                inner = _translate(source, list(body), EMPTY, flags, repeated=True)
                rest = _then(_repeat(inner, low, None if high is codes.MAXREPEAT else high), rest)
        elif code is codes.AT and value in (codes.AT_BEGINNING, codes.AT_BEGINNING_STRING):
            rest = _then(("begin",), rest)
        elif code is codes.AT and value in (codes.AT_END, codes.AT_END_STRING):
            rest = _then(("end",), rest)
        elif code in (codes.ASSERT, codes.ASSERT_NOT) and value[0] == 1 and not repeated:
            ahead = _translate(source, list(value[1]), ANYTHING, flags, repeated=False)
            rest = _and(ahead if code is codes.ASSERT else ("not", ahead), rest)
        else:
            raise _refuse(source, _CONSTRUCTS.get(code, str(code).lower()))
    return rest


_CONSTRUCTS = {
    codes.ASSERT: "a lookbehind, or a lookahead inside a repetition",
    codes.ASSERT_NOT: "a lookbehind, or a lookahead inside a repetition",
    codes.AT: r"a word boundary (\b or \B)",
    codes.GROUPREF: "a backreference",
    codes.GROUPREF_EXISTS: "a conditional group",
    codes.POSSESSIVE_REPEAT: "a possessive repetition",
    codes.ATOMIC_GROUP: "an atomic group",
}


def _refuse(source: str, construct: str) -> PatternError:
    return PatternError(
        f"the pattern {_shorten(source)!r} uses {construct}, which cannot be matched in bounded "
        "time: rewrite it, or list the modules"
    )


def _shorten(source: str) -> str:
    return source if len(source) <= 80 else source[:77] + "..."
