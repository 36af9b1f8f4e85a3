"""The library's messages name arguments of Python; here each becomes the flag that sets it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .._errors import LNTuningError

_WORDS = {
    "pass base=params": "give the base with --model",
    "overwrite=True": "--overwrite",
    "norms_only=True": "--norms-only",
    "Pass the name_map": "Give the --name-map",
    "pass a name_map": "give a --name-map",
    "name_map=": "--name-map ",
    "pass task as": "give --task as",
    "max_new_tokens": "--max-new-tokens",
    "as modules_to_save": "as saved modules",
    "scan_layers=False": "no --scan-layers",
    "scan_layers is True": "--scan-layers is given",
}


@contextmanager
def flags_in_messages() -> Iterator[None]:
    """Raise the errors of the block again, with flags in place of arguments.

    Example:
        >>> with flags_in_messages():
        ...     raise LNTuningError("out exists: pass overwrite=True")
        Traceback (most recent call last):
        lntune_jax._errors.LNTuningError: out exists: pass --overwrite
    """
    try:
        yield
    except LNTuningError as error:
        message = str(error)
        for word, flag in _WORDS.items():
            message = message.replace(word, flag)
        raise type(error)(message) from error
