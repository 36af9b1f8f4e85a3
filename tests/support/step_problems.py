"""Four published shapes with random weights, each with the loss that a user would train on."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lntune_jax as lnt
from lntune_jax.models import causal_lm_loss, from_config

BERT = {"model_type": "bert", "vocab_size": 30522, "max_position_embeddings": 512}
SHAPES = {
    "MiniLM-L6": BERT
    | {
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
    },
    "BERT-base": BERT
    | {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "SmolLM2-135M": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
    "GPT-2-124M": {"model_type": "gpt2", "vocab_size": 50257},
}
# Rows and tokens in a row: 2.03 is within reach up to a length that step_limit.py derives.
BATCHES = {
    "MiniLM-L6": (8, 64),
    "BERT-base": (4, 128),
    "SmolLM2-135M": (2, 96),
    "GPT-2-124M": (2, 128),
}


class Problem(NamedTuple):
    """A model's shapes, its weights, a batch, the loss `loss(params, batch)`, and what trains.

    `whole_loss` is the one for gradients of the whole tree: of a language model with all its logits
    at once, as people write it. `causal_lm_loss` computes them again where the head trains.
    """

    model: Any
    params: Any
    batch: dict[str, Any]
    loss: Any
    config: lnt.LNTuningConfig
    whole_loss: Any


def make_problem(config: dict[str, Any], rows: int, length: int, **options: Any) -> Problem:
    """A classifier of two classes for an encoder, a language model for a decoder.

    Args:
        config: a transformers config as a dict.
        rows: in the batch.
        length: tokens in a row.
        **options: of `from_config`.
    """
    encoder = config["model_type"] == "bert"
    options |= {"num_labels": 2} if encoder else {}
    model = from_config(config, "SEQ_CLS" if encoder else "CAUSAL_LM", **options)
    generator = np.random.default_rng(0)
    ids = generator.integers(5, config["vocab_size"], (rows, length), np.int32)
    batch = {"ids": jnp.asarray(ids)}
    if encoder:
        batch["labels"] = jnp.asarray(np.arange(rows, dtype=np.int32) % 2)
    saved = ["classifier"] if encoder else None
    params = make_params(model.params)
    loss, config = make_loss(model), lnt.LNTuningConfig(modules_to_save=saved)
    return Problem(model, params, batch, loss, config, loss if encoder else make_plain_loss(model))


def make_params(shapes: Any) -> Any:
    """Normal weights; scales near 1."""
    generator = np.random.default_rng(1)

    def draw(path: Any, leaf: Any) -> jax.Array:
        centre = 1.0 if path[-1].key == "scale" else 0.0
        values = generator.standard_normal(leaf.shape, np.float32) * 0.02 + centre
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def make_loss(model: Any) -> Any:
    """The mean cross-entropy of classes, or of the next tokens."""
    if model.task == "CAUSAL_LM":
        return lambda params, batch: causal_lm_loss(model, params, batch["ids"])

    def loss(params: Any, batch: dict[str, Any]) -> jax.Array:
        logits = model.apply(params, batch["ids"]).logits.astype(jnp.float32)
        found = jnp.take_along_axis(logits, batch["labels"][:, None], axis=1)[:, 0]
        return (jax.nn.logsumexp(logits, axis=1) - found).mean()

    return loss


def make_plain_loss(model: Any) -> Any:
    """The mean cross-entropy of the next tokens, from whole logits."""

    def loss(params: Any, batch: dict[str, Any]) -> jax.Array:
        logits = model.apply(params, batch["ids"]).logits[:, :-1].astype(jnp.float32)
        found = jnp.take_along_axis(logits, batch["ids"][:, 1:, None], axis=2)[..., 0]
        return (jax.nn.logsumexp(logits, axis=2) - found).mean()

    return loss
