"""Reading an adapter directory: all files against their checksums, then each leaf and its record.

What is in the directory is what was saved, bit for bit, or an error says which part is not.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from ..config import CONFIG_FILE, LNTuningConfig
from ..errors import AdapterError, ConfigError
from ..messages import warn
from ..storage.arrays import read_arrays
from ..storage.checksums import METADATA_FILE, check_files
from ..storage.directories import identify, list_asides
from .format import ADAPTER, Kind, Metadata, describe_leaf, read_metadata

ARRAYS_DIRECTORY = "arrays"
_T = TypeVar("_T")
_ATTEMPTS = 10  # to read what another process keeps replacing


class Adapter(NamedTuple):
    """What an adapter directory holds.

    Attributes:
        trainable: `{leaf path: array}`, in the order in which it was saved.
        config: the config it was trained with.

    Example:
        >>> import numpy as np
        >>> adapter = Adapter({"ln.scale": np.ones(2)}, LNTuningConfig())
        >>> list(adapter.trainable), adapter.config.target_modules
        (['ln.scale'], None)
    """

    trainable: dict[str, np.ndarray]
    config: LNTuningConfig


def read_target(target: Path) -> tuple[Path, Adapter, Metadata]:
    """Reads a directory, again if another process replaced it under the reader's hands."""
    directory, (adapter, metadata) = read_settled(target, read_directory)
    return directory, adapter, metadata


def read_settled(target: Path, read: Callable[[Path], _T], kind: Kind = ADAPTER) -> tuple[Path, _T]:
    """Calls `read` with the directory, again while another process replaces it meanwhile."""
    for _ in range(_ATTEMPTS - 1):
        directory = _find_directory(target, kind)
        identity = identify(directory)
        try:
            return directory, read(directory)
        except AdapterError:
            if identify(directory) == identity:
                raise
    directory = _find_directory(target, kind)
    return directory, read(directory)


def read_directory(directory: Path) -> tuple[Adapter, Metadata]:
    """Reads one directory, verifying every file and every leaf.

    Raises:
        AdapterError: names the file or leaf, what was expected and what was found.
    """
    metadata = read_metadata(directory)
    check_files(directory, metadata.files, from_hub=True)  # before other libraries parse them
    try:
        config = LNTuningConfig.from_pretrained(directory)
    except ConfigError as error:
        raise AdapterError(f"{directory / CONFIG_FILE} cannot be used: {error}") from error
    return Adapter(read_leaves(directory, metadata), config), metadata


def read_leaves(directory: Path, metadata: Metadata) -> dict[str, np.ndarray]:
    """Reads the arrays of a directory whose files are sound, each against its record.

    Raises:
        AdapterError: names the leaf, what was expected and what was found.
    """
    shapes = {name: record.shape for name, record in metadata.leaves.items()}
    arrays = read_arrays(directory / ARRAYS_DIRECTORY, shapes)
    for name, record in metadata.leaves.items():
        found = describe_leaf(arrays[name], record.base_dtype)
        for field, expected in record._asdict().items():
            if getattr(found, field) != expected:
                raise AdapterError(
                    f"the leaf {name!r} in {directory} has {field} {getattr(found, field)}, "
                    f"expected {expected}: copy the directory anew from where it came from"
                )
    return arrays


def _find_directory(target: Path, kind: Kind) -> Path:
    """The directory itself, or the older version that a crash while replacing it left beside it."""
    if target.is_dir():
        return target
    if os.path.lexists(target):
        raise AdapterError(f"{target} is a file: pass the directory that {kind.writer} wrote")
    for aside in list_asides(target):
        if (aside / METADATA_FILE).is_file():
            warn(
                f"{target} is missing: replacing it was interrupted. Reading the version before, "
                f"{aside}; rename it to {target.name} to keep it",
                UserWarning,
            )
            return aside
    raise AdapterError(f"there is no {kind.noun} directory {target}: check the path")
