"""A model's config and weights, whatever files they are in."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ._directory import config_of, read_config
from ._files import open_weights
from ._gguf import open_gguf

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ._files import Weights
    from ._gguf import GgufFile


@contextmanager
def open_source(path: Path) -> Iterator[tuple[Any, Weights | GgufFile]]:
    """Give the config and the weights, open while the block runs.

    Args:
        path: a model directory, or a GGUF file.

    Raises:
        ModelError: a file is missing, damaged, or holds what is not supported.
    """
    if path.is_file():
        with open_gguf(path) as file:
            yield config_of(file.config(), str(path)), file
    else:
        config = read_config(path)
        with open_weights(path) as weights:
            yield config, weights


def config_from(path: Path) -> Any:
    """Give the config alone.

    Raises:
        ModelError: as `open_source`.
    """
    if not path.is_file():
        return read_config(path)
    with open_gguf(path) as file:
        return config_of(file.config(), str(path))
