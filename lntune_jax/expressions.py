r"""Regular expressions of Python's `re`, matched in bounded time by the package `regex`.

Patterns may come from a downloaded `adapter_config.json`, and `re` needs years for some of them.
So `re` says whether a pattern is valid, and `regex`, which has a time limit, matches it. What `re`
reads as plain text and `regex` does not is escaped on the way: fuzzy counts (`{e<=1}`), POSIX
classes (`[[:alpha:]]`).

`regex` copies what is repeated at least once: 25 nested `+` would fill any memory before the time
limit is looked at. So the length that a pattern has when written out is bounded too.

What stays different from `re`: beyond ASCII, `\w`, `\d` and `\s` follow `regex`'s Unicode tables (a
combining accent is a `\w`, a superscript two is none; `\x1c` to `\x1f` are no `\s`), and
scoped flags `a` and `u` (`(?a:...)`) may hold for the whole pattern; `\B` matches the empty text.
"""

from __future__ import annotations

import functools
import operator
import re
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .errors import PatternError
from .messages import shorten

if TYPE_CHECKING:
    import regex

LONGEST_PATTERN = 2_000  # characters
LONGEST_WRITTEN_OUT = 50_000  # characters, where each repetition is as many copies as it needs
DEEPEST_NESTING = 100  # groups
SECONDS = 1.0  # of one thread's work
SECONDS_A_MATCH = 1e-5  # a plain match takes a fifth of it

_CURE = "list the modules instead, or write it without nested repetitions"
_TOKEN = re.compile(
    r"""
      \\N\{[^}]*\} | \\.                            # an escape
    | (?P<set> \[\^?\]?(?:\\.|[^\]\\])*\] )
    | \(\?\#[^)]*\)                                 # a remark
    | (?P<flags> \(\?[aiLmsux]+\) )                # of the whole pattern
    | \(\?P=[^)]*\)                                 # a reference
    | \(\?(?P<on>[aiLmsux]*)(?:-(?P<off>[imsx]+))?:
    | (?P<open> \((?:\?(?:P<[^>]*>|<?[=!]|>|\([^)]*\)))? )
    | (?P<close> \) )
    | (?P<repeat> [*+?] | \{(?=[\d,])(?P<least>\d*)(?:,\d*)?\} )
    | .
    """,
    re.VERBOSE | re.DOTALL,
)
_FLAGS = ("ASCII", "IGNORECASE", "MULTILINE", "DOTALL", "VERBOSE")  # not the same numbers in both
_IN_A_SET = re.compile(r"\\N\{[^}]*\}|\\.|[\[/]", re.DOTALL)


def check_expression(pattern: str) -> None:
    r"""Checks that a pattern is one that `match_expressions` can match.

    Raises:
        PatternError: it is no valid expression, or too long, too deeply nested or too large.

    Example:
        >>> check_expression(r".*\.norm_[12]")
    """
    _compile(pattern, "", "")


def match_expressions(
    patterns: Iterable[str], texts: Sequence[str], *, before: str = "", after: str = ""
) -> dict[str, list[str]]:
    r"""Finds, for each pattern, the texts that match it as a whole, as `re.fullmatch` does.

    All of it has one time limit: a second, and what plain matches of so many texts take.

    Args:
        patterns: the expressions; a slash in one stands for a dot that is meant.
        texts: what is matched.
        before: an expression for what may stand before a match.
        after: an expression for what may follow it.

    Raises:
        PatternError: a pattern is no valid expression, is too large, or time has run out.

    Example:
        >>> match_expressions([r".*\bnorm"], ["a.norm", "a.xnorm"])
        {'.*\\bnorm': ['a.norm']}
    """
    patterns = list(dict.fromkeys(patterns))
    # Of this thread's own work: that other programs or threads are busy is no pattern's fault.
    end = time.thread_time() + SECONDS + SECONDS_A_MATCH * len(patterns) * len(texts)
    found: dict[str, list[str]] = {}
    for pattern in patterns:
        expression = _compile(pattern, before, after)
        found[pattern] = [text for text in texts if _matches(expression, pattern, text, end)]
    return found


def _matches(expression: regex.Pattern[str], pattern: str, text: str, end: float) -> bool:
    while (left := end - time.thread_time()) > 0:
        try:
            return expression.fullmatch(text, timeout=left) is not None
        except TimeoutError:
            continue  # its clock counts the work of all threads: there may be time left
        except Exception as error:  # MemoryError among others
            raise PatternError(
                f"the pattern {_quote(pattern)} cannot be matched ({type(error).__name__}): {_CURE}"
            ) from None
    raise PatternError(
        f"it takes too long to match the pattern {_quote(pattern)} against "
        f"{shorten(repr(text), 80)}: {_CURE}"
    )


def _compile(pattern: str, before: str, after: str) -> regex.Pattern[str]:
    """Compiles a pattern, in `re`'s meaning, between two other expressions."""
    import regex  # late: most configs have no expression, and it takes a while

    if len(pattern) > LONGEST_PATTERN:
        raise PatternError(
            f"the pattern {_quote(pattern)} has {len(pattern):,} characters; at most "
            f"{LONGEST_PATTERN:,} are read: list the modules instead"
        )
    try:
        flags = re.compile(pattern).flags
        written = f"{before}(?:{_translate(pattern, flags)}){after}"
        same = (getattr(regex, name) for name in _FLAGS if flags & getattr(re, name))
        return regex.compile(written, functools.reduce(operator.or_, same, regex.VERSION0))
    except PatternError:
        raise
    except re.error as error:
        where = "" if error.pos is None else f" at position {error.pos}"
        raise PatternError(
            f"the pattern {_quote(pattern)} is not a valid regular expression: {error.msg}{where}"
        ) from None
    except Warning as warning:  # where the caller has made warnings errors
        raise PatternError(
            f"the pattern {_quote(pattern)} is unclear: {warning}; put a backslash before a "
            "character that is meant as itself"
        ) from None
    except RecursionError:
        raise _refuse_depth(pattern) from None
    except Exception as error:  # what else `re` or `regex` finds: a count too large, no memory
        raise PatternError(
            f"the pattern {_quote(pattern)} cannot be compiled ({error or type(error).__name__}): "
            f"{_CURE}"
        ) from None


def _translate(pattern: str, flags: int) -> str:
    """Writes a pattern that `re` accepts so that `regex` reads the same.

    Raises:
        PatternError: it is nested too deeply, or too long when written out.
    """
    written: list[str] = []
    verbose = [bool(flags & re.VERBOSE)]  # of each open group
    sizes = [0]  # of each open group so far, written out
    last, is_repeated, place = 0, False, 0  # the size of the last item
    while place < len(pattern):
        if verbose[-1] and pattern[place] in " \t\n\r\v\f":
            written.append(pattern[place])
            place += 1
            continue
        if verbose[-1] and pattern[place] == "#":
            line = pattern.find("\n", place)
            place = len(pattern) if line < 0 else line
            continue
        token = _TOKEN.match(pattern, place)
        assert token is not None  # it takes any character
        text, place = token.group(), token.end()
        if token["flags"]:
            continue
        if token["repeat"] and is_repeated:  # lazy or possessive
            is_repeated = False
        elif token["repeat"]:
            least = 1 if text == "+" else int(token["least"] or 0)
            sizes[-1] += last * least  # `x{2,}` becomes `xxx*`
            is_repeated = True
        elif token["open"] or token["on"] is not None:
            on, off = token["on"] or "", token["off"] or ""
            verbose.append((verbose[-1] or "x" in on) and "x" not in off)
            sizes.append(len(text))
            is_repeated = False
        elif token["close"]:
            verbose.pop()
            last = sizes.pop() + 1
            sizes[-1] += last
            is_repeated = False
        else:
            last, is_repeated = len(text), False
            sizes[-1] += last
        if sizes[-1] > LONGEST_WRITTEN_OUT:
            raise PatternError(
                f"the pattern {_quote(pattern)} is too large: its repetitions written out have "
                f"more than {LONGEST_WRITTEN_OUT:,} characters; {_CURE}"
            )
        if len(sizes) > DEEPEST_NESTING:
            raise _refuse_depth(pattern)
        written.append(_write(text, is_set=token["set"] is not None))
    return "".join(written)


def _write(token: str, *, is_set: bool) -> str:
    """One token in `regex`'s syntax; a slash stands for a dot, as it does in a key."""
    if is_set:
        escapes = {"[": r"\[", "/": ".", r"\/": "."}
        return "[" + _IN_A_SET.sub(lambda m: escapes.get(m[0], m[0]), token[1:-1]) + "]"
    return {"{": r"\{", "/": r"\.", r"\/": r"\."}.get(token, token)


def _refuse_depth(pattern: str) -> PatternError:
    return PatternError(
        f"the pattern {_quote(pattern)} is nested too deeply: list the modules instead"
    )


def _quote(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 80 else pattern[:77] + "...")
