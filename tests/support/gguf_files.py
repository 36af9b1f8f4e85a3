"""GGUF files of the decoders, written as llama.cpp's converter writes them.

The names of tensors and fields are those of the `gguf` package's own tables, not of ours.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

from tests.support.checkpoints import REFERENCE

DECODERS = REFERENCE / "decoders"
ARCHITECTURES = {
    "gemma": gguf.MODEL_ARCH.GEMMA,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "gpt2": gguf.MODEL_ARCH.GPT2,
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "olmo2": gguf.MODEL_ARCH.OLMO2,
    "phi3": gguf.MODEL_ARCH.PHI3,
}
# A config alone: its weights are those of another folder.
WEIGHTS = {"phi3_longrope": "phi3", "phi3_no_window": "phi3"}
FACTORS = {
    "short_factor": gguf.MODEL_TENSOR.ROPE_FACTORS_SHORT,
    "long_factor": gguf.MODEL_TENSOR.ROPE_FACTORS_LONG,
}
TURNED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def checkpoint(name: str) -> tuple[dict, dict]:
    """A reference checkpoint, as far as a GGUF file can hold it: no biases, no odd activation."""
    config = json.loads((DECODERS / name / "config.json").read_text())
    tensors = load_file(DECODERS / WEIGHTS.get(name, name) / "model.safetensors")
    kind = config["model_type"]
    changes: dict = {"pad_token_id": None, "initializer_range": 0.02}
    if kind == "gpt2":
        changes |= {"activation_function": "gelu_new", "n_inner": config["n_inner"] or 96}
        changes |= {"scale_attn_by_inverse_layer_idx": False, "scale_attn_weights": True}
        changes |= {"reorder_and_upcast_attn": False}
        changes |= {"layer_norm_epsilon": float(np.float32(config["layer_norm_epsilon"]))}
    else:
        changes["rms_norm_eps"] = float(np.float32(1e-3))
    if kind.startswith("gemma"):
        activation = "hidden_act" if kind == "gemma" else "hidden_activation"
        changes |= {activation: "gelu_pytorch_tanh", "attention_bias": False}
        changes["tie_word_embeddings"] = True
    if kind in ("gemma2", "gemma3_text"):
        changes["query_pre_attn_scalar"] = config["head_dim"]
        period = 2 if kind == "gemma2" else 6
        count = config["num_hidden_layers"]
        names = ("sliding_attention", "full_attention")
        changes["layer_types"] = [names[index % period == period - 1] for index in range(count)]
    if kind == "mistral":
        changes["hidden_act"] = "silu"
        if config["sliding_window"] is None:
            # The same computation: a file calls both of them a llama.
            changes["model_type"] = "llama"
    if kind in ("olmo2", "phi3"):
        changes["hidden_act"] = "silu"
    if config.get("rope_parameters", {}).get("rope_type") == "longrope":
        amplitude = float(np.float32(longrope_amplitude(config)))
        changes["rope_parameters"] = config["rope_parameters"] | {"attention_factor": amplitude}
    # OLMo 2's biases are among what the converter has names for.
    left_out = () if kind in ("gpt2", "olmo2") else ("bias",)
    left_out += ("lm_head.weight",) if kind.startswith("gemma") else ()
    return config | changes, {
        key: tensor for key, tensor in tensors.items() if not key.endswith(left_out or "-")
    }


def longrope_amplitude(config: dict) -> float:
    """What the converter computes for a Phi-3."""
    before = config["original_max_position_embeddings"]
    stretch = config["max_position_embeddings"] / before
    return math.sqrt(1 + math.log(stretch) / math.log(before)) if stretch > 1 else 1.0


def permuted(array: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to the rows of queries and keys of a Llama."""
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def turned(config: dict, key: str) -> bool:
    """Whether transformers keeps a matrix the other way round: in GPT-2's `Conv1D`."""
    return config["model_type"] == "gpt2" and key.endswith(TURNED)


def converted(config: dict, key: str, tensor: np.ndarray) -> np.ndarray:
    """What the converter makes of one tensor."""
    array = tensor.astype(np.float32)
    kind = config["model_type"]
    if kind.startswith("gemma") and key.endswith("norm.weight"):
        return array + np.float32(1)
    if turned(config, key):
        return np.ascontiguousarray(array.T)
    if kind in ("llama", "mistral") and key.endswith(("q_proj.weight", "k_proj.weight")):
        name = "num_attention_heads" if "q_proj" in key else "num_key_value_heads"
        return permuted(array, config[name])
    return array


def add_fields(writer: gguf.GGUFWriter, config: dict) -> None:
    """What the converter's `set_gguf_parameters` writes."""
    kind = config["model_type"]
    if kind == "gpt2":
        writer.add_block_count(config["n_layer"])
        writer.add_context_length(config["n_positions"])
        writer.add_embedding_length(config["n_embd"])
        writer.add_feed_forward_length(config["n_inner"])
        writer.add_head_count(config["n_head"])
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
        return
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if kind == "phi3":
        add_phi3_fields(writer, config)
        return
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    if kind in ("llama", "mistral"):
        writer.add_vocab_size(config["vocab_size"])
        writer.add_rope_dimension_count(config["head_dim"])
    rope = config["rope_parameters"]
    whole = rope.get("full_attention", rope)
    writer.add_rope_freq_base(whole["rope_theta"])
    if whole["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(whole["factor"])
    if "sliding_attention" in rope:
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
    if config.get("sliding_window") is not None:
        writer.add_sliding_window(config["sliding_window"])
    if config.get("attn_logit_softcapping") is not None:
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    if config.get("final_logit_softcapping") is not None:
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])


def add_phi3_fields(writer: gguf.GGUFWriter, config: dict) -> None:
    """What the converter's class for Phi-3 writes beside the usual fields."""
    rope, width = config["rope_parameters"], config["hidden_size"] // config["num_attention_heads"]
    writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])
    writer.add_rope_dimension_count(int(rope["partial_rotary_factor"] * width))
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_sliding_window(config["sliding_window"] or 0)
    if rope["rope_type"] == "longrope":
        writer.add_rope_scaling_attn_factors(longrope_amplitude(config))
        for key, tensor in FACTORS.items():
            values = np.asarray(rope[key], np.float32)
            writer.add_tensor(f"{gguf.TENSOR_NAMES[tensor]}.weight", values)


def write(
    path: Path,
    config: dict,
    tensors: dict,
    *,
    quantised: str = "F32",
    extra: dict | None = None,
    without: tuple[str, ...] = (),
    tokenizer=None,
) -> Path:
    """Write a file.

    Args:
        path: where.
        config: the content of config.json.
        tensors: by their keys in safetensors.
        quantised: how matrices are stored.
        extra: further fields, or other values of fields, after the architecture's name.
        without: fields to leave out, after the architecture's name.
        tokenizer: a function that adds a tokenizer to the writer.
    """
    architecture = ARCHITECTURES[config["model_type"]]
    name = gguf.MODEL_ARCH_NAMES[architecture]
    writer = gguf.GGUFWriter(path, name)
    add_fields(writer, config)
    for key in (*without, *(extra or {})):
        writer.kv_data[0].pop(f"{name}.{key}", None)
    for key, value in (extra or {}).items():
        add = {str: writer.add_string, float: writer.add_float32, list: writer.add_array}
        add.get(type(value), writer.add_uint32)(f"{name}.{key}", value)
    if tokenizer is not None:
        tokenizer(writer)
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    assert layers is not None
    table = gguf.get_tensor_name_map(architecture, layers)
    for key, tensor in tensors.items():
        stored = table.get_name(key, try_suffixes=(".weight", ".bias"))
        assert stored is not None, key
        array = converted(config, key, tensor)
        kind = gguf.GGMLQuantizationType[quantised if array.ndim == 2 else "F32"]
        writer.add_tensor(stored, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
