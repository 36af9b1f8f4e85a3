"""Tables of what tells one decoder from another, and the fields their configs may hold."""

from __future__ import annotations

from dataclasses import dataclass

DECODER_TASKS = (None, "CAUSAL_LM", "SEQ_CLS")
ATTENTIONS = ("xla", "cudnn")
REMATS = ("none", "norms", "dots", "full")


@dataclass(frozen=True)
class Family:
    """What the code of one architecture does, whatever its config says.

    Attributes:
        norm_offset: added to the stored scale of every norm: Gemma keeps scales as offsets.
        query_key_norms: whether each head's queries and keys are normalised.
        feedforward_norms: whether a norm stands before and after the MLP, and one after attention.
        scaled_embeddings: whether embeddings are multiplied by the square root of their width.
        attention_bias: whether queries, keys and values have biases; `None`: the config says.
        output_bias: whether attention's output has one; `None`: as `attention_bias` in the config.
        mlp_bias: whether the config may give the MLP biases.
        activation: the config field with the MLP's activation.
        windows: which layers see a window only: "none", "all", or by the config's "layer_types".
        window_pattern: without layer types in the config, each so many-th layer sees everything;
            0 for Qwen's rule, a number of layers at the start which do.
        scaled_queries: whether `query_pre_attn_scalar` stands for the width of a head.
        caps: the soft caps that the architecture's code applies.
        layered_rope: whether each type of layer has rotary positions of its own.
    """

    norm_offset: float = 0.0
    query_key_norms: bool = False
    feedforward_norms: bool = False
    scaled_embeddings: bool = False
    attention_bias: bool | None = None
    output_bias: bool | None = None
    mlp_bias: bool = False
    activation: str = "hidden_act"
    windows: str = "none"
    window_pattern: int = 0
    scaled_queries: bool = False
    caps: tuple[str, ...] = ()
    layered_rope: bool = False


ATTENTION_CAP, FINAL_CAP = "attn_logit_softcapping", "final_logit_softcapping"

FAMILIES = {
    "llama": Family(mlp_bias=True),
    "mistral": Family(attention_bias=False, output_bias=False, windows="all"),
    "qwen2": Family(attention_bias=True, output_bias=False, windows="layer_types"),
    "qwen3": Family(query_key_norms=True, windows="layer_types"),
    "gemma": Family(norm_offset=1.0, scaled_embeddings=True),
    "gemma2": Family(
        norm_offset=1.0,
        feedforward_norms=True,
        scaled_embeddings=True,
        activation="hidden_activation",
        windows="layer_types",
        window_pattern=2,
        scaled_queries=True,
        caps=(ATTENTION_CAP, FINAL_CAP),
    ),
    "gemma3_text": Family(
        norm_offset=1.0,
        query_key_norms=True,
        feedforward_norms=True,
        scaled_embeddings=True,
        activation="hidden_activation",
        windows="layer_types",
        window_pattern=6,
        scaled_queries=True,
        # transformers keeps the field for attention's cap in this config and never reads it.
        caps=(FINAL_CAP,),
        layered_rope=True,
    ),
}

# Fields that decide what a decoder computes, and are read.
HONOURED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "hidden_activation",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "pad_token_id",
    "tie_word_embeddings",
    "rope_parameters",
    "attention_bias",
    "mlp_bias",
    "attention_dropout",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "use_bidirectional_attention",
)
GPT2_HONOURED = (
    "vocab_size",
    "n_positions",
    "n_embd",
    "n_layer",
    "n_head",
    "n_inner",
    "activation_function",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "layer_norm_epsilon",
    "initializer_range",
    "pad_token_id",
    "tie_word_embeddings",
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
    # Its float32 is what attention here computes in anyway.
    "reorder_and_upcast_attn",
    "add_cross_attention",
)

# Fields that no number of these models depends on. `pretraining_tp` splits products and adds them
# up again; `summary_*` belong to a class of GPT-2 that is not here.
WITHOUT_EFFECT = (
    "model_type",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pretraining_tp",
    "keys_to_ignore_at_inference",
    "base_model_tp_plan",
    "base_model_pp_plan",
    "base_model_fsdp_plan",
    "base_model_ep_plan",
    "attribute_map",
    "sub_configs",
    "default_theta",
    "summary_type",
    "summary_use_proj",
    "summary_activation",
    "summary_proj_to_labels",
    "summary_first_dropout",
)

# Field: (the value that means "not in use", what is supported).
VARIANTS = {
    "quantization_config": (None, "weights that are not quantised"),
    "is_encoder_decoder": (False, "False"),
    "add_cross_attention": (False, "False"),
    "cross_attention_hidden_size": (None, "no cross-attention"),
    "is_causal": (True, "True (a position sees the ones before it)"),
    "use_bidirectional_attention": (False, "False (a position sees the ones before it)"),
    "pruned_heads": ({}, "no pruned heads"),
    "rope_interleaved": (False, "False (a pair is an entry of each half)"),
    "use_mrope": (False, "False"),
}
