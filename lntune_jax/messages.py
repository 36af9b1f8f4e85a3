"""What messages have in common: lists of names, suggestions, warnings at the caller's line."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

_OWN = str(Path(__file__).parent)
# These stand between a caller and us where they call our functions back.
_BETWEEN = ("jax", "optax", "flax", "equinox")


def list_names(names: Sequence[str], write: Callable[[str], str] = repr, most: int = 5) -> str:
    """The first names of a list, and how many more there are.

    Example:
        >>> list_names(["a", "b", "c"], most=2)
        "'a', 'b' and 1 more"
    """
    shown = ", ".join(shorten(write(name)) for name in names[:most])
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")


def nearest(name: str, known: Iterable[str], write: Callable[[str], str] = repr) -> str:
    """Which of the known names a mistyped one is nearest to: a phrase to append to a message.

    Args:
        name: what was given.
        known: what there is.
        write: how a name is written in the message.

    Returns:
        An empty string where nothing is near.

    Example:
        >>> nearest("txt", ["text", "label"])
        " (did you mean 'text'?)"
        >>> nearest("quux", ["text", "label"])
        ''
    """
    by_lower = {each.lower(): each for each in known}
    matches = difflib.get_close_matches(name.lower(), list(by_lower), n=1)
    return f" (did you mean {write(by_lower[matches[0]])}?)" if matches else ""


def explain_other_model(
    adapter: object, base: str | None, theirs: Sequence[str], ours: Sequence[str]
) -> str:
    """What to say of an adapter of which a tree has no leaf.

    Args:
        adapter: its path.
        base: the model it was trained on, where its config says so.
        theirs: the names in the adapter.
        ours: names of the same kind in the tree.

    Example:
        >>> text = explain_other_model("a", "org/bert", ["bert.norm.bias"], ["model.norm.scale"])
        >>> print(text.partition(",")[0])
        the adapter a was trained on another model ('org/bert'): it holds 'bert.norm.bias'
    """
    name = repr(shorten(base)) if base else "its config has no name"
    found = list_names(ours, most=1) if ours else "no norm"
    return (
        f"the adapter {adapter} was trained on another model ({name}): it holds "
        f"{list_names(theirs, most=1)}, and params has {found}. Pass params of that model; if the "
        "names alone differ, or one leaf holds all layers, pass a name_map"
    )


def need_package(package: str, extra: str, what: str, error: type[Exception]) -> None:
    """Check that a package of one of our extras is installed, before it is imported.

    Args:
        package: its name in an import.
        extra: the extra that installs it.
        what: what needs it; the beginning of the message.
        error: the type to raise.

    Example:
        >>> need_package("json", "hf", "reading", ImportError)
        >>> need_package("no_such_package", "hf", "this model", ImportError)
        Traceback (most recent call last):
            ...
        ImportError: this model needs the package no_such_package: pip install 'lntune-jax[hf]'
    """
    if importlib.util.find_spec(package) is None:
        raise error(f"{what} needs the package {package}: pip install 'lntune-jax[{extra}]'")


def shorten(text: str, most: int = 300) -> str:
    """A name may come from a file, and be of any length."""
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"


def warn(message: str, category: type[Warning]) -> None:
    """Warns at the line of the caller's own code that led here, however deep we are.

    That is the innermost frame outside this package and the libraries that call it back. Where
    there is none, as in the command line, it is the outermost frame.

    Args:
        message: what is wrong and how to mend it.
        category: the class of the warning.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn("this has no effect", UserWarning)
        >>> str(caught[0].message), caught[0].category.__name__
        ('this has no effect', 'UserWarning')
    """
    # A stacklevel would have to be counted anew for each way here; skip_file_prefixes needs 3.12.
    folders = tuple(folder + os.sep for folder in _list_folders())
    frame = inspect.currentframe()
    assert frame is not None, "a Python without frames"
    while frame.f_back is not None and frame.f_code.co_filename.startswith(folders):
        frame = frame.f_back
    warnings.warn_explicit(
        message,
        category,
        filename=frame.f_code.co_filename,
        lineno=frame.f_lineno,
        module=frame.f_globals.get("__name__", "sys"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


def _list_folders() -> list[str]:
    """The package's own folder, and those of the libraries between that are loaded."""
    files = (getattr(sys.modules.get(name), "__file__", None) for name in _BETWEEN)
    return [_OWN, *(str(Path(file).parent) for file in files if file)]
