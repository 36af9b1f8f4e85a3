"""Norms found by tracing a model: what normalises is a norm, whatever it is called."""

from .trace import discover_norms

__all__ = [
    "discover_norms",
]
