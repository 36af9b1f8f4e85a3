"""The families of models: a file for each, and what they share."""

from .registry import FAMILIES, find_task

__all__ = ["FAMILIES", "find_task"]
