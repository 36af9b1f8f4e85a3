"""Files that a command writes, and a standard output whose reader may leave.

A file that cannot be written is found before anything slow; `COMMAND | head -1` ends quietly.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from ..errors import ConfigError, DataError


def check_output(
    path: Path | None, inputs: Iterable[Path | None] = (), flag: str = "--output"
) -> None:
    """Refuse an --output file that cannot be written, or that is one of the files to be read.

    Args:
        path: The file; `None` is none.
        inputs: Files that the command reads, by whatever names.
        flag: What the file was given by.

    Raises:
        ConfigError: It is a directory or an input, its directory is missing, or it may not be
            written.

    Example:
        >>> check_output(Path("/no/such/place.json"))
        Traceback (most recent call last):
            ...
        lntune_jax.errors.ConfigError: --output /no/such/place.json: there is no directory /no/such
    """
    if path is None:
        return
    for given in inputs:
        if given is not None and _is_same(path, given):
            raise ConfigError(f"{flag} {path} is the file to be read, {given}: give another")
    target = path.resolve()  # a link that leads nowhere yet is written through
    if target.is_dir():
        raise ConfigError(f"{flag} {path} is a directory; give the name of a file")
    if not target.parent.is_dir():
        what = "is a file" if target.parent.exists() else "there is no directory"
        where = f"{target.parent} {what}" if what == "is a file" else f"{what} {target.parent}"
        raise ConfigError(f"{flag} {path}: {where}")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise ConfigError(f"{flag} {path} may not be written: give another, or its permissions")


def write_output(path: Path, content: str, flag: str = "--output") -> None:
    """Write a whole file.

    Raises:
        DataError: If it cannot be written.
    """
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{flag} {path} cannot be written: {error.strerror or error}") from error


def drop_stdout() -> None:
    """Let everything more that is printed vanish: its reader has left."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        # What is in the buffer goes there too, when Python flushes it at its end.
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError, AttributeError):
        sys.stdout = None


def flush_stdout() -> None:
    """Print what is in the buffer, here and not when Python ends, where nobody catches a fault."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            drop_stdout()


def _is_same(path: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.samefile(other)  # through links of both kinds
    return path.resolve() == other.resolve()
