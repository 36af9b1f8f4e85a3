"""Checkpoints: where they are, what their files say, and how they become arrays."""

from .sources import find_directory, read_config
from .weights import draw

__all__ = ["draw", "find_directory", "read_config"]
