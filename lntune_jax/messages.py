"""How lists of leaf paths and files are written in the messages of adapter errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def list_names(names: Sequence[str], write: Callable[[str], str] = repr, most: int = 5) -> str:
    """The first names of a list, and how many more there are.

    Example:
        >>> list_names(["a", "b", "c"], most=2)
        "'a', 'b' and 1 more"
    """
    shown = ", ".join(shorten(write(name)) for name in names[:most])
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")


def shorten(text: str, most: int = 300) -> str:
    """A name may come from a file, and be of any length."""
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"
