"""What a model needs from a transformers config, read once and checked field by field.

A field that the models cannot honour exactly is refused by its name; nothing is approximated
and nothing is skipped in silence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeGuard

from lntune_jax._errors import ModelError

from ._activations import ACTIVATIONS
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
    model_type = _read(config, "model_type")
    _require("model_type", model_type, model_type in ARCHITECTURES, _one_of(ARCHITECTURES))
    architecture = ARCHITECTURES[model_type]
    _refuse_variants(config)
    sizes = {name: _size(config, name) for name in _SIZES}
    _require(
        "hidden_size",
        sizes["hidden_size"],
        sizes["hidden_size"] % sizes["num_attention_heads"] == 0,
        f"a multiple of num_attention_heads ({sizes['num_attention_heads']})",
    )
    rates: dict[str, Any] = {name: _rate(config, name) for name in _RATES}
    if rates["classifier_dropout"] is None:
        rates["classifier_dropout"] = rates["hidden_dropout_prob"]
    return Settings(
        architecture=architecture,
        **sizes,
        **rates,
        hidden_act=_activation(config),
        layer_norm_eps=_positive(config, "layer_norm_eps"),
        initializer_range=_positive(config, "initializer_range"),
        pad_token_id=_padding(config, architecture, sizes["max_position_embeddings"]),
        tie_word_embeddings=bool(getattr(config, "tie_word_embeddings", True)),
        num_labels=_size(config, "num_labels"),
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
_RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")

# Field: (the value that means "not in use", what is supported).
_VARIANTS = {
    "position_embedding_type": ("absolute", "'absolute'"),
    "is_decoder": (False, "False (an encoder that sees both sides)"),
    "is_encoder_decoder": (False, "False"),
    "add_cross_attention": (False, "False"),
    "pruned_heads": ({}, "no pruned heads"),
    "quantization_config": (None, "weights that are not quantised"),
}


def _refuse_variants(config: Any) -> None:
    for field, (unused, supported) in _VARIANTS.items():
        value = _read(config, field)
        _require(field, value, value is None or value == unused, supported)


def _size(config: Any, field: str) -> int:
    value = _read(config, field)
    _require(field, value, _is_integer(value) and value >= 1, "an integer of at least 1")
    return int(value)


def _rate(config: Any, field: str) -> float | None:
    value = _read(config, field)
    if value is None and field == "classifier_dropout":
        return None
    _require(field, value, _is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
    return value


def _positive(config: Any, field: str) -> float:
    value = _read(config, field)
    _require(field, value, _is_number(value) and value > 0, "a number above 0")
    return float(value)


def _activation(config: Any) -> str:
    value = _read(config, "hidden_act")
    known = isinstance(value, str) and value in ACTIVATIONS
    _require("hidden_act", value, known, _one_of(ACTIVATIONS))
    return value


def _padding(config: Any, architecture: Architecture, positions: int) -> int:
    value = _read(config, "pad_token_id")
    if not architecture.positions_follow_padding:
        return 0  # Not read: BERT's positions are its columns.
    fits = _is_integer(value) and 0 <= value < positions - 1
    # Positions start after it, so that it must leave room in the position table.
    _require("pad_token_id", value, fits, f"an integer from 0 to {positions - 2}")
    return int(value)


def _read(config: Any, field: str) -> Any:
    return getattr(config, field, None)


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _one_of(names: Any) -> str:
    return "one of " + ", ".join(sorted(names))


def _require(field: str, value: Any, accepted: bool, supported: str) -> None:
    if not accepted:
        raise ModelError(f"config field {field!r} is {value!r}; supported: {supported}")
