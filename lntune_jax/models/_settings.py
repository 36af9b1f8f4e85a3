"""What a model needs from a transformers config, read once and checked field by field.

A field that the models cannot honour exactly is refused by its name; nothing is approximated
and nothing is skipped in silence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import _fields as fields
from ._names import ARCHITECTURES, Architecture


@dataclass(frozen=True)
class Settings:
    """The numbers and switches of one BERT or RoBERTa."""

    architecture: Architecture
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    hidden_act: str
    layer_norm_eps: float
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    classifier_dropout: float
    initializer_range: float
    pad_token_id: int
    tie_word_embeddings: bool
    num_labels: int


def read_settings(config: Any) -> Settings:
    """Read and check a transformers config.

    Args:
        config: a `PretrainedConfig` whose `model_type` is in `ARCHITECTURES`.

    Raises:
        ModelError: a field holds a value that the models do not honour.
    """
    architecture = ARCHITECTURES[config.model_type]
    fields.refuse_variants(config, _VARIANTS)
    sizes = {name: fields.size(config, name) for name in _SIZES}
    fields.require(
        "hidden_size",
        sizes["hidden_size"],
        sizes["hidden_size"] % sizes["num_attention_heads"] == 0,
        f"a multiple of num_attention_heads ({sizes['num_attention_heads']})",
    )
    hidden = fields.rate(config, "hidden_dropout_prob")
    return Settings(
        architecture=architecture,
        **sizes,
        hidden_dropout_prob=hidden,
        attention_probs_dropout_prob=fields.rate(config, "attention_probs_dropout_prob"),
        classifier_dropout=_classifier_dropout(config, hidden),
        hidden_act=fields.activation(config),
        layer_norm_eps=fields.positive(config, "layer_norm_eps"),
        initializer_range=fields.positive(config, "initializer_range"),
        pad_token_id=_padding(config, architecture, sizes["max_position_embeddings"]),
        tie_word_embeddings=bool(getattr(config, "tie_word_embeddings", True)),
        num_labels=fields.size(config, "num_labels"),
    )


_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)

# Field: (the value that means "not in use", what is supported).
_VARIANTS = {
    "position_embedding_type": ("absolute", "'absolute'"),
    "is_decoder": (False, "False (an encoder that sees both sides)"),
    "is_encoder_decoder": (False, "False"),
    "add_cross_attention": (False, "False"),
    "pruned_heads": ({}, "no pruned heads"),
    "quantization_config": (None, "weights that are not quantised"),
}


def _classifier_dropout(config: Any, hidden: float) -> float:
    unset = fields.read(config, "classifier_dropout") is None
    return hidden if unset else fields.rate(config, "classifier_dropout")


def _padding(config: Any, architecture: Architecture, positions: int) -> int:
    value = fields.read(config, "pad_token_id")
    if not architecture.positions_follow_padding:
        return 0  # Not read: BERT's positions are its columns.
    fits = fields.is_integer(value) and 0 <= value < positions - 1
    # Positions start after it, so that it must leave room in the position table.
    fields.require("pad_token_id", value, fits, f"an integer from 0 to {positions - 2}")
    return int(value)
