"""The models and batches that both sides of `peft_step.py` run, from configs alone."""

from typing import Any, NamedTuple

import numpy as np
import transformers


class Shape(NamedTuple):
    """One model, one batch.

    Attributes:
        model: a key of `CONFIGS`.
        rows: texts in the batch.
        length: tokens in a text.
        dtype: of weights and activations.
    """

    model: str
    rows: int
    length: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.model}:{self.rows}x{self.length}:{self.dtype}"


MINILM = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "use_cache": False,
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "minilm": ("bert", MINILM),
    "bert": ("bert", {}),
    "smollm2": ("llama", SMOLLM2),
    "gpt2": ("gpt2", {"use_cache": False}),
}


def parse_shape(text: str) -> Shape:
    """From "minilm:8x64:float32"."""
    model, size, dtype = text.split(":")
    rows, length = size.split("x")
    return Shape(model, int(rows), int(length), dtype)


def make_config(shape: Shape) -> Any:
    """The transformers config, without dropout, with torch's own fused attention."""
    kind, fields = CONFIGS[shape.model]
    no_dropout = {
        "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        "llama": {},
    }[kind]
    makers = {
        "bert": transformers.BertConfig,
        "gpt2": transformers.GPT2Config,
        "llama": transformers.LlamaConfig,
    }
    return makers[kind](**fields, **no_dropout, attn_implementation="sdpa")


def is_decoder(shape: Shape) -> bool:
    """Whether the model predicts each next token; the others classify texts."""
    return CONFIGS[shape.model][0] != "bert"


def make_batch(shape: Shape) -> dict[str, np.ndarray]:
    """Tokens; for an encoder a mask that leaves out a quarter of the last row, and labels."""
    random = np.random.default_rng(0)
    tokens = random.integers(5, 1000, (shape.rows, shape.length))
    if is_decoder(shape):
        return {"input_ids": tokens, "labels": tokens}
    mask = np.ones_like(tokens)
    mask[-1, -shape.length // 4 :] = 0
    return {
        "input_ids": tokens,
        "attention_mask": mask,
        "labels": random.integers(0, 2, shape.rows),
    }
