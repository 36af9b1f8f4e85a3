"""Checkpoints: where they are, what their files say, and how they become arrays."""

from .sources import config_from, find_directory, read_config
from .weights import draw

__all__ = ["config_from", "draw", "find_directory", "read_config"]
