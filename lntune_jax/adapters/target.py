"""Whether a path may receive an adapter: it must be free, or hold an adapter and nothing else.

Replacing a directory deletes what was in it, so nothing is replaced that `save_adapter` did not
write itself.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import AdapterError
from ..messages import list_names
from ..storage.checksums import METADATA_FILE, list_files
from ..storage.directories import identify
from .format import ADAPTER, Kind, read_metadata

_ATTEMPTS = 20  # at a target that other processes replace at the same moment


def check_target(target: Path, overwrite: bool, kind: Kind = ADAPTER) -> None:
    """Refuses a path that exists, unless it is an adapter (or empty) and may be replaced.

    A bank of adapters may be replaced by another likewise; `kind` says which of the two.

    Raises:
        AdapterError: the message says what is there.

    Example:
        >>> check_target(Path("no/such/directory"), overwrite=False)
    """
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise AdapterError(
            f"{target} exists: pass another path, or overwrite=True to replace the {kind.noun} "
            "there"
        )
    if not target.is_dir():
        raise AdapterError(f"{target} is a file, and overwrite=True replaces {kind.noun}s only")
    foreign = _list_settled(target, kind)
    if foreign:
        raise AdapterError(
            f"{target} holds what {kind.writer} did not write ({list_names(foreign)}), and "
            f"overwrite=True replaces {kind.noun}s only: pass another path, or move these files"
        )


def _list_settled(target: Path, kind: Kind) -> list[str]:
    """What is foreign in one directory: looked at again if another process replaced it meanwhile.

    Else the record of the older adapter would be held against the files of the newer one.
    """
    foreign: list[str] = []
    for _ in range(_ATTEMPTS):
        before = identify(target)
        try:
            foreign = _list_foreign(target, kind)
        except FileNotFoundError:  # away for a moment, where the system cannot exchange two
            continue
        if not foreign or identify(target) == before:
            break
    return foreign


def _list_foreign(target: Path, kind: Kind) -> list[str]:
    entries = sorted(path.name for path in target.iterdir())
    if not entries:
        return []
    if METADATA_FILE not in entries:
        return entries
    foreign = [name for name in entries if name not in kind.entries]
    try:
        recorded = read_metadata(target, kind).files
    except AdapterError:  # damaged or of another version, but with our files only: an adapter
        return foreign
    return foreign or [
        path for path in list_files(target) if path not in recorded and path != METADATA_FILE
    ]
