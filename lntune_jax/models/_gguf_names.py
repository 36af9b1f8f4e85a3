"""Tables for GGUF files: the architectures, and what a file calls fields and tensors.

The names are those of the `gguf` package (`gguf.constants`, `gguf.tensor_mapping`), which
llama.cpp's converter writes.
"""

from __future__ import annotations

# Architecture: whether the converter reorders the rows of queries and keys, for llama.cpp's way
# of turning neighbours in place of halves.
ARCHITECTURES = {"llama": True, "qwen2": False, "qwen3": False}

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
# Of those, the ones that a file may leave out.
OPTIONAL_FIELDS = ("attention.head_count_kv", "attention.key_length")

ROPE_BASE = "rope.freq_base"
ROPE_SCALING = "rope.scaling."
# Key after that: the key of transformers' `rope_parameters`.
ROPE_FIELDS = {"factor": "factor", "original_context_length": "original_max_position_embeddings"}

# Read for checks only, or about nothing that is computed.
OTHER_KEYS = (
    "vocab_size",
    "tensor_data_layout",
    "attention.value_length",
    "rope.dimension_count",
    ROPE_BASE,
    ROPE_SCALING + "type",
    ROPE_SCALING + "finetuned",
)
# Key: the value that means "not in use".
UNUSED = {"expert_count": 0, "expert_used_count": 0, "attention.causal": True}

# What a llama file calls the factors that stretch its frequencies, and the parameters of
# transformers' "llama3" scaling which published models were made with, to be recognised by them.
FREQUENCY_FACTORS = "rope_freqs.weight"
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
