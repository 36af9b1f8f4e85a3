"""KerasHub. The tree: `{v.path: v.value for v in model.trainable_variables}`.

Every layer has variables of its own. Offsets are 0 throughout: the Gemma models multiply by one
plus their scale as transformers does (`normed_inputs = normed_inputs * (1 + scale)` in
models/gemma/rms_normalization.py and models/gemma3/gemma3_layers.py), the others by the scale.
"""

from __future__ import annotations

from ..rules import NameMap, NameRule
from .common import list_layer_rules, list_rules

_SOURCE = "keras-hub 0.32.0 on keras 3.15.1, keras_hub/src/models/"
_LAYER = "transformer_layer_{layer}."
_GEMMA_LAYER = "decoder_block_{layer}."

_LLAMA_NORMS = {
    "self_attention_layernorm.scale": "input_layernorm.weight",
    "feedforward_layernorm.scale": "post_attention_layernorm.weight",
}
_QWEN3_NORMS = _LLAMA_NORMS | {
    "self_attention.query_dense_layernorm.scale": "self_attn.q_norm.weight",
    "self_attention.key_dense_layernorm.scale": "self_attn.k_norm.weight",
}
# The first Gemma has no norm after attention: what transformers calls post_attention_layernorm
# there comes before the feed-forward block.
_GEMMA_NORMS = {
    "pre_attention_norm.scale": "input_layernorm.weight",
    "pre_ffw_norm.scale": "post_attention_layernorm.weight",
}
_GEMMA2_NORMS = {
    "pre_attention_norm.scale": "input_layernorm.weight",
    "post_attention_norm.scale": "post_attention_layernorm.weight",
    "pre_ffw_norm.scale": "pre_feedforward_layernorm.weight",
    "post_ffw_norm.scale": "post_feedforward_layernorm.weight",
}
_GEMMA3_NORMS = _GEMMA2_NORMS | {
    "attention.query_norm.scale": "self_attn.q_norm.weight",
    "attention.key_norm.scale": "self_attn.k_norm.weight",
}
_LLAMA_ENDS = (
    *list_rules(
        {
            "sequence_output_layernorm.scale": "model.norm.weight",
            "token_embedding.embeddings": "model.embed_tokens.weight",
        }
    ),
    # Where the head is tied to the embedding there is no such variable.
    NameRule(leaf="token_embedding.reverse_embeddings", parameter="lm_head.weight", transpose=True),
)
_GEMMA_ENDS = list_rules(
    {
        "final_normalization.scale": "model.norm.weight",
        "token_embedding.embeddings": "model.embed_tokens.weight",
    }
)
_BERT_RULES = (
    *list_layer_rules(
        _LAYER,
        {
            "self_attention_layer_norm.gamma": "attention.output.LayerNorm.weight",
            "self_attention_layer_norm.beta": "attention.output.LayerNorm.bias",
            "feedforward_layer_norm.gamma": "output.LayerNorm.weight",
            "feedforward_layer_norm.beta": "output.LayerNorm.bias",
        },
        "bert.encoder.layer.{layer}.",
    ),
    *list_rules(
        {
            "embeddings_layer_norm.gamma": "bert.embeddings.LayerNorm.weight",
            "embeddings_layer_norm.beta": "bert.embeddings.LayerNorm.bias",
            "token_embedding.embeddings": "bert.embeddings.word_embeddings.weight",
            "position_embedding.embeddings": "bert.embeddings.position_embeddings.weight",
            "segment_embedding.embeddings": "bert.embeddings.token_type_embeddings.weight",
            "pooled_dense.bias": "bert.pooler.dense.bias",
            "logits.bias": "classifier.bias",
        }
    ),
    *list_rules(
        {
            "pooled_dense.kernel": "bert.pooler.dense.weight",
            "logits.kernel": "classifier.weight",
        },
        transpose=True,
    ),
)
_GPT2_RULES = (
    *list_layer_rules(
        _LAYER,
        {
            "self_attention_layer_norm.gamma": "ln_1.weight",
            "self_attention_layer_norm.beta": "ln_1.bias",
            "feedforward_layer_norm.gamma": "ln_2.weight",
            "feedforward_layer_norm.beta": "ln_2.bias",
        },
        "transformer.h.{layer}.",
    ),
    *list_rules(
        {
            "layer_norm.gamma": "transformer.ln_f.weight",
            "layer_norm.beta": "transformer.ln_f.bias",
            "token_embedding.embeddings": "transformer.wte.weight",
            "position_embedding.embeddings": "transformer.wpe.weight",
        }
    ),
)


def _list_llama(directory: str, model_type: str) -> NameMap:
    names = _QWEN3_NORMS if model_type == "qwen3" else _LLAMA_NORMS
    return NameMap(
        source=_SOURCE + directory,
        model_types=(model_type,),
        rules=list_layer_rules(_LAYER, names) + _LLAMA_ENDS,
    )


TABLES = {
    "keras_hub_llama": _list_llama("llama and llama3", "llama"),
    "keras_hub_mistral": _list_llama("mistral", "mistral"),
    "keras_hub_qwen2": _list_llama("qwen", "qwen2"),
    "keras_hub_qwen3": _list_llama("qwen3", "qwen3"),
    "keras_hub_gemma": NameMap(
        source=_SOURCE + "gemma",
        model_types=("gemma",),
        rules=list_layer_rules(_GEMMA_LAYER, _GEMMA_NORMS) + _GEMMA_ENDS,
    ),
    "keras_hub_gemma2": NameMap(
        source=_SOURCE + "gemma, with use_post_attention_norm and use_post_ffw_norm",
        model_types=("gemma2",),
        rules=list_layer_rules(_GEMMA_LAYER, _GEMMA2_NORMS) + _GEMMA_ENDS,
    ),
    "keras_hub_gemma3": NameMap(
        source=_SOURCE + "gemma3",
        model_types=("gemma3_text",),
        rules=list_layer_rules(_GEMMA_LAYER, _GEMMA3_NORMS) + _GEMMA_ENDS,
    ),
    "keras_hub_bert": NameMap(source=_SOURCE + "bert", model_types=("bert",), rules=_BERT_RULES),
    "keras_hub_gpt2": NameMap(source=_SOURCE + "gpt2", model_types=("gpt2",), rules=_GPT2_RULES),
}
