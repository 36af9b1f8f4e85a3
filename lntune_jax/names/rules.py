"""The types of a name map: a rule, a map of rules, and the place of one parameter in a tree."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations
from math import gcd, isfinite

from ..errors import ConfigError
from ..messages import Argument

LAYER = "{layer}"


@dataclass(frozen=True, kw_only=True)
class NameRule:
    """One kind of leaf.

    Attributes:
        leaf: the leaf path in the tree, as `partition_params` writes it. "{layer}" stands for a
            number where each layer has a leaf of its own.
        parameter: the parameter's name in transformers, with "{layer}" for the layer's number.
        layer_axis: the axis along which all layers are stacked in one leaf, or None.
        first: the layer's number in transformers for the first one here (number 0, or index 0).
        stride: how many of transformers' layers lie between one here and the next.
        layers: how many layers the rule has here, where that is known; None for any number.
        offset: what the tree's values have more than transformers': 1.0 where a tree holds
            Gemma's 1 + w and transformers w.
        transpose: whether the matrix (one layer's) is transposed.
        axes: for arrays of other ranks: where in the leaf (one layer's) each axis of transformers'
            array is; (3, 2, 0, 1) for a Flax convolution of two dimensions.

    Raises:
        ConfigError: the fields contradict each other.

    Example:
        A leaf of shape (layers, width), and one that is transposed:

        >>> from lntune_jax.peft import NameRule
        >>> norm = NameRule(
        ...     leaf="blocks.ln_1.scale", parameter="h.{layer}.ln_1.weight", layer_axis=0
        ... )
        >>> head = NameRule(leaf="head.kernel", parameter="lm_head.weight", transpose=True)
        >>> norm.stride, head.layer_axis
        (1, None)
    """

    leaf: str
    parameter: str
    layer_axis: int | None = None
    first: int = 0
    stride: int = 1
    layers: int | None = None
    offset: float = 0.0
    transpose: bool = False
    axes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check_rule(self)


@dataclass(frozen=True, kw_only=True)
class NameMap:
    """The rules of one source for one or several architectures.

    Attributes:
        source: the library, its version, and the file the names were read from.
        model_types: the architectures, as transformers calls them.
        rules: one for each kind of leaf.

    Raises:
        ConfigError: two rules are for one leaf, or give one parameter.

    Example:
        >>> from lntune_jax.peft import NameMap, NameRule
        >>> name_map = NameMap(
        ...     source="my_model.py",
        ...     model_types=("gpt2",),
        ...     rules=(NameRule(leaf="final.scale", parameter="transformer.ln_f.weight"),),
        ... )
        >>> name_map.rules[0].offset
        0.0
    """

    source: str
    model_types: tuple[str, ...]
    rules: tuple[NameRule, ...]

    def __post_init__(self) -> None:
        _check_map(self.rules)

    def with_prefix(self, old: str, new: str) -> NameMap:
        """The same map for a model that holds this one under another name.

        Args:
            old: what parameters begin with here; those that begin with something else stay.
            new: what they begin with there.

        Raises:
            ConfigError: no parameter begins with `old`.

        Example:
            >>> from lntune_jax.peft import NAME_MAPS
            >>> whole = NAME_MAPS["tunix_gemma3"].with_prefix("model.", "model.language_model.")
            >>> whole.rules[0].parameter
            'model.language_model.layers.{layer}.input_layernorm.weight'
        """
        if not any(rule.parameter.startswith(old) for rule in self.rules):
            raise ConfigError(f"no parameter of this name map begins with {old!r}")
        moved = (
            replace(rule, parameter=new + rule.parameter.removeprefix(old))
            if rule.parameter.startswith(old)
            else rule
            for rule in self.rules
        )
        return replace(self, rules=tuple(moved))


@dataclass(frozen=True)
class Place:
    """Where one parameter of transformers lives in a tree.

    Attributes:
        leaf: the leaf path in the tree.
        parameter: the parameter's name in transformers.
        layer_axis: the leaf's axis of layers, or None where the leaf is this parameter alone.
        index: the position along that axis.
        axes: the permutation that turns the leaf's (one layer's) axes into transformers', or None.
        offset: what the leaf's values have more than transformers'.
    """

    leaf: str
    parameter: str
    layer_axis: int | None = None
    index: int = 0
    axes: tuple[int, ...] | None = None
    offset: float = 0.0


def _check_rule(rule: NameRule) -> None:
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


def _check_map(rules: Iterable[NameRule]) -> None:
    """Refuses what is no rule, rules for one leaf, and rules that give one parameter.

    Raises:
        ConfigError: naming both rules.
    """
    if not isinstance(rules, tuple) or not all(isinstance(rule, NameRule) for rule in rules):
        raise ConfigError(
            Argument("name_map"), f": rules must be a tuple of NameRule, not {str(rules)[:200]}"
        )
    for one, other in combinations(rules, 2):
        if one.leaf == other.leaf:
            raise ConfigError(Argument("name_map"), f": two rules are for the leaf {one.leaf!r}")
        if one.parameter == other.parameter and _share_layer(one, other):
            raise ConfigError(
                Argument("name_map"),
                f": the leaves {one.leaf!r} and {other.leaf!r} both give the parameter "
                f"{one.parameter!r}; let first, stride and layers keep their layers apart",
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
