"""How a table lists the leaves of its layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..rules import NameRule


def list_rules(names: Mapping[str, str], **fields: Any) -> tuple[NameRule, ...]:
    """One rule for each leaf and its parameter in `names`, with the same other fields."""
    return tuple(NameRule(leaf=leaf, parameter=name, **fields) for leaf, name in names.items())


def list_layer_rules(
    leaves: str,
    names: Mapping[str, str],
    parameters: str = "model.layers.{layer}.",
    **fields: Any,
) -> tuple[NameRule, ...]:
    """As `list_rules`, with what stands before the names of a layer's leaves and parameters."""
    full = {leaves + leaf: parameters + parameter for leaf, parameter in names.items()}
    return list_rules(full, **fields)
