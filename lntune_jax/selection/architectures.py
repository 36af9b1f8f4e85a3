"""Default targets by architecture. Data only.

`PEFT_TARGETS` is PEFT's table, entry for entry (src/peft/utils/constants.py,
TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING, 0.21), apart from llava, whose three
modules that are no norms stand in `MODULES_TO_SAVE`. `OUR_TARGETS` adds architectures for which
PEFT has no default: every norm of the model, by its transformers name, those of an optional part
(a language-model head, query and key norms) included.

docs/architectures.md shows all of it, with what PEFT's defaults leave out.
"""

_LLAMA = ("input_layernorm", "post_attention_layernorm", "norm")
_GEMMA2 = (*_LLAMA, "pre_feedforward_layernorm", "post_feedforward_layernorm")
_BLOOM = ("input_layernorm", "post_attention_layernorm", "ln_f")
_BART = ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")
_MBART = (*_BART, "layer_norm")
_OLMO2 = ("post_attention_layernorm", "post_feedforward_layernorm", "norm", "q_norm", "k_norm")
_QWEN3_MOE = (*_LLAMA, "q_norm", "k_norm")
_SIGLIP_VISION = ("layer_norm1", "layer_norm2", "post_layernorm", "layernorm")

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
    "deberta": ("LayerNorm",),
    "deberta-v2": ("LayerNorm",),
    "mpnet": ("LayerNorm", "layer_norm"),
    "albert": ("LayerNorm", "full_layer_layer_norm"),
    "distilbert": ("LayerNorm", "sa_layer_norm", "output_layer_norm", "vocab_layer_norm"),
    "modernbert": ("norm", "attn_norm", "mlp_norm", "final_norm"),
    "vit": ("layernorm_before", "layernorm_after", "layernorm"),
    "dinov2": ("norm1", "norm2", "layernorm"),
    "siglip": (*_SIGLIP_VISION, "final_layer_norm"),
    "clip": ("layer_norm1", "layer_norm2", "pre_layrnorm", "post_layernorm", "final_layer_norm"),
    "opt": ("self_attn_layer_norm", "final_layer_norm"),
    "whisper": _MBART,
    "mbart": (*_MBART, "layernorm_embedding"),
    "m2m_100": _MBART,
    "pegasus": _MBART,
    "gpt_neo": ("ln_1", "ln_2", "ln_f"),
    "gpt_bigcode": ("ln_1", "ln_2", "ln_f", "ln_cross_attn"),
    "gpt_neox": ("input_layernorm", "post_attention_layernorm", "final_layer_norm"),
    "phi3": _LLAMA,
    "mixtral": _LLAMA,
    "granite": _LLAMA,
    "smollm3": _LLAMA,
    "starcoder2": _LLAMA,
    "gpt_oss": _LLAMA,
    "stablelm": (*_LLAMA, "q_layernorm", "k_layernorm"),
    "cohere": ("input_layernorm", "norm", "q_norm", "k_norm"),
    "qwen2_moe": _LLAMA,
    "qwen3_moe": _QWEN3_MOE,
    "qwen2_5_vl": (*_LLAMA, "norm1", "norm2", "ln_q"),
    "gemma3": (*_GEMMA2, "q_norm", "k_norm", *_SIGLIP_VISION, "mm_soft_emb_norm"),
    "olmo2": _OLMO2,
}

DEFAULT_TARGETS = PEFT_TARGETS | OUR_TARGETS

MODULES_TO_SAVE: dict[str, tuple[str, ...]] = {
    "llava": ("multi_modal_projector", "embed_tokens", "lm_head"),
}
