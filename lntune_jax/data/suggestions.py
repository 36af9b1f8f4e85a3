"""Say which of the known names a mistyped one is nearest to."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """A phrase to append to a message, empty when nothing is near.

    Example:
        >>> nearest("txt", ["text", "label"])
        " (did you mean 'text'?)"
        >>> nearest("quux", ["text", "label"])
        ''
    """
    by_lower = {each.lower(): each for each in known}
    matches = difflib.get_close_matches(name.lower(), list(by_lower), n=1)
    return f" (did you mean {by_lower[matches[0]]!r}?)" if matches else ""
