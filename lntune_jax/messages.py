"""What messages have in common: arguments, lists of names, and warnings at the caller's line."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

_OWN = str(Path(__file__).parent)
# These stand between a caller and us where they call our functions back.
_BETWEEN = ("jax", "optax", "flax", "equinox")


class Code(str):
    """A value that stands for itself in a message, as the name of a variable.

    Example:
        >>> str(Argument("base", Code("params")))
        'base=params'
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Argument:
    """An argument that a message names: Python's caller and the command line's spell it otherwise.

    Attributes:
        name: As a function or a config has it.
        value: What is given, or to be given, for it; without one the name stands alone.

    Example:
        >>> str(Argument("overwrite", True)), str(Argument("name_map"))
        ('overwrite=True', 'name_map')
    """

    name: str
    value: Any = ...

    def __str__(self) -> str:
        return self.name if self.value is ... else shorten(f"{self.name}={self.value!r}")


class Advice(tuple["Part", ...]):
    """Parts of a message that are of use only to a reader who can give the arguments in them.

    Example:
        >>> advice = Advice((", and a ", Argument("name_map")))
        >>> write_message(("pass the model", advice)), write_message((advice,), lambda _: None)
        ('pass the model, and a name_map', '')
    """

    def __str__(self) -> str:
        return write_message(self)


Part: TypeAlias = "str | Argument | tuple[Part, ...]"
Message: TypeAlias = "str | tuple[Part, ...]"
Spelling: TypeAlias = Callable[[Argument], "str | None"]


def write_message(parts: Iterable[object], spell: Spelling = str) -> str:
    """The text of a message made of parts, which errors and warnings keep as their `args`.

    Args:
        parts: Texts, arguments, and tuples of such.
        spell: How an argument is written; `None` of one that the reader cannot give. Such a one
            is written as in Python, unless it stands in an `Advice`, which is left out.

    Example:
        >>> parts = ("out exists: pass ", Argument("overwrite", True))
        >>> write_message(parts), write_message(parts, lambda argument: f"--{argument.name}")
        ('out exists: pass overwrite=True', 'out exists: pass --overwrite')
    """
    return "".join(_write_part(part, spell) for part in parts)


def _write_part(part: object, spell: Spelling) -> str:
    if isinstance(part, Argument):
        return spell(part) or str(part)
    if isinstance(part, Advice) and not all(map(spell, _list_arguments(part))):
        return ""
    return write_message(part, spell) if isinstance(part, tuple) else str(part)


def _list_arguments(parts: Iterable[Part]) -> Iterator[Argument]:
    for part in parts:
        if isinstance(part, Argument):
            yield part
        elif isinstance(part, tuple):
            yield from _list_arguments(part)


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
) -> tuple[Part, ...]:
    """What to say of an adapter of which a tree has no leaf.

    Args:
        adapter: its path.
        base: the model it was trained on, where its config says so.
        theirs: the names in the adapter.
        ours: names of the same kind in the tree.

    Example:
        >>> parts = explain_other_model("a", "org/bert", ["bert.norm.bias"], ["model.norm.scale"])
        >>> print(write_message(parts).partition(",")[0])
        the adapter a was trained on another model ('org/bert'): it holds 'bert.norm.bias'
    """
    name = repr(shorten(base)) if base else "its config has no name"
    found = list_names(ours, most=1) if ours else "no norm"
    return (
        f"the adapter {adapter} was trained on another model ({name}): it holds "
        f"{list_names(theirs, most=1)}, and params has {found}. Pass params of that model",
        Advice(
            (
                "; if the names alone differ, or one leaf holds all layers, pass a ",
                Argument("name_map"),
            )
        ),
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


def warn(message: Message, category: type[Warning]) -> None:
    """Warns at the line of the caller's own code that led here, however deep we are.

    That is the innermost frame outside this package and the libraries that call it back. Where
    there is none, as in the command line, it is the outermost frame.

    Args:
        message: what is wrong and how to mend it; parts where it names an argument.
        category: the class of the warning; of ours where there are parts.

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
        category(*((message,) if isinstance(message, str) else message)),
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
