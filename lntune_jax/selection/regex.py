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

from ..errors import PatternError
from .regex_nodes import Node, Nodes, Work, accepts_nothing, takes
from .regex_parser import parse, shorten


class Pattern:
    """A compiled pattern; `fullmatch` says whether the whole text matches, as `re.fullmatch`.

    Args:
        source: the expression.
        work: counts the steps taken; None for a count of its own. Patterns that share one share
            its bound.

    Raises:
        PatternError: the text is no valid expression, uses a construct that cannot be matched in
            bounded time, or would take too long; the message quotes the pattern.
    """

    def __init__(self, source: str, work: Work | None = None) -> None:
        self.source = source
        try:
            self._nodes = Nodes(Work() if work is None else work)
            self._start = parse(source, self._nodes)
        except PatternError as error:
            raise self._quote(error) from None

    def fullmatch(self, text: str) -> bool:
        """Says whether the pattern matches all of `text`."""
        node, never = self._start, self._nodes.never
        try:
            for character in text[:1]:
                node = self._derive(node, character, start=True)
            for character in text[1:]:
                node = node.after.get(character) or self._derive(node, character, start=False)
                if node is never:
                    return False
            return accepts_nothing(node, start=not text, end=True)
        except RecursionError:
            raise PatternError(
                f"the pattern {shorten(self.source)!r} is nested too deeply"
            ) from None
        except PatternError as error:
            raise self._quote(error) from None

    def _derive(self, node: Node, character: str, start: bool) -> Node:
        """What the rest of a text must match after `character`; asked for again, it is known."""
        known = node.start if start else node.after
        found = known.get(character)
        if found is None:
            found = known[character] = self._make_derivative(node, character, start)
        return found

    def _make_derivative(self, node: Node, character: str, start: bool) -> Node:
        nodes = self._nodes
        match node.kind:
            case "char":
                return nodes.empty if takes(node, character) else nodes.never
            case "then":
                first, rest = node.parts
                taken = nodes.then(self._derive(first, character, start), rest)
                if accepts_nothing(first, start=start, end=False):
                    return nodes.any([taken, self._derive(rest, character, start)])
                return taken
            case "any":
                return nodes.any([self._derive(part, character, start) for part in node.parts[0]])
            case "repeat":
                body, low, high = node.parts
                fewer = None if high is None else high - 1
                rest = nodes.repeat(body, max(low - 1, 0), fewer)
                return nodes.then(self._derive(body, character, start), rest)
            case "both":
                return nodes.both(*(self._derive(part, character, start) for part in node.parts))
            case "not":
                return nodes.other(self._derive(node.parts[0], character, start))
            case _:  # never, empty, begin, end: none of them takes a character
                return nodes.never

    def _quote(self, error: PatternError) -> PatternError:
        text = str(error)
        if text.startswith("it "):
            text = f"the pattern {shorten(self.source)!r}: {text}"
        return PatternError(text)
