"""How a flag whose default is computed appears in the help text."""

from __future__ import annotations

from tyro.conf import arg


def shown(default: str, metavar: str):
    """A flag's place-holder, and what its default is called."""
    return arg(metavar=metavar, help_behavior_hint=f"(default: {default})")
