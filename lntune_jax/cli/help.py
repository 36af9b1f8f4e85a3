"""The text of `--help`: the types, defaults and docstrings of a command's settings."""

from __future__ import annotations

import ast
import inspect
import itertools
import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, Literal, get_args, get_origin

from .flags import Flag, list_flags

_INDENT = 22
_METAVARS: dict[Any, str] = {int: "INT", float: "FLOAT", str: "TEXT"}


def describe_command(program: str, settings: type) -> str:
    """The help of one command.

    Args:
        program: The program with the command.
        settings: The command's dataclass.

    Example:
        >>> from lntune_jax.cli.options import InspectSettings
        >>> print(describe_command("lntune-jax inspect", InspectSettings).splitlines()[0])
        usage: lntune-jax inspect MODEL [flags]
    """
    flags = list(list_flags(settings))
    needed = " ".join(_usage(flag) for flag in flags if flag.is_required)
    lines = [f"usage: {program} {needed} [flags]".replace("  ", " "), ""]
    for paragraph in (inspect.getdoc(settings) or "").split("\n\n"):
        lines += [*_wrap(paragraph), ""]
    for groups, members in itertools.groupby(flags, lambda flag: flag.groups):
        owner = groups[-1] if groups else settings
        told = read_docstrings(owner)
        if groups:
            lines += ["", *_wrap((inspect.getdoc(owner) or "").rstrip(".") + ":")]
        for flag in members:
            lines += _describe(flag, told.get(flag.name, ""))
    return "\n".join(lines) + "\n"


def describe_program(program: str, about: str, commands: Mapping[str, type]) -> str:
    """The help of the program: what it is, and a line for each command.

    Args:
        program: Its name.
        about: What it is for.
        commands: The dataclass of each command.
    """
    lines = [f"usage: {program} COMMAND [flags]", "", *_wrap(about), ""]
    for name, settings in commands.items():
        lines += _hang(f"  {name}", (inspect.getdoc(settings) or "").split("\n\n")[0], 12)
    lines += [
        "",
        f"{program} COMMAND --help explains one command,",
        f"{program} --version says which version this is.",
    ]
    return "\n".join(lines) + "\n"


def _usage(flag: Flag) -> str:
    return _metavar(flag) if flag.shown.is_positional else f"{flag.written} {_metavar(flag)}"


def _metavar(flag: Flag) -> str:
    if flag.shown.metavar is not None:
        return flag.shown.metavar
    if flag.shown.is_positional:
        return flag.name.upper()
    if get_origin(flag.kind) is Literal:
        return "{" + ",".join(get_args(flag.kind)) + "}"
    return _METAVARS.get(flag.kind, "PATH") + (" ..." if flag.is_list else "")


def _describe(flag: Flag, told: str) -> list[str]:
    notes = []
    if flag.is_required:
        notes.append("required")
    elif flag.kind is not bool:
        default = flag.default
        if isinstance(default, tuple):
            default = " ".join(map(str, default))
        notes.append(f"default: {default if flag.shown.default is None else flag.shown.default}")
    if flag.shown.also:
        notes.append(f"also {', '.join(flag.shown.also)}")
    head = _usage(flag) if flag.kind is not bool else flag.written
    return _hang(f"  {head}", f"{told} ({'; '.join(notes)})" if notes else told, _INDENT)


def _hang(head: str, text: str, indent: int) -> list[str]:
    """A head, and a text in a column beside or below it."""
    lines = textwrap.wrap(
        " ".join(text.split()), _width() - indent, break_on_hyphens=False, break_long_words=False
    )
    if len(head) + 2 > indent:
        return [head, *(" " * indent + line for line in lines)]
    first, *rest = lines or [""]
    return [head.ljust(indent) + first, *(" " * indent + line for line in rest)]


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), _width(), break_on_hyphens=False)


def _width() -> int:
    return min(shutil.get_terminal_size().columns, 100)


def read_docstrings(settings: type) -> dict[str, str]:
    """The string below each field of a dataclass, which Python itself does not keep.

    Fields that a parent describes and the class declares anew keep the parent's string.
    """
    found: dict[str, str] = {}
    for each in reversed(settings.__mro__):
        if is_dataclass(each):
            found |= _read_own(each)
    return found


def _read_own(settings: type) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(settings)))
    (whole,) = tree.body
    assert isinstance(whole, ast.ClassDef)
    found = {}
    for field, below in itertools.pairwise(whole.body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = ast.literal_eval(below.value)
    return found
