"""What is refused in a name map when it is made, before any tree is at hand."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from math import gcd, isfinite
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from .rules import NameRule

LAYER = "{layer}"


def check_rule(rule: NameRule) -> None:
    """Refuses a rule whose fields contradict each other.

    Raises:
        ConfigError: naming the leaf and the field.
    """
    where = f"the rule for leaf {rule.leaf!r}: "
    for field in ("leaf", "parameter"):
        text = getattr(rule, field)
        if not isinstance(text, str) or not text:
            raise ConfigError(f"{where}{field} must be a name, not {text!r}")
        if text.count(LAYER) > 1 or set("{}") & set(text.replace(LAYER, "")):
            raise ConfigError(f"{where}{field} {text!r} may hold '{LAYER}' once and no other brace")
    by_name, stacked = LAYER in rule.leaf, rule.layer_axis is not None
    if by_name and stacked:
        raise ConfigError(f"{where}it has a layer number and layer_axis; only one can be")
    if LAYER in rule.parameter and not (by_name or stacked):
        raise ConfigError(
            f"{where}parameter {rule.parameter!r} has a layer number, so leaf must have one too "
            "or layer_axis be given"
        )
    if LAYER not in rule.parameter and (by_name or stacked):
        raise ConfigError(
            f"{where}it is for several layers, so parameter {rule.parameter!r} must hold '{LAYER}'"
        )
    _check_numbers(rule, where)


def check_map(rules: Iterable[NameRule], kind: type) -> None:
    """Refuses what is no rule, rules for one leaf, and rules that give one parameter.

    Raises:
        ConfigError: naming both rules.
    """
    if not isinstance(rules, tuple) or not all(isinstance(rule, kind) for rule in rules):
        raise ConfigError(f"name_map: rules must be a tuple of NameRule, not {str(rules)[:200]}")
    for one, other in combinations(rules, 2):
        if one.leaf == other.leaf:
            raise ConfigError(f"name_map: two rules are for the leaf {one.leaf!r}")
        if one.parameter == other.parameter and _share_layer(one, other):
            raise ConfigError(
                f"name_map: the leaves {one.leaf!r} and {other.leaf!r} both give the parameter "
                f"{one.parameter!r}; let first, stride and layers keep their layers apart"
            )


def _check_numbers(rule: NameRule, where: str) -> None:
    least = {"layer_axis": 0, "first": 0, "stride": 1, "layers": 1}
    for field, minimum in least.items():
        number = getattr(rule, field)
        if number is None and field in ("layer_axis", "layers"):
            continue
        if not isinstance(number, int) or isinstance(number, bool) or number < minimum:
            raise ConfigError(f"{where}{field} must be an integer from {minimum}, not {number!r}")
    if LAYER not in rule.parameter and (rule.first, rule.stride, rule.layers) != (0, 1, None):
        raise ConfigError(f"{where}first, stride and layers are for leaves of numbered layers")
    axes = rule.axes
    if axes is not None and (rule.transpose or sorted(axes) != list(range(len(axes)))):
        raise ConfigError(
            f"{where}axes must be a permutation such as (1, 0), without transpose, not {axes!r}"
        )
    if not isinstance(rule.transpose, bool):
        raise ConfigError(f"{where}transpose must be True or False, not {rule.transpose!r}")
    if not isinstance(rule.offset, int | float) or not isfinite(rule.offset):
        raise ConfigError(f"{where}offset must be a finite number, not {rule.offset!r}")


def _share_layer(one: NameRule, other: NameRule) -> bool:
    """Whether two rules for one parameter name have a layer of transformers in common."""
    if one.layers is None and other.layers is None:
        return (one.first - other.first) % gcd(one.stride, other.stride) == 0
    if one.layers is None:
        one, other = other, one
    numbers = range(one.first, one.first + one.stride * (one.layers or 0), one.stride)
    return any(
        number >= other.first
        and (number - other.first) % other.stride == 0
        and (other.layers is None or (number - other.first) // other.stride < other.layers)
        for number in numbers
    )
