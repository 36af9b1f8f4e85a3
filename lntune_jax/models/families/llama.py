"""Llama, Mistral, Qwen and Gemma: what tells one from another, their configs, and their files.

Every field that changes a number is honoured or refused by its name. That goes for fields which
only newer versions of transformers have as well: one that is not known here must hold its default.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from . import base as fields
from . import gguf, rotary_decoder
from .base import VARIANTS, WITHOUT_EFFECT, refuse_unknown_fields
from .rope import LAYER_TYPES, read_rope
from .rotary_decoder import ATTENTION_CAP, FINAL_CAP, LayerSettings, Settings, refuse_unread

# Fields that decide what one of these decoders computes, and are read.
HONOURED = (
    *rotary_decoder.HONOURED,
    "hidden_activation",
    "attention_bias",
    "mlp_bias",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "use_bidirectional_attention",
)


@dataclass(frozen=True)
class Traits:
    """What the code of one architecture does, whatever its config says.

    Attributes:
        norm_offset: added to the stored scale of every norm: Gemma keeps scales as offsets.
        query_key_norms: whether each head's queries and keys are normalised.
        feedforward_norms: whether a norm stands before and after the MLP, and one after attention.
        scaled_embeddings: whether embeddings are multiplied by the square root of their width.
        attention_bias: whether queries, keys and values have biases; `None`: the config says.
        output_bias: whether attention's output has one; `None`: as `attention_bias` in the config.
        mlp_bias: whether the config may give the MLP biases.
        activation: the config field with the MLP's activation.
        windows: which layers see a window only: "none", "all", or by the config's "layer_types".
        window_pattern: without layer types in the config, each so many-th layer sees everything;
            0 for Qwen's rule, a number of layers at the start which do.
        scaled_queries: whether `query_pre_attn_scalar` stands for the width of a head.
        caps: the soft caps that the architecture's code applies.
        layered_rope: whether each type of layer has rotary positions of its own.
    """

    norm_offset: float = 0.0
    query_key_norms: bool = False
    feedforward_norms: bool = False
    scaled_embeddings: bool = False
    attention_bias: bool | None = None
    output_bias: bool | None = None
    mlp_bias: bool = False
    activation: str = "hidden_act"
    windows: str = "none"
    window_pattern: int = 0
    scaled_queries: bool = False
    caps: tuple[str, ...] = ()
    layered_rope: bool = False


TRAITS = {
    "llama": Traits(mlp_bias=True),
    "mistral": Traits(attention_bias=False, output_bias=False, windows="all"),
    "qwen2": Traits(attention_bias=True, output_bias=False, windows="layer_types"),
    "qwen3": Traits(query_key_norms=True, windows="layer_types"),
    "gemma": Traits(norm_offset=1.0, scaled_embeddings=True),
    "gemma2": Traits(
        norm_offset=1.0,
        feedforward_norms=True,
        scaled_embeddings=True,
        activation="hidden_activation",
        windows="layer_types",
        window_pattern=2,
        scaled_queries=True,
        caps=(ATTENTION_CAP, FINAL_CAP),
    ),
    "gemma3_text": Traits(
        norm_offset=1.0,
        query_key_norms=True,
        feedforward_norms=True,
        scaled_embeddings=True,
        activation="hidden_activation",
        windows="layer_types",
        window_pattern=6,
        scaled_queries=True,
        # transformers keeps the field for attention's cap in this config and never reads it.
        caps=(FINAL_CAP,),
        layered_rope=True,
    ),
}


def read_settings(config: Any) -> Settings:
    """Read and check the config of a decoder of the Llama family.

    Args:
        config: a `PretrainedConfig` whose `model_type` is in `TRAITS`.

    Raises:
        ModelError: a field holds a value that the models do not honour.
    """
    family = TRAITS[config.model_type]
    fields.refuse_variants(config, VARIANTS)
    refuse_unknown_fields(config, (*HONOURED, *WITHOUT_EFFECT))
    shared = rotary_decoder.read_shared(config)
    width = shared["head_dim"]
    refuse_unread(config, _list_read(family))
    biased = fields.switch(config, "attention_bias", False)
    return Settings(
        **shared,
        layers=_layers(config, family, width),
        activation=_activation(config, family),
        attention_bias=biased if family.attention_bias is None else family.attention_bias,
        output_bias=biased if family.output_bias is None else family.output_bias,
        mlp_bias=fields.switch(config, "mlp_bias", False),
        norm_offset=family.norm_offset,
        query_key_norms=family.query_key_norms,
        feedforward_norms=family.feedforward_norms,
        scaled_embeddings=family.scaled_embeddings,
        attention_scale=_scaled_width(config, family, width) ** -0.5,
        attention_cap=fields.positive_or_none(config, ATTENTION_CAP),
        final_cap=fields.positive_or_none(config, FINAL_CAP),
    )


def _list_read(family: Traits) -> tuple[str, ...]:
    """The fields that the architecture's own code reads, of those that some code passes over."""
    read = {
        "attention_bias": family.attention_bias is not False,
        "mlp_bias": family.mlp_bias,
        "sliding_window": family.windows != "none",
        "layer_types": True,  # What they may say is checked with the layers.
        "query_pre_attn_scalar": family.scaled_queries,
    }
    return (*(field for field, is_read in read.items() if is_read), *family.caps)


def _activation(config: Any, family: Traits) -> str:
    name = fields.activation(config, family.activation)
    if config.model_type != "gemma":
        return name
    # Gemma's first files say "gelu" and mean the approximation; transformers knows.
    name = "gelu_pytorch_tanh" if name == "gelu" else name
    other = fields.read(config, "hidden_activation")
    fields.require("hidden_activation", other, other in (None, name), f"None or {name!r}")
    return name


def _scaled_width(config: Any, family: Traits, width: int) -> float:
    return fields.positive(config, "query_pre_attn_scalar") if family.scaled_queries else width


def _layers(config: Any, family: Traits, width: int) -> tuple[LayerSettings, ...]:
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


def _window(config: Any, family: Traits) -> int | None:
    # Version 4 of transformers leaves the window in Qwen's config when it is switched off.
    if family.windows == "none" or fields.read(config, "use_sliding_window") is False:
        return None
    return fields.size_or_none(config, "sliding_window")


def _layer_types(config: Any, family: Traits, count: int, window: int | None) -> tuple[str, ...]:
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


def _default_types(config: Any, family: Traits, count: int, window: int | None) -> tuple[str, ...]:
    if family.window_pattern:
        pattern = fields.size_or_none(config, "sliding_window_pattern") or family.window_pattern
        return tuple(LAYER_TYPES[(index + 1) % pattern != 0] for index in range(count))
    first = count if window is None else fields.read(config, "max_window_layers")
    fields.require("max_window_layers", first, fields.is_integer(first), "an integer")
    return tuple(LAYER_TYPES[index >= first] for index in range(count))


FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}

# A Mistral is a llama here; one with a window says so.
LLAMA = gguf.Architecture(
    "llama",
    "llama",
    reordered=True,
    keys=(*gguf.OTHER_KEYS, *gguf.ROPE_KEYS, gguf.WINDOW),
    rope_tensors=(gguf.FREQUENCY_FACTORS,),
    windowed="mistral",
)
QWEN2 = gguf.Architecture("qwen2", "qwen2")
QWEN3 = gguf.Architecture("qwen3", "qwen3")

_GELU = "gelu_pytorch_tanh"

GEMMA = gguf.Architecture(
    "gemma",
    "gemma",
    norm_offset=1.0,
    constants={"hidden_act": _GELU},
    space_prefix=False,
)

GEMMA2 = replace(
    GEMMA,
    name="gemma2",
    model_type="gemma2",
    fields={**gguf.FIELDS, **gguf.CAPS},
    keys=(*GEMMA.keys, gguf.WINDOW, gguf.WINDOW_PATTERN),
    constants={
        "hidden_activation": _GELU,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    layer_modules={**gguf.LAYER_MODULES, **FOUR_NORMS},
    window_pattern=2,
    wide_layers=46,
)

GEMMA3 = replace(
    GEMMA2,
    name="gemma3",
    model_type="gemma3_text",
    fields={**gguf.FIELDS, "final_logit_softcapping": "final_logit_softcapping"},
    keys=(*GEMMA2.keys, gguf.LOCAL_ROPE_BASE),
    constants={"hidden_activation": _GELU, "final_logit_softcapping": None},
    window_pattern=6,
    wide_layers=62,
    local_rope=True,
)
