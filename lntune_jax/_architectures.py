"""Default targets by architecture. Data only.

`PEFT_TARGETS` is PEFT's table, entry for entry (src/peft/utils/constants.py,
TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING, 0.21), apart from llava, whose three
modules that are no norms stand in `MODULES_TO_SAVE`. `OUR_TARGETS` adds architectures for which
PEFT has no default: every norm of the model, by its transformers name.
"""

_LLAMA = ("input_layernorm", "post_attention_layernorm", "norm")
_GEMMA2 = (*_LLAMA, "pre_feedforward_layernorm", "post_feedforward_layernorm")
_BLOOM = ("input_layernorm", "post_attention_layernorm", "ln_f")
_BART = ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")
_WHISPER = (*_BART, "layer_norm")
_OLMO2 = ("post_attention_layernorm", "post_feedforward_layernorm", "norm", "q_norm", "k_norm")
_QWEN3_MOE = (*_LLAMA, "q_norm", "k_norm")

PEFT_TARGETS: dict[str, tuple[str, ...]] = {
    "llama": _LLAMA,
    "bloom": _BLOOM,
    "llava": _LLAMA,
    "t5": ("layer_norm", "final_layer_norm"),
    "mt5": ("layer_norm", "final_layer_norm"),
    "bart": _BART,
    "gpt2": ("ln_1", "ln_2", "ln_f"),
    "blip-2": ("layernorm", "LayerNorm", "final_layer_norm", "self_attn_layer_norm"),
    "gptj": ("ln_1", "ln_f"),
    "falcon": _BLOOM,
    "mistral": _LLAMA,
    "phi": ("input_layernorm", "final_layernorm"),
    "gemma": _LLAMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
    "qwen2": ("post_attention_layernorm",),
    "qwen3": ("post_attention_layernorm",),
}

OUR_TARGETS: dict[str, tuple[str, ...]] = {
    "bert": ("LayerNorm",),
    "roberta": ("LayerNorm", "layer_norm"),
    "xlm-roberta": ("LayerNorm", "layer_norm"),
    "electra": ("LayerNorm",),
    "deberta-v2": ("LayerNorm",),
    "distilbert": ("LayerNorm", "sa_layer_norm", "output_layer_norm", "vocab_layer_norm"),
    "modernbert": ("norm", "attn_norm", "mlp_norm", "final_norm"),
    "vit": ("layernorm_before", "layernorm_after", "layernorm"),
    "clip": ("layer_norm1", "layer_norm2", "pre_layrnorm", "post_layernorm", "final_layer_norm"),
    "opt": ("self_attn_layer_norm", "final_layer_norm"),
    "whisper": _WHISPER,
    "gpt_neox": ("input_layernorm", "post_attention_layernorm", "final_layer_norm"),
    "phi3": _LLAMA,
    "mixtral": _LLAMA,
    "granite": _LLAMA,
    "smollm3": _LLAMA,
    "qwen2_moe": _LLAMA,
    "qwen3_moe": _QWEN3_MOE,
    "gemma3": (*_GEMMA2, "q_norm", "k_norm"),
    "olmo2": _OLMO2,
}

DEFAULT_TARGETS = PEFT_TARGETS | OUR_TARGETS

MODULES_TO_SAVE: dict[str, tuple[str, ...]] = {
    "llava": ("multi_modal_projector", "embed_tokens", "lm_head"),
}
