"""What GGUF files call fields and tensors, and what can be said of an architecture's files.

The names are those of the `gguf` package (`gguf.constants`, `gguf.tensor_mapping`), which
llama.cpp's converter writes. What a file does not say is what llama.cpp's own code does
(`src/models/gemma2.cpp` and its like). Each family's own facts stand in its file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# Key after the architecture's name: the config field.
FIELDS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
}

CAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}

# The context before it was stretched, where the config has it in a field.
CONTEXT_BEFORE = "rope.scaling.original_context_length"
FIELD_BEFORE = "original_max_position_embeddings"

# Of those, the ones that a file may leave out.
OPTIONAL_FIELDS = (
    "attention.head_count_kv",
    "attention.key_length",
    CONTEXT_BEFORE,
    *CAPS,
)

WINDOW = "attention.sliding_window"

WINDOW_PATTERN = "attention.sliding_window_pattern"

ROPE_BASE = "rope.freq_base"

LOCAL_ROPE_BASE = "rope.freq_base_swa"

ROPE_SCALING = "rope.scaling."

# Key after that: the key of transformers' `rope_parameters`.
ROPE_FIELDS = {
    "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}

ROPE_AMPLITUDE = ROPE_SCALING + "attn_factor"

# Scaling: which of those it reads.
SCALINGS = {"none": (), "linear": ("factor",), "yarn": tuple(ROPE_FIELDS)}

# Read for checks only, or about nothing that is computed.
OTHER_KEYS = ("vocab_size", "tensor_data_layout")

ROPE_KEYS = (
    "attention.value_length",
    "rope.dimension_count",
    ROPE_BASE,
    ROPE_SCALING + "type",
    ROPE_SCALING + "finetuned",
    *(ROPE_SCALING + key for key in ROPE_FIELDS),
)

# Key: the value that means "not in use".
UNUSED = {
    "expert_count": 0,
    "expert_used_count": 0,
    "attention.causal": True,
    ROPE_SCALING + "yarn_ext_factor": 1.0,
}

# What a llama file calls the factors that stretch its frequencies, and the parameters of
# transformers' "llama3" scaling which published models were made with, to be recognised by them.
FREQUENCY_FACTORS = "rope_freqs.weight"

# Tensors with the factors of the scaling "longrope": the key of `rope_parameters`.
LONGROPE_FACTORS = {
    "rope_factors_short.weight": "short_factor",
    "rope_factors_long.weight": "long_factor",
}

LLAMA3_FACTORS = (8.0, 32.0)

LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

TOKENIZER_FIELDS = {
    "tokenizer.ggml.bos_token_id": "bos_token_id",
    "tokenizer.ggml.eos_token_id": "eos_token_id",
    "tokenizer.ggml.padding_token_id": "pad_token_id",
}

# Tensor, without its ending: the module in a bare model.
MODULES = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}

LAYER_MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class Architecture:
    """What the files of one architecture hold.

    Attributes:
        name: what files call it.
        model_type: the one in the config.
        reordered: whether the converter reorders the rows of queries and keys, for llama.cpp's
            way of turning neighbours in place of halves.
        norm_offset: what the converter adds to the scale of every norm.
        fields: the metadata that becomes config fields.
        keys: further keys that are read, or say nothing about what is computed.
        constants: config fields that llama.cpp's code fixes, or has where the file says nothing.
        stack: the module that holds the layers.
        modules: tensor, without its ending: the module.
        layer_modules: the same within a layer.
        transposed: modules whose weights transformers keeps the other way round.
        window_pattern: which layers see everything: every so many-th; 0 for an architecture
            whose layers are alike.
        wide_layers: the number of layers at which queries are scaled by the share of a head in
            the hidden size, in place of the width of a head.
        rotary: whether positions are rotary, and configs those of Llama's kin.
        rope_tensors: tensors that are no weights, but stretch the rotary frequencies.
        partial_rotary: whether a part of each head may turn.
        local_rope: whether layers with a window have rotary positions of their own.
        space_prefix: whether a text gets a space at its beginning.
        doubled_space: whether it gets one even where it begins with a space.
        windowed: the `model_type` of the same computation with a window in every layer.
    """

    name: str
    model_type: str
    reordered: bool = False
    norm_offset: float = 0.0
    fields: dict[str, str] = field(default_factory=lambda: FIELDS)
    keys: tuple[str, ...] = (*OTHER_KEYS, *ROPE_KEYS)
    constants: dict[str, Any] = field(default_factory=lambda: {"hidden_act": "silu"})
    stack: str = "layers"
    modules: dict[str, str] = field(default_factory=lambda: MODULES)
    layer_modules: dict[str, str] = field(default_factory=lambda: LAYER_MODULES)
    transposed: tuple[str, ...] = ()
    window_pattern: int = 0
    wide_layers: int = 0
    rotary: bool = True
    rope_tensors: tuple[str, ...] = ()
    partial_rotary: bool = False
    local_rope: bool = False
    windowed: str | None = None
    space_prefix: bool = True
    doubled_space: bool = False
