"""What an adapter for a bank may be given as: an `Adapter`, a dict of leaves, or a directory.

A directory is ours or PEFT's, told by its files, and is read strictly against the base.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from ._adapter import read_fitting
from ._adapter_metadata import METADATA_FILE
from ._adapter_reading import Adapter
from ._config import LNTuningConfig
from ._errors import AdapterError
from ._files import resolve_path
from ._peft_files import WEIGHTS_FILE
from ._peft_import import load_peft

Source: TypeAlias = "Adapter | Mapping[str, Any] | str | os.PathLike[str]"


def read_source(
    source: Source, params: Any, norms: Iterable[str] | None = None
) -> Adapter | Mapping[str, Any]:
    """Reads a directory; anything else is returned as it is.

    Raises:
        AdapterError: the directory is no adapter, does not fit `params`, or `params` is None.

    Example:
        >>> read_source({"ln.scale": 1.0}, None)
        {'ln.scale': 1.0}
    """
    if not isinstance(source, str | os.PathLike):
        return source
    if params is None:
        raise AdapterError(
            f"{str(source)!r} is the path of an adapter, which is checked against its base: pass "
            "params=, the base's tree"
        )
    directory = resolve_path(source)
    is_ours, is_peft = ((directory / name).is_file() for name in (METADATA_FILE, WEIGHTS_FILE))
    if is_ours and is_peft:
        raise AdapterError(
            f"{directory} holds {METADATA_FILE} and {WEIGHTS_FILE}, two adapters: move one of them "
            "into a directory of its own"
        )
    if is_peft or _holds_config_only(directory):
        return load_peft(directory, params, norms=norms)
    return read_fitting(directory, params)[0]


def describe_source(adapter: Adapter | Mapping[str, Any], leaves: Mapping[str, Any]) -> Adapter:
    """The adapter with its config; a dict gets one that selects its leaves.

    Args:
        adapter: what `read_source` gave.
        leaves: for each leaf path, an array of the shape that the base has there.
    """
    if isinstance(adapter, Adapter):
        return adapter
    if not isinstance(adapter, Mapping):
        raise AdapterError(
            "an adapter must be an Adapter, a dict of leaf paths or a path, not "
            f"{type(adapter).__name__}"
        )
    return Adapter(dict(adapter), select_paths(adapter, leaves))


def select_paths(paths: Iterable[str], leaves: Mapping[str, Any]) -> LNTuningConfig:
    """A config that selects exactly these leaves: vectors as norms, modules of matrices whole.

    Example:
        >>> import numpy as np
        >>> select_paths(["scale"], {"scale": np.ones(2)}).target_modules
        ('scale',)
    """
    listed = list(paths)
    matrices = [path for path in listed if path in leaves and leaves[path].ndim > 1]
    saved = tuple(dict.fromkeys(path.rpartition(".")[0] for path in matrices))
    others = [path for path in listed if path.rpartition(".")[0] not in saved]
    return LNTuningConfig(
        target_modules=tuple(others) or None,  # paths of leaves: each matches itself alone
        modules_to_save=saved or None,
    )


def _holds_config_only(directory: Path) -> bool:
    """PEFT's pickles and unfinished directories: its reader says best what is wrong with them."""
    return (directory / "adapter_config.json").is_file() and not (
        directory / METADATA_FILE
    ).is_file()
