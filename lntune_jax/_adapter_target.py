"""Whether a path may receive an adapter: it must be free, or hold an adapter and nothing else.

Replacing a directory deletes what was in it, so nothing is replaced that `save_adapter` did not
write itself.
"""

from __future__ import annotations

import os
from pathlib import Path

from ._adapter_messages import list_names
from ._adapter_metadata import METADATA_FILE, list_files, read_metadata
from ._config import CONFIG_FILE
from ._errors import AdapterError

_ENTRIES = {CONFIG_FILE, METADATA_FILE, "arrays"}


def check_target(target: Path, overwrite: bool) -> None:
    """Refuses a path that exists, unless it is an adapter (or empty) and may be replaced.

    Raises:
        AdapterError: the message says what is there.

    Example:
        >>> check_target(Path("no/such/directory"), overwrite=False)
    """
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise AdapterError(
            f"{target} exists: pass another path, or overwrite=True to replace the adapter there"
        )
    if not target.is_dir():
        raise AdapterError(f"{target} is a file, and overwrite=True replaces adapters only")
    foreign = _list_foreign(target)
    if foreign:
        raise AdapterError(
            f"{target} holds what save_adapter did not write ({list_names(foreign)}), and "
            "overwrite=True replaces adapters only: pass another path, or move these files"
        )


def _list_foreign(target: Path) -> list[str]:
    entries = sorted(path.name for path in target.iterdir())
    if not entries:
        return []
    if METADATA_FILE not in entries:
        return entries
    foreign = [name for name in entries if name not in _ENTRIES]
    try:
        recorded = read_metadata(target).files
    except AdapterError:  # damaged or of another version, but with our files only: an adapter
        return foreign
    return foreign or [
        path for path in list_files(target) if path not in recorded and path != METADATA_FILE
    ]
