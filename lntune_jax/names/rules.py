"""The types of a name map: a rule, a map of rules, and the place of one parameter in a tree."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import ConfigError
from . import rule_checks as checks


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
        checks.check_rule(self)


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
        checks.check_map(self.rules, NameRule)

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
