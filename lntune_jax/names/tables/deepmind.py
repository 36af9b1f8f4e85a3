"""The gemma library of Google DeepMind (Flax Linen). The tree: the `params` of its checkpoints.

Every layer has leaves of its own. Offsets are 0: the library multiplies by one plus the scale as
transformers does (`normed_inputs = normed_inputs * (1 + scale)` in gemma/gm/nn/_layers.py).
"""

from __future__ import annotations

from ..rules import NameMap
from .common import list_layer_rules, list_rules

_SOURCE = "gemma 4.0.1, gemma/gm/nn/_gemma.py, _modules.py and _layers.py"
_LAYER = "layer_{layer}."

# The first Gemma has no norm after attention: what transformers calls post_attention_layernorm
# there comes before the feed-forward block.
_GEMMA_LAYER = {
    "pre_attention_norm.scale": "input_layernorm.weight",
    "pre_ffw_norm.scale": "post_attention_layernorm.weight",
}
_GEMMA2_LAYER = {
    "pre_attention_norm.scale": "input_layernorm.weight",
    "post_attention_norm.scale": "post_attention_layernorm.weight",
    "pre_ffw_norm.scale": "pre_feedforward_layernorm.weight",
    "post_ffw_norm.scale": "post_feedforward_layernorm.weight",
}
_GEMMA3_LAYER = _GEMMA2_LAYER | {
    "attn._query_norm.scale": "self_attn.q_norm.weight",
    "attn._key_norm.scale": "self_attn.k_norm.weight",
}
_ENDS = list_rules(
    {
        "final_norm.scale": "model.norm.weight",
        "embedder.input_embedding": "model.embed_tokens.weight",
    }
)

TABLES = {
    f"deepmind_{name}": NameMap(
        source=_SOURCE,
        model_types=(model_type,),
        rules=list_layer_rules(_LAYER, names) + _ENDS,
    )
    for name, model_type, names in (
        ("gemma", "gemma", _GEMMA_LAYER),
        ("gemma2", "gemma2", _GEMMA2_LAYER),
        ("gemma3", "gemma3_text", _GEMMA3_LAYER),
    )
}
