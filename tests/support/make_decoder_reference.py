"""Write the reference files under tests/reference/decoders, from PyTorch and transformers.

Each folder holds a tiny random checkpoint whose config differs from its class's defaults in every
field that changes a number, and reference.npz with inputs and what PyTorch computes from them. A
folder without weights is the checkpoint named in VARIANTS under another config. Run it with an
environment that has torch and transformers, and gguf for the last folder:

    python -m tests.support.make_decoder_reference --smollm2 DIRECTORY_OF_SMOLLM2_135M_Q4_1
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import numpy as np
import torch
import transformers

from tests.support import paths

REFERENCE = paths.REFERENCE / "decoders"

# Heads are wider together than the hidden states, and share keys in pairs.
TINY = {
    "vocab_size": 60,
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-3,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
ROPE = {"rope_type": "default", "rope_theta": 500.0}
# For a field that the config's class does not have: there `None` is another value.
ABSENT = object()

# Folder: (config class, class, what differs from TINY).
CHECKPOINTS = {
    "llama": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {
            "hidden_act": "gelu_new",
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
            "rope_parameters": ROPE,
        },
    ),
    "llama_tied": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {"head_dim": None, "num_key_value_heads": None, "tie_word_embeddings": True},
    ),
    "llama_seq_cls": (
        "LlamaConfig",
        "LlamaForSequenceClassification",
        {"num_labels": 3, "rope_parameters": ROPE},
    ),
    "mistral": (
        "MistralConfig",
        "MistralForCausalLM",
        {"sliding_window": 5, "hidden_act": "relu", "rope_parameters": ROPE},
    ),
    "qwen2": (
        "Qwen2Config",
        "Qwen2ForCausalLM",
        {
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
            "rope_parameters": ROPE,
        },
    ),
    "qwen3": (
        "Qwen3Config",
        "Qwen3ForCausalLM",
        {
            "num_hidden_layers": 3,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 6,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": ROPE,
        },
    ),
    "gemma": (
        "GemmaConfig",
        "GemmaForCausalLM",
        {
            "num_key_value_heads": 1,
            "hidden_act": "gelu",
            "attention_bias": True,
            "rope_parameters": ROPE,
        },
    ),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {
            "hidden_activation": "silu",
            "attention_bias": True,
            "query_pre_attn_scalar": 13,
            "sliding_window": 4,
            "layer_types": ["full_attention", "sliding_attention"],
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "tie_word_embeddings": False,
            "rope_parameters": ROPE,
        },
    ),
    "gemma3_text": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            "num_hidden_layers": 3,
            "hidden_activation": "gelu_new",
            "attention_bias": True,
            "query_pre_attn_scalar": 13,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "final_logit_softcapping": 4.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 3000.0, "factor": 4.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 200.0},
            },
        },
    ),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {
            "n_inner": 40,
            "activation_function": "relu",
            "scale_attn_by_inverse_layer_idx": True,
            "layer_norm_epsilon": 1e-3,
        },
    ),
    "gpt2_untied": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {
            "scale_attn_weights": False,
            "reorder_and_upcast_attn": True,
            "tie_word_embeddings": False,
        },
    ),
    "gpt2_seq_cls": (
        "GPT2Config",
        "GPT2ForSequenceClassification",
        {"num_labels": 4, "scale_attn_by_inverse_layer_idx": True},
    ),
    "olmo2": (
        "Olmo2Config",
        "Olmo2ForCausalLM",
        {
            "eos_token_id": 2,
            "hidden_act": "relu",
            "attention_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 1.5},
        },
    ),
    "olmo2_seq_cls": (
        "Olmo2Config",
        "Olmo2ForSequenceClassification",
        {"eos_token_id": 2, "num_labels": 3, "num_key_value_heads": None, "head_dim": ABSENT},
    ),
    "phi3": (
        "Phi3Config",
        "Phi3ForCausalLM",
        {
            "eos_token_id": 2,
            "hidden_size": 32,
            "head_dim": ABSENT,
            "hidden_act": "gelu_new",
            "sliding_window": 5,
            "tie_word_embeddings": True,
            "rope_parameters": ROPE | {"partial_rotary_factor": 0.75},
        },
    ),
    "phi3_seq_cls": (
        "Phi3Config",
        "Phi3ForSequenceClassification",
        {
            "eos_token_id": 2,
            "num_labels": 3,
            "num_key_value_heads": None,
            "head_dim": 10,
            "rope_parameters": ROPE | {"partial_rotary_factor": 0.8},
        },
    ),
}
GPT2_TINY = {
    "vocab_size": 60,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 3,
    "n_positions": 48,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.25, 1.7],
    "long_factor": [1.1, 3.0, 7.3],
}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0}
# Folder: (the checkpoint, what differs from its config).
VARIANTS = {
    "llama_linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.5}},
    ),
    "llama_dynamic": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 3.0}},
    ),
    "llama_yarn": ("llama", {"rope_parameters": YARN}),
    "llama_yarn_every_key": (
        "llama",
        {
            "rope_parameters": {
                **YARN,
                "original_max_position_embeddings": 8,
                "attention_factor": 0.8,
                "beta_fast": 3,
                "beta_slow": 0.5,
                "truncate": False,
            }
        },
    ),
    "llama_yarn_mscale": (
        "llama",
        {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.3, "beta_fast": 4}},
    ),
    "llama_llama3": (
        "llama",
        {
            "max_position_embeddings": 128,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "mistral_no_window": ("mistral", {"sliding_window": None}),
    "qwen2_no_window": ("qwen2", {"use_sliding_window": False}),
    "gemma2_no_caps": (
        "gemma2",
        {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "phi3_no_window": ("phi3", {"sliding_window": None}),
    "phi3_longrope": (
        "phi3",
        {"original_max_position_embeddings": 8, "rope_parameters": LONGROPE},
    ),
    "phi3_longrope_every_key": (
        "phi3",
        {
            "original_max_position_embeddings": 6,
            "rope_parameters": LONGROPE
            | {
                "partial_rotary_factor": 1.0,
                "short_factor": [1.0, 1.25, 1.7, 0.8],
                "long_factor": [1.1, 3.0, 7.3, 9.0],
                "factor": 1.7,
                "attention_factor": 0.9,
            },
        },
    ),
    "gemma3_text_yarn": (
        "gemma3_text",
        {
            "final_logit_softcapping": None,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "yarn",
                    "rope_theta": 3000.0,
                    "factor": 4.0,
                    "original_max_position_embeddings": 8,
                },
                "sliding_attention": {
                    "rope_type": "dynamic",
                    "rope_theta": 200.0,
                    "factor": 2.0,
                },
            },
        },
    ),
}


SENTENCES = (
    "The capital of Japan is",
    "Layer normalisation has two vectors: a scale and a bias. Which of them",
    "def mean(values):",
)
# What is kept of 49,152 logits: every so many-th.
STRIDE = 24


def main() -> None:
    """Write every folder anew."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--smollm2", type=Path)
    parser.add_argument("--only-smollm2", action="store_true")
    parser.add_argument("--only", nargs="*", help="these folders of random checkpoints")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    if arguments.smollm2 is not None:
        write_smollm2(arguments.smollm2)
    if not arguments.only_smollm2:
        write_tiny(arguments.only)


def write_tiny(only: list[str] | None) -> None:
    """Write the folders of random checkpoints, and of their variants, or these of them only."""
    for seed, (name, (config_class, model_class, changes)) in enumerate(CHECKPOINTS.items()):
        if only is not None and name not in only:
            continue
        config = make_config(config_class, changes)
        random_model(model_class, config, seed).save_pretrained(REFERENCE / name)
        (REFERENCE / name / "generation_config.json").unlink(missing_ok=True)
        write(name, model_class)
    for name, (base, changes) in VARIANTS.items():
        if only is not None and name not in only:
            continue
        config_class, model_class, own = CHECKPOINTS[base]
        config = make_config(config_class, own | changes)
        (REFERENCE / name).mkdir(parents=True, exist_ok=True)
        config.save_pretrained(REFERENCE / name)
        write(name, model_class, base)
    versions = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    (REFERENCE / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


def make_config(config_class: str, changes: dict) -> transformers.PreTrainedConfig:
    """A tiny config with these changes."""
    tiny = GPT2_TINY if config_class == "GPT2Config" else TINY
    given = {field: value for field, value in (tiny | changes).items() if value is not ABSENT}
    return getattr(transformers, config_class)(**given)


def random_model(model_class: str, config, seed: int) -> torch.nn.Module:
    """A model in bfloat16 with every tensor random, the norms and biases too."""
    torch.manual_seed(seed)
    model = getattr(transformers, model_class)(config)
    offset = 0.0 if config.model_type.startswith("gemma") else 1.0
    for name, parameter in model.named_parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.3)
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter.add_(offset)
    return model.to(torch.bfloat16)


def load(name: str, model_class: str, base: str | None) -> torch.nn.Module:
    """The model of a folder in float32, fresh: dynamic frequencies remember the longest input."""
    config = transformers.AutoConfig.from_pretrained(REFERENCE / name)
    return (
        getattr(transformers, model_class)
        .from_pretrained(
            REFERENCE / (base or name),
            config=config,
            dtype=torch.float32,
            attn_implementation="eager",
        )
        .eval()
    )


def write(name: str, model_class: str, base: str | None = None) -> None:
    """Compute every case and write the folder's reference.npz."""
    arrays = {}
    for case, inputs in cases(base).items():
        model = load(name, model_class, base)
        if case == "packed" and "SequenceClassification" in model_class:
            continue
        tensors = {key: torch.from_numpy(value) for key, value in inputs.items()}
        arrays |= {f"{case}.{key}": value.astype(np.int32) for key, value in inputs.items()}
        # Only without a cache does transformers take a jump in positions for another text.
        found = model(**tensors, output_hidden_states=True, use_cache=case != "packed")
        arrays[f"{case}.logits"] = found.logits.numpy()
        if case == "plain":
            arrays[f"{case}.last_hidden_state"] = found.hidden_states[-1].numpy()
    np.savez_compressed(REFERENCE / name / "reference.npz", **arrays)


def cases(base: str | None) -> dict[str, dict[str, np.ndarray]]:
    """Inputs: plain, padded on either side, beyond the context, with positions, packed."""
    generator = np.random.default_rng(0)

    def tokens(*shape: int) -> np.ndarray:
        return generator.integers(4, 60, shape)

    lengths = np.array([[9], [4]])
    right = (np.arange(9) < lengths).astype(np.int64)
    left = right[:, ::-1].copy()
    whole = {
        "plain": {"input_ids": tokens(2, 7)},
        "long": {"input_ids": tokens(1, 40)},
        "right": {"input_ids": tokens(2, 9) * right, "attention_mask": right},
        "left": {"input_ids": tokens(2, 9) * left, "attention_mask": left},
        "left_positions": {
            "input_ids": tokens(2, 9) * left,
            "attention_mask": left,
            "position_ids": np.maximum(np.cumsum(left, axis=1) - 1, 0),
        },
        "positions": {
            "input_ids": tokens(2, 6),
            "position_ids": np.array([[3, 4, 5, 6, 7, 8], [0, 2, 4, 9, 9, 1]]),
        },
        "packed": {
            "input_ids": tokens(1, 12),
            "position_ids": np.array([[0, 1, 2, 3, 4, 5, 0, 1, 2, 0, 1, 2]]),
        },
    }
    return whole if base is None else {case: whole[case] for case in ("plain", "long", "right")}


def write_smollm2(directory: Path) -> None:
    """Some of the logits that transformers gives for SmolLM2 out of its GGUF file."""
    (name,) = (path.name for path in directory.glob("*.gguf"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, gguf_file=name)
    tokenizer.padding_side = "right"
    inputs = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, gguf_file=name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    mask = inputs["attention_mask"]
    logits = model(input_ids=inputs["input_ids"], attention_mask=mask).logits
    rows, last = torch.arange(len(SENTENCES)), mask.sum(1) - 1
    arrays = {
        "input_ids": inputs["input_ids"].numpy().astype(np.int32),
        "attention_mask": mask.numpy().astype(np.int32),
        "last_logits": logits[rows, last][:, ::STRIDE].numpy(),
        "first_logits": logits[:, 1, ::STRIDE].numpy(),
        "next_tokens": logits[rows, last].argmax(-1).numpy().astype(np.int32),
    }
    (REFERENCE / "smollm2").mkdir(parents=True, exist_ok=True)
    np.savez_compressed(REFERENCE / "smollm2" / "reference.npz", **arrays)


if __name__ == "__main__":
    main()
