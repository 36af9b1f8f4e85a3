"""Tunix (Flax NNX). The tree: `nnx.to_pure_dict(nnx.state(model, nnx.Param))`.

Every layer has leaves of its own. Offsets are 0 throughout: the Llama and Qwen models hold the
scale that transformers holds, and the Gemma models multiply by one plus theirs as transformers
does (`normed_inputs = normed_inputs * (1 + scale)` in gemma/model.py and gemma3/model.py).
"""

from __future__ import annotations

from ..rules import NameMap, NameRule
from .common import list_layer_rules, list_rules

_SOURCE = "google-tunix 0.1.7, tunix/models/"
_LAYER = "layers.{layer}."

_LLAMA_LAYER = {
    "input_layernorm.w": "input_layernorm.weight",
    "post_attention_layernorm.w": "post_attention_layernorm.weight",
}
_QWEN3_LAYER = _LLAMA_LAYER | {
    "attn.q_norm.w": "self_attn.q_norm.weight",
    "attn.k_norm.w": "self_attn.k_norm.weight",
}
# The first Gemma has no norm after attention: what transformers calls post_attention_layernorm
# there comes before the feed-forward block.
_GEMMA_LAYER = {
    "pre_attention_norm.scale": "input_layernorm.weight",
    "pre_ffw_norm.scale": "post_attention_layernorm.weight",
}
_GEMMA2_LAYER = {
    "pre_attention_norm.scale": "input_layernorm.weight",
    "post_attn_norm.scale": "post_attention_layernorm.weight",
    "pre_ffw_norm.scale": "pre_feedforward_layernorm.weight",
    "post_ffw_norm.scale": "post_feedforward_layernorm.weight",
}
_GEMMA3_LAYER = {
    "pre_attention_norm.scale": "input_layernorm.weight",
    "post_attention_norm.scale": "post_attention_layernorm.weight",
    "pre_ffw_norm.scale": "pre_feedforward_layernorm.weight",
    "post_ffw_norm.scale": "post_feedforward_layernorm.weight",
    "attn._query_norm.scale": "self_attn.q_norm.weight",
    "attn._key_norm.scale": "self_attn.k_norm.weight",
}
_LLAMA_ENDS = (
    *list_rules(
        {
            "final_norm.w": "model.norm.weight",
            "embedder.input_embedding": "model.embed_tokens.weight",
        }
    ),
    # Where the head is tied to the embedding there is no such leaf.
    NameRule(leaf="lm_head.w", parameter="lm_head.weight", transpose=True),
)
_GEMMA_ENDS = list_rules(
    {
        "final_norm.scale": "model.norm.weight",
        "embedder.input_embedding": "model.embed_tokens.weight",
    }
)

TABLES = {
    "tunix_llama3": NameMap(
        source=_SOURCE + "llama3/model.py and params.py",
        model_types=("llama",),
        rules=list_layer_rules(_LAYER, _LLAMA_LAYER) + _LLAMA_ENDS,
    ),
    "tunix_qwen2": NameMap(
        source=_SOURCE + "qwen2/model.py and params.py",
        model_types=("qwen2",),
        rules=list_layer_rules(_LAYER, _LLAMA_LAYER) + _LLAMA_ENDS,
    ),
    "tunix_qwen3": NameMap(
        source=_SOURCE + "qwen3/model.py and params.py",
        model_types=("qwen3",),
        rules=list_layer_rules(_LAYER, _QWEN3_LAYER) + _LLAMA_ENDS,
    ),
    "tunix_gemma": NameMap(
        source=_SOURCE + "gemma/model.py",
        model_types=("gemma",),
        rules=list_layer_rules(_LAYER, _GEMMA_LAYER) + _GEMMA_ENDS,
    ),
    "tunix_gemma2": NameMap(
        source=_SOURCE + "gemma/model.py and params_safetensors.py",
        model_types=("gemma2",),
        rules=list_layer_rules(_LAYER, _GEMMA2_LAYER) + _GEMMA_ENDS,
    ),
    "tunix_gemma3": NameMap(
        source=_SOURCE + "gemma3/model.py and params_safetensors.py",
        model_types=("gemma3_text",),
        rules=list_layer_rules(_LAYER, _GEMMA3_LAYER) + _GEMMA_ENDS,
    ),
}
