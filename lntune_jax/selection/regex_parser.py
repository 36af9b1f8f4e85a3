"""From the text of a pattern to a tree of nodes, with CPython's own parser in front.

What cannot be matched in bounded time is refused here, by name.
"""

from __future__ import annotations

import re
from re import _constants as codes  # type: ignore[attr-defined]  # the parser behind re.compile
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any, NamedTuple

from ..errors import PatternError
from .regex_nodes import Node, Nodes

LONGEST_PATTERN = 2_000  # characters
UNDERSTOOD_FLAGS = re.IGNORECASE | re.DOTALL | re.VERBOSE | re.UNICODE


def parse(source: str, nodes: Nodes) -> Node:
    """The tree of a pattern.

    Raises:
        PatternError: it is no valid expression, or cannot be matched in bounded time.
    """
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
        return _translate(_Context(source, nodes), list(parsed), nodes.empty, flags, repeated=False)
    except re.error as error:
        where = "" if error.pos is None else f" at position {error.pos}"
        raise PatternError(
            f"the pattern {shorten(source)!r} is not a valid regular expression: {error.msg}{where}"
        ) from None
    except Warning as warning:  # where the caller has made warnings errors
        raise PatternError(f"the pattern {shorten(source)!r} is unclear: {warning}") from None
    except (RecursionError, OverflowError):
        raise PatternError(f"the pattern {shorten(source)!r} is nested too deeply") from None


class _Context(NamedTuple):
    source: str
    nodes: Nodes


def _translate(
    context: _Context, parsed: list[Any], rest: Node, flags: int, *, repeated: bool
) -> Node:
    """The items that were parsed, followed by `rest`; a lookahead needs to see what follows it."""
    source, nodes = context
    for code, value in reversed(parsed):
        if code in (codes.LITERAL, codes.ANY):
            rest = nodes.then(nodes.char(((code, value),), negated=False, flags=flags), rest)
        elif code is codes.NOT_LITERAL:
            literal = ((codes.LITERAL, value),)
            rest = nodes.then(nodes.char(literal, negated=True, flags=flags), rest)
        elif code is codes.IN:
            negated = value[0][0] is codes.NEGATE
            items = tuple(value[negated:])
            rest = nodes.then(nodes.char(items, negated=negated, flags=flags), rest)
        elif code is codes.BRANCH:
            bodies = map(list, value[1])
            rest = nodes.any(
                [_translate(context, body, rest, flags, repeated=repeated) for body in bodies]
            )
        elif code is codes.SUBPATTERN:
            _, added, removed, body = value
            inner = (flags | added) & ~removed
            rest = _translate(context, list(body), rest, inner, repeated=repeated)
        elif code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            low, high, body = value
            if (low, high) == (0, 1):
                once = _translate(context, list(body), rest, flags, repeated=repeated)
                rest = nodes.any([once, rest])
            else:
                inner = _translate(context, list(body), nodes.empty, flags, repeated=True)
                most = None if high is codes.MAXREPEAT else high
                rest = nodes.then(nodes.repeat(inner, low, most), rest)
        elif code is codes.AT and value in _ANCHORS and not repeated:
            rest = nodes.then(getattr(nodes, _ANCHORS[value]), rest)
        elif code in (codes.ASSERT, codes.ASSERT_NOT) and value[0] == 1 and not repeated:
            ahead = _translate(context, list(value[1]), nodes.anything, flags, repeated=False)
            rest = nodes.both(ahead if code is codes.ASSERT else nodes.other(ahead), rest)
        else:
            raise _refuse(source, _CONSTRUCTS.get(code, str(code).lower()))
    return rest


_ANCHORS: dict[Any, str] = {
    codes.AT_BEGINNING: "begin",
    codes.AT_BEGINNING_STRING: "begin",
    codes.AT_END: "end",
    codes.AT_END_STRING: "end",
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
    """Cuts an expression for a message."""
    return source if len(source) <= 80 else source[:77] + "..."
