"""What a Llama, Mistral, Qwen or Gemma needs from a transformers config, checked field by field.

Every field that changes a number is honoured or refused by its name. That goes for fields which
only newer versions of transformers have as well: one that is not known here must hold its default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import _fields as fields
from ._decoder_names import (
    ATTENTION_CAP,
    FAMILIES,
    FINAL_CAP,
    HONOURED,
    VARIANTS,
    WITHOUT_EFFECT,
    Family,
)
from ._rope import Rope
from ._rope_settings import LAYER_TYPES, read_rope


@dataclass(frozen=True)
class LayerSettings:
    """What one layer differs in: how far back it sees, and its rotary positions."""

    window: int | None
    rope: Rope


@dataclass(frozen=True)
class DecoderSettings:
    """The numbers and switches of one decoder of the Llama family."""

    model_type: str
    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    layers: tuple[LayerSettings, ...]
    activation: str
    epsilon: float
    attention_bias: bool
    output_bias: bool
    mlp_bias: bool
    attention_scale: float
    attention_cap: float | None
    final_cap: float | None
    attention_dropout: float
    tie_word_embeddings: bool
    initializer_range: float
    pad_token_id: int | None
    num_labels: int
    prefix: str = "model"

    @property
    def num_hidden_layers(self) -> int:
        """One for each entry of `layers`."""
        return len(self.layers)


def read_decoder_settings(config: Any) -> DecoderSettings:
    """Read and check the config of a decoder of the Llama family.

    Args:
        config: a `PretrainedConfig` whose `model_type` is in `FAMILIES`.

    Raises:
        ModelError: a field holds a value that the models do not honour.
    """
    family = FAMILIES[config.model_type]
    fields.refuse_variants(config, VARIANTS)
    refuse_unknown_fields(config, (*HONOURED, *WITHOUT_EFFECT))
    heads = fields.size(config, "num_attention_heads")
    width = _head_width(config, heads)
    shared = fields.size_or_none(config, "num_key_value_heads") or heads
    fields.require(
        "num_key_value_heads", shared, heads % shared == 0, f"a divisor of {heads} attention heads"
    )
    _refuse_unread(config, family)
    biased = fields.switch(config, "attention_bias", False)
    attention_bias = biased if family.attention_bias is None else family.attention_bias
    return DecoderSettings(
        model_type=config.model_type,
        family=family,
        vocab_size=fields.size(config, "vocab_size"),
        hidden_size=fields.size(config, "hidden_size"),
        intermediate_size=fields.size(config, "intermediate_size"),
        num_attention_heads=heads,
        num_key_value_heads=shared,
        head_dim=width,
        layers=_layers(config, family, width),
        activation=_activation(config, family),
        epsilon=fields.positive(config, "rms_norm_eps"),
        attention_bias=attention_bias,
        output_bias=biased if family.output_bias is None else family.output_bias,
        mlp_bias=fields.switch(config, "mlp_bias", False),
        attention_scale=_scaled_width(config, family, width) ** -0.5,
        attention_cap=fields.positive_or_none(config, ATTENTION_CAP),
        final_cap=fields.positive_or_none(config, FINAL_CAP),
        attention_dropout=_dropout(config),
        tie_word_embeddings=fields.switch(config, "tie_word_embeddings", False),
        initializer_range=fields.positive(config, "initializer_range"),
        pad_token_id=read_padding(config),
        num_labels=fields.size(config, "num_labels"),
    )


def refuse_unknown_fields(config: Any, known: tuple[str, ...]) -> None:
    """Refuse a field of the config's class that this version does not know, unless unused."""
    for parent in type(config).__mro__:
        if parent.__name__ in ("PreTrainedConfig", "PretrainedConfig"):
            return
        for field in vars(parent).get("__annotations__", {}):
            default = getattr(parent, field, None)
            value = fields.read(config, field)
            accepted = field in known or value == default
            fields.require(field, value, accepted, f"{default!r} (a field unknown to this version)")


def read_padding(config: Any) -> int | None:
    """Read the padding id, which only a sequence classifier looks at."""
    value = fields.read(config, "pad_token_id")
    fields.require("pad_token_id", value, value is None or fields.is_integer(value), "an integer")
    return value


def _head_width(config: Any, heads: int) -> int:
    width = fields.size_or_none(config, "head_dim")
    if width is None:
        hidden = fields.size(config, "hidden_size")
        fields.require(
            "hidden_size", hidden, hidden % heads == 0, f"a multiple of {heads} attention heads"
        )
        width = hidden // heads
    fields.require("head_dim", width, width % 2 == 0, "an even number")
    return width


def _refuse_unread(config: Any, family: Family) -> None:
    """Refuse what the architecture's own code would pass over though another one reads it."""
    unread = {}
    if family.attention_bias is False:
        unread["attention_bias"] = (False, "False, for this architecture")
    if not family.mlp_bias:
        unread["mlp_bias"] = (False, "False, for this architecture")
    if family.windows == "none":
        unread["sliding_window"] = (None, "None, for this architecture")
    if not family.scaled_queries:
        unread["query_pre_attn_scalar"] = (None, "None, for this architecture")
    for cap in (ATTENTION_CAP, FINAL_CAP):
        if cap not in family.caps:
            unread[cap] = (None, "None, for this architecture")
    fields.refuse_variants(config, unread)


def _activation(config: Any, family: Family) -> str:
    name = fields.activation(config, family.activation)
    if config.model_type != "gemma":
        return name
    # Gemma's first files say "gelu" and mean the approximation; transformers knows.
    name = "gelu_pytorch_tanh" if name == "gelu" else name
    other = fields.read(config, "hidden_activation")
    fields.require("hidden_activation", other, other in (None, name), f"None or {name!r}")
    return name


def _scaled_width(config: Any, family: Family, width: int) -> float:
    return fields.positive(config, "query_pre_attn_scalar") if family.scaled_queries else width


def _dropout(config: Any) -> float:
    unset = fields.read(config, "attention_dropout") is None
    return 0.0 if unset else fields.rate(config, "attention_dropout")


def _layers(config: Any, family: Family, width: int) -> tuple[LayerSettings, ...]:
    count = fields.size(config, "num_hidden_layers")
    window = _window(config, family)
    types = _layer_types(config, family, count, window)
    ropes = {
        name: read_rope(
            config,
            width,
            theta=1_000_000.0 if family.layered_rope and name == "full_attention" else 10_000.0,
            layer_type=name if family.layered_rope else None,
        )
        for name in sorted(set(types))
    }
    windows = {"full_attention": None, "sliding_attention": window}
    return tuple(LayerSettings(windows[name], ropes[name]) for name in types)


def _window(config: Any, family: Family) -> int | None:
    # Version 4 of transformers leaves the window in Qwen's config when it is switched off.
    if family.windows == "none" or fields.read(config, "use_sliding_window") is False:
        return None
    return fields.size_or_none(config, "sliding_window")


def _layer_types(config: Any, family: Family, count: int, window: int | None) -> tuple[str, ...]:
    given = fields.read(config, "layer_types")
    if family.windows != "layer_types":
        usual = ("full_attention" if window is None else "sliding_attention",) * count
        accepted = given is None or tuple(given) == usual
        fields.require("layer_types", given, accepted, "None, for this architecture")
        return usual
    types = _default_types(config, family, count, window) if given is None else tuple(given)
    fields.require("layer_types", given, len(types) == count, f"a list of {count}")
    for name in types:
        fields.require("layer_types", given, name in LAYER_TYPES, f"a list of {LAYER_TYPES}")
    if "sliding_attention" in types:
        found = fields.read(config, "sliding_window")
        fields.require("sliding_window", found, window is not None, "a number, for these layers")
    return types


def _default_types(config: Any, family: Family, count: int, window: int | None) -> tuple[str, ...]:
    if family.window_pattern:
        pattern = fields.size_or_none(config, "sliding_window_pattern") or family.window_pattern
        return tuple(LAYER_TYPES[(index + 1) % pattern != 0] for index in range(count))
    first = count if window is None else fields.read(config, "max_window_layers")
    fields.require("max_window_layers", first, fields.is_integer(first), "an integer")
    return tuple(LAYER_TYPES[index >= first] for index in range(count))
