"""Small abstract trees, one for each naming that JAX users have, and what must be selected in them.

Each entry of `NAMINGS` is a tree, and the leaf paths that LayerNorm tuning with the default
config must train; every other leaf must stay frozen.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def shape(*axes, dtype="float32"):
    return jax.ShapeDtypeStruct(axes, jnp.dtype(dtype))


def norm(width=8, scale="scale", bias="bias"):
    leaves = {scale: shape(width)}
    return leaves | ({bias: shape(width)} if bias else {})


def dense(fan_in=8, fan_out=8, name="kernel"):
    return {name: shape(fan_in, fan_out), "bias": shape(fan_out)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Block:
    """A dataclass with a None, a norm and a linear layer."""

    norm: dict
    linear: dict
    extra: object = None


class Naming(NamedTuple):
    tree: object
    trainable: set


def both(*modules, scale="scale", bias="bias"):
    return {f"{module}.{leaf}" for module in modules for leaf in (scale, bias) if leaf}


def _torch(*modules):
    flat = {}
    for module, tree in modules:
        flat |= {f"{module}.{name}": leaf for name, leaf in tree.items()}
    return flat


_linen_block = {"LayerNorm_0": norm(), "Dense_0": dense(), "RMSNorm_0": norm(bias=None)}

NAMINGS = {
    "linen": Naming(
        {"params": {"Block_0": _linen_block, "ln_f": norm()}},
        both("Block_0.LayerNorm_0", "ln_f") | {"Block_0.RMSNorm_0.scale"},
    ),
    "linen batch norm beside its statistics": Naming(
        {
            "params": {"norm1": norm(), "norm2": norm(), "BatchNorm_0": norm()},
            "batch_stats": {"norm1": {"mean": shape(8), "var": shape(8)}},
            "cache": {"norm2": norm()},
        },
        both("norm2"),
    ),
    "statistics in the same module": Naming(
        {
            "normalization": norm() | {"mean": shape(8), "var": shape(8)},
            "norm": norm() | {"running_mean": shape(8), "running_var": shape(8)},
            "embedder.norm.num_batches_tracked": shape(dtype="int32"),
            "embedder.norm.weight": shape(8),
            "final_norm": norm(),
        },
        both("final_norm"),
    ),
    "torch-style flat dict": Naming(
        _torch(
            ("model.layers.0.input_layernorm", {"weight": shape(8)}),
            ("model.layers.0.self_attn.q_proj", {"weight": shape(8, 8)}),
            ("model.layers.0.self_attn.q_norm", {"weight": shape(4)}),
            ("transformer.h.0.ln_1", norm(scale="weight")),
            ("transformer.h.0.ln_1x", dense(name="weight")),
            ("bert.embeddings.LayerNorm", norm(scale="gamma", bias="beta")),
            ("encoder/block/0/layer_norm", {"weight": shape(8)}),
        ),
        {
            "model.layers.0.input_layernorm.weight",
            "model.layers.0.self_attn.q_norm.weight",
            "transformer.h.0.ln_1.weight",
            "transformer.h.0.ln_1.bias",
            "bert.embeddings.LayerNorm.gamma",
            "bert.embeddings.LayerNorm.beta",
            "encoder.block.0.layer_norm.weight",
        },
    ),
    "keras": Naming(
        {
            "layer_normalization_3/gamma": shape(8),
            "layer_normalization_3/beta": shape(8),
            "rms_normalization/scale": shape(8),
            "batch_normalization/gamma": shape(8),
            "batch_normalization/beta": shape(8),
            "batch_normalization/moving_mean": shape(8),
            "group_normalization/gamma": shape(8),
            "dense/kernel": shape(8, 8),
            "decoder_block/self_attention_layernorm/gamma": shape(8),
        },
        both("layer_normalization_3", scale="gamma", bias="beta")
        | {"rms_normalization.scale", "decoder_block.self_attention_layernorm.gamma"},
    ),
    "scanned, layers first": Naming(
        {
            "layers": {
                "input_layernorm": {"scale": shape(4, 8)},
                "mlp": {"kernel": shape(4, 8, 16), "bias": shape(4, 16)},
                "norm_proj": {"kernel": shape(4, 8)},
            }
        },
        {"layers.input_layernorm.scale"},
    ),
    "scanned, layers second (MaxText)": Naming(
        {
            "params": {
                "decoder": {
                    "layers": {
                        "pre_self_attention_layer_norm": {"scale": shape(8, 4)},
                        "mlp": {"wi": {"kernel": shape(8, 4, 16)}},
                    },
                    "decoder_norm": {"scale": shape(8)},
                }
            }
        },
        {"decoder.layers.pre_self_attention_layer_norm.scale", "decoder.decoder_norm.scale"},
    ),
    "gemma": Naming(
        {
            "layer_0": {
                "attn": {"_query_norm": {"scale": shape(4)}, "_key_norm": {"scale": shape(4)}},
                "pre_attention_norm": {"scale": shape(8)},
                "post_ffw_norm": {"scale": shape(8)},
                "mlp": {"linear": {"w": shape(8, 8)}},
            },
            "final_norm": {"scale": shape(8)},
        },
        {
            "layer_0.attn._query_norm.scale",
            "layer_0.attn._key_norm.scale",
            "layer_0.pre_attention_norm.scale",
            "layer_0.post_ffw_norm.scale",
            "final_norm.scale",
        },
    ),
    "tunix": Naming(
        {"layers": {0: {"input_layernorm": {"w": shape(8)}}}, "final_norm": {"w": shape(8)}},
        {"layers.0.input_layernorm.w", "final_norm.w"},
    ),
    "t5": Naming(
        {
            "encoder": {
                "block": {"0": {"layer": {"0": {"layer_norm": {"weight": shape(8)}}}}},
                "final_layer_norm": {"weight": shape(8)},
                "relative_attention_bias": {"embedding": shape(4, 2)},
            }
        },
        {"encoder.block.0.layer.0.layer_norm.weight", "encoder.final_layer_norm.weight"},
    ),
    "clip, dinov2, albert, easylm": Naming(
        {
            "vision_model": {"pre_layrnorm": norm(), "post_layernorm": norm()},
            "layer": [{"norm1": norm(), "norm2": norm()}],
            "full_layer_layer_norm": norm(),
            "attention_norm": {"kernel": shape(8)},
            "output_norm": {"kernel": shape(8, 8)},
        },
        both(
            "vision_model.pre_layrnorm",
            "vision_model.post_layernorm",
            "layer.0.norm1",
            "layer.0.norm2",
            "full_layer_layer_norm",
        )
        | {"attention_norm.kernel"},
    ),
    "qwix": Naming(
        {
            "norm_proj": {
                "kernel": {"array": {"qvalue": shape(8, 8, dtype="int8"), "scale": shape(8)}},
                "bias": shape(8),
            },
            "0": {"kernel": {"array": {"scale": shape(8), "bias": shape(8)}}},
            "ln_1": norm(),
        },
        both("ln_1"),
    ),
    "a norm_proj kernel": Naming(
        {
            "norm_proj": {"kernel": shape(8, 8)},
            "norm_mlp": {"weight": shape(4, 8)},
            "norm_in": dense(name="weight"),
            "norm": {"weight": shape(8)},
        },
        {"norm.weight"},
    ),
    "a noun after the norm word": Naming(
        {
            "layernorm_embedding": norm(),  # BART
            "norm_conv": norm(),  # Conformer
            "ln_mlp": norm(),  # Falcon
            "ln_attn": {"scale": shape(4, 8)},  # the same, stacked
            "local_attn_norm": {"scale": shape(8)},
        },
        both("layernorm_embedding", "norm_conv", "ln_mlp")
        | {"ln_attn.scale", "local_attn_norm.scale"},
    ),
    "a scale and a shift on a block itself": Naming(
        {"layers_0": norm() | {"attention": dense()}, "ln": norm()},
        both("ln"),
    ),
    "sequential, by shape": Naming(
        {
            "layers_0": dense(),
            "layers_1": norm(),
            "blocks": [norm(), {"weight": shape(8), "bias": shape(4)}, {"scale": shape(8)}],
            "norms": [{"scale": shape(8)}],
            "offsets": norm(),
        },
        {"norms.0.scale"},  # layers_1 and blocks.0 may be BatchNorms
    ),
    "none and non-array leaves": Naming(
        {"block": Block(norm(), dense(), None), "name": "text", "f": len, "steps": 3, "n": None},
        both("block.norm"),
    ),
    "wrong dtype or axes": Naming(
        {
            "ln_int": {"scale": shape(8, dtype="int8")},
            "ln_scalar": {"scale": shape()},
            "ln_bias_only": {"bias": shape(8)},
            "ln_uneven": {"scale": shape(8), "bias": shape(4)},
            "ln_bf16": {"scale": shape(8, dtype="bfloat16")},
        },
        {"ln_bf16.scale"},
    ),
}


def llama(hidden, layers, intermediate, vocabulary, key_values, tied=False):
    """A Llama tree of torch-style names, abstract: no memory, whatever its size."""
    tree = {"model.embed_tokens.weight": shape(vocabulary, hidden)}
    for index in range(layers):
        block = f"model.layers.{index}"
        tree |= {
            f"{block}.self_attn.q_proj.weight": shape(hidden, hidden),
            f"{block}.self_attn.k_proj.weight": shape(key_values, hidden),
            f"{block}.self_attn.v_proj.weight": shape(key_values, hidden),
            f"{block}.self_attn.o_proj.weight": shape(hidden, hidden),
            f"{block}.mlp.gate_proj.weight": shape(intermediate, hidden),
            f"{block}.mlp.up_proj.weight": shape(intermediate, hidden),
            f"{block}.mlp.down_proj.weight": shape(hidden, intermediate),
            f"{block}.input_layernorm.weight": shape(hidden),
            f"{block}.post_attention_layernorm.weight": shape(hidden),
        }
    tree["model.norm.weight"] = shape(hidden)
    return tree if tied else tree | {"lm_head.weight": shape(vocabulary, hidden)}


def encoder_decoder():
    """A BERT-like tree with an encoder, a decoder and a classifier, as in PEFT's documentation."""
    layer = {
        "attention": {"query": dense(), "layer_norm": norm()},
        "output": {"dense": dense(), "layer_norm": norm()},
    }
    return {
        "embeddings": {"word_embeddings": {"embedding": shape(30, 8)}, "layer_norm": norm()},
        "encoder": {"layer": {"0": layer}},
        "decoder": {"layer": {"0": layer, "1": layer}},
        "classifier": dense(8, 2),
    }


def make_tree(layers: int, *, is_real: bool = False) -> dict:
    def make(*shape: int):
        if is_real:
            return np.ones(shape, np.float32)
        return jax.ShapeDtypeStruct(shape, np.float32)

    def layer() -> dict:
        attention = {f"{name}_proj": {"weight": make(4, 4)} for name in "qkvo"}
        mlp = {f"{name}_proj": {"weight": make(4, 4)} for name in ("gate", "up", "down")}
        norms = {f"{name}_layernorm": {"weight": make(4)} for name in ("input", "post_attention")}
        return {"self_attn": attention, "mlp": mlp, **norms}

    layers = {str(index): layer() for index in range(layers)}
    model = {"embed_tokens": {"weight": make(8, 4)}, "layers": layers}
    return {"model": model | {"norm": {"weight": make(4)}}, "lm_head": {"weight": make(8, 4)}}
