"""MaxText. The tree: `state.params`, or `nnx.to_pure_dict(nnx.state(model, nnx.Param))`.

With `scan_layers=true` all layers are stacked in one leaf, along `param_scan_axis`: 1 by default
(the plain names here), 0 in the tables that end in `_axis0`. Those that end in `_unscanned` are
for `scan_layers=false`.

The Gemma models multiply by the scale itself, where transformers multiplies by one plus it, so
their leaves hold one more. From `checkpoint_conversion/utils/param_mapping.py`:

    # MaxText norm = HF norm +1; HF norm = MaxText norm -1

Their embeddings are multiplied by the square root of the width, which is not only a name, so the
tables leave them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..rules import NameMap, NameRule
from .common import list_layer_rules, list_rules

_SOURCE = "maxtext 0.2.5, maxtext/models/{} and checkpoint_conversion/utils/param_mapping.py"
_GEMMA_SOURCE = (
    "maxtext 0.2.5, maxtext/models/gemma.py and "
    "checkpoint_conversion/standalone_scripts/convert_gemma_chkpt.py"
)
_LAYOUTS: dict[str, dict[str, Any]] = {
    "": {"leaves": "decoder.layers.", "layer_axis": 1},
    "_axis0": {"leaves": "decoder.layers.", "layer_axis": 0},
    "_unscanned": {"leaves": "decoder.layers_{layer}."},
}

_LLAMA_LAYER = {
    "pre_self_attention_layer_norm.scale": "input_layernorm.weight",
    "post_self_attention_layer_norm.scale": "post_attention_layernorm.weight",
}
_QWEN3_LAYER = _LLAMA_LAYER | {
    "self_attention.query_norm.scale": "self_attn.q_norm.weight",
    "self_attention.key_norm.scale": "self_attn.k_norm.weight",
}
_GEMMA_LAYER = {
    "pre_self_attention_norm.scale": "input_layernorm.weight",
    "pre_ffw_norm.scale": "post_attention_layernorm.weight",
}
# A layer of MaxText's Gemma 2 is two of transformers', a local one and a global one after it.
_GEMMA2_LOCAL = {
    "pre_self_attention_norm_local.scale": "input_layernorm.weight",
    "post_self_attention_norm_local.scale": "post_attention_layernorm.weight",
    "pre_ffw_norm_local.scale": "pre_feedforward_layernorm.weight",
    "post_ffw_norm_local.scale": "post_feedforward_layernorm.weight",
}
_GEMMA2_GLOBAL = {
    leaf.replace("_local", "_global"): parameter for leaf, parameter in _GEMMA2_LOCAL.items()
}
_GEMMA3_LAYER = {
    "pre_self_attention_norm.scale": "input_layernorm.weight",
    "post_self_attention_norm.scale": "post_attention_layernorm.weight",
    "pre_ffw_norm.scale": "pre_feedforward_layernorm.weight",
    "post_ffw_norm.scale": "post_feedforward_layernorm.weight",
    "self_attention.query_norm.scale": "self_attn.q_norm.weight",
    "self_attention.key_norm.scale": "self_attn.k_norm.weight",
}
_LLAMA_ENDS = (
    *list_rules(
        {
            "decoder.decoder_norm.scale": "model.norm.weight",
            "token_embedder.embedding": "model.embed_tokens.weight",
        }
    ),
    NameRule(leaf="decoder.logits_dense.kernel", parameter="lm_head.weight", transpose=True),
)
_GEMMA_ENDS = list_rules({"decoder.decoder_norm.scale": "model.norm.weight"}, offset=1.0)


def _list_llama(file: str, model_type: str, names: Mapping[str, str]) -> dict[str, NameMap]:
    return {
        f"maxtext_{model_type}{suffix}": NameMap(
            source=_SOURCE.format(file),
            model_types=(model_type,),
            rules=list_layer_rules(names=names, **layout) + _LLAMA_ENDS,
        )
        for suffix, layout in _LAYOUTS.items()
    }


def _list_gemma3(layers: int, layer_axis: int) -> tuple[NameRule, ...]:
    """Blocks of six layers that are scanned, and the layers that fill no block, which are not."""
    blocks, rest = divmod(layers, 6)
    rules = [
        list_layer_rules(
            f"decoder.layers.layers_{place}.",
            _GEMMA3_LAYER,
            layer_axis=layer_axis,
            first=place,
            stride=6,
            layers=blocks,
            offset=1.0,
        )
        for place in range(6)
    ]
    if rest:
        leaves = "decoder.layers_remainder.layers_{layer}."
        rules.append(
            list_layer_rules(leaves, _GEMMA3_LAYER, first=layers - rest, layers=rest, offset=1.0)
        )
    return sum(rules, ()) + _GEMMA_ENDS


TABLES = (
    _list_llama("llama2.py", "llama", _LLAMA_LAYER)
    | _list_llama("mistral.py", "mistral", _LLAMA_LAYER)
    | _list_llama("qwen2.py", "qwen2", _LLAMA_LAYER)
    | _list_llama("qwen3.py", "qwen3", _QWEN3_LAYER)
    | {
        f"maxtext_gemma{suffix}": NameMap(
            source=_GEMMA_SOURCE,
            model_types=("gemma",),
            rules=list_layer_rules(names=_GEMMA_LAYER, offset=1.0, **layout) + _GEMMA_ENDS,
        )
        for suffix, layout in _LAYOUTS.items()
    }
    | {
        f"maxtext_gemma2{suffix}": NameMap(
            source=_SOURCE.format("gemma2.py"),
            model_types=("gemma2",),
            rules=(
                *list_layer_rules(names=_GEMMA2_LOCAL, stride=2, offset=1.0, **layout),
                *list_layer_rules(names=_GEMMA2_GLOBAL, first=1, stride=2, offset=1.0, **layout),
                *_GEMMA_ENDS,
            ),
        )
        for suffix, layout in _LAYOUTS.items()
    }
    | {
        # The number of the first layer outside the blocks depends on the size of the model.
        f"maxtext_gemma3_{size}{suffix}": NameMap(
            source=_SOURCE.format("gemma3.py"),
            model_types=("gemma3_text",),
            rules=_list_gemma3(layers, layer_axis),
        )
        for size, layers in {"4b": 34, "12b": 48, "27b": 62}.items()
        for suffix, layer_axis in {"": 1, "_axis0": 0}.items()
    }
    | {
        "maxtext_gemma3_unscanned": NameMap(
            source=_SOURCE.format("gemma3.py"),
            model_types=("gemma3_text",),
            rules=list_layer_rules(names=_GEMMA3_LAYER, offset=1.0, **_LAYOUTS["_unscanned"])
            + _GEMMA_ENDS,
        )
    }
)
