"""Adapters in files: saved whole or not at all, and put back onto their base exactly."""

from .store import Adapter, load_adapter, restore_adapter, save_adapter

__all__ = [
    "Adapter",
    "load_adapter",
    "restore_adapter",
    "save_adapter",
]
