"""From the text of a pattern to a tree of nodes, with CPython's own parser in front.

What cannot be matched in bounded time is refused here, by name.
"""

from __future__ import annotations

import re
from re import _constants as codes  # type: ignore[attr-defined]  # the parser behind re.compile
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from ._errors import PatternError
from ._regex_nodes import ANYTHING, EMPTY, Node, make_and, make_any, make_repeat, make_then

LONGEST_PATTERN = 2_000  # characters
UNDERSTOOD_FLAGS = re.IGNORECASE | re.DOTALL | re.VERBOSE | re.UNICODE


def parse(source: str) -> Node:
    if len(source) > LONGEST_PATTERN:
        raise PatternError(
            f"the pattern {shorten(source)!r} has {len(source):,} characters; at most "
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
            f"the pattern {shorten(source)!r} is not a valid regular expression: {error.msg}{where}"
        ) from None
    except (RecursionError, OverflowError):
        raise PatternError(f"the pattern {shorten(source)!r} is nested too deeply") from None


def _translate(source: str, items: list[Any], rest: Node, flags: int, *, repeated: bool) -> Node:
    """The parsed `items` followed by `rest`; a lookahead needs to see what follows it."""
    for code, value in reversed(items):
        if code in (codes.LITERAL, codes.ANY):
            rest = make_then(("char", ((code, value),), False, flags), rest)
        elif code is codes.NOT_LITERAL:
            rest = make_then(("char", ((codes.LITERAL, value),), True, flags), rest)
        elif code is codes.IN:
            negated = value[0][0] is codes.NEGATE
            rest = make_then(("char", tuple(value[negated:]), negated, flags), rest)
        elif code is codes.BRANCH:
            bodies = map(list, value[1])
            rest = make_any([_translate(source, b, rest, flags, repeated=repeated) for b in bodies])
        elif code is codes.SUBPATTERN:
            _, added, removed, body = value
            inner = (flags | added) & ~removed
            rest = _translate(source, list(body), rest, inner, repeated=repeated)
        elif code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            low, high, body = value
            if (low, high) == (0, 1):
                rest = make_any(
                    [_translate(source, list(body), rest, flags, repeated=repeated), rest]
                )
            else:
                inner = _translate(source, list(body), EMPTY, flags, repeated=True)
                rest = make_then(
                    make_repeat(inner, low, None if high is codes.MAXREPEAT else high), rest
                )
        elif code is codes.AT and value in _ANCHORS and not repeated:
            rest = make_then(_ANCHORS[value], rest)
        elif code in (codes.ASSERT, codes.ASSERT_NOT) and value[0] == 1 and not repeated:
            ahead = _translate(source, list(value[1]), ANYTHING, flags, repeated=False)
            rest = make_and(ahead if code is codes.ASSERT else ("not", ahead), rest)
        else:
            raise _refuse(source, _CONSTRUCTS.get(code, str(code).lower()))
    return rest


_ANCHORS: dict[Any, Node] = {
    codes.AT_BEGINNING: ("begin",),
    codes.AT_BEGINNING_STRING: ("begin",),
    codes.AT_END: ("end",),
    codes.AT_END_STRING: ("end",),
}

_CONSTRUCTS = {
    codes.ASSERT: "a lookbehind, or a lookahead inside a repetition",
    codes.ASSERT_NOT: "a lookbehind, or a lookahead inside a repetition",
    codes.AT: r"a word boundary (\b or \B), or an anchor inside a repetition",
    codes.GROUPREF: "a backreference",
    codes.GROUPREF_EXISTS: "a conditional group",
    codes.POSSESSIVE_REPEAT: "a possessive repetition",
    codes.ATOMIC_GROUP: "an atomic group",
}


def _refuse(source: str, construct: str) -> PatternError:
    return PatternError(
        f"the pattern {shorten(source)!r} uses {construct}, which cannot be matched in bounded "
        "time: rewrite it, or list the modules"
    )


def shorten(source: str) -> str:
    return source if len(source) <= 80 else source[:77] + "..."
