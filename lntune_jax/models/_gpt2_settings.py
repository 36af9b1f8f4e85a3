"""What a GPT-2 needs from a transformers config, checked field by field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import _fields as fields
from ._decoder_names import GPT2_HONOURED, VARIANTS, WITHOUT_EFFECT
from ._decoder_settings import read_padding, refuse_unknown_fields


@dataclass(frozen=True)
class Gpt2Settings:
    """The numbers and switches of one GPT-2."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    positions: int
    activation: str
    epsilon: float
    scales: tuple[float, ...]
    embedding_dropout: float
    residual_dropout: float
    attention_dropout: float
    tie_word_embeddings: bool
    initializer_range: float
    pad_token_id: int | None
    num_labels: int
    model_type: str = "gpt2"
    prefix: str = "transformer"
    final_cap: None = None
    attention_cap: None = None

    @property
    def num_key_value_heads(self) -> int:
        """As many as there are for queries."""
        return self.num_attention_heads

    @property
    def head_dim(self) -> int:
        """Entries of a head."""
        return self.hidden_size // self.num_attention_heads


def read_gpt2_settings(config: Any) -> Gpt2Settings:
    """Read and check the config of a GPT-2.

    Raises:
        ModelError: a field holds a value that the model does not honour.
    """
    fields.refuse_variants(config, VARIANTS)
    refuse_unknown_fields(config, (*GPT2_HONOURED, *WITHOUT_EFFECT))
    heads, hidden = fields.size(config, "n_head"), fields.size(config, "n_embd")
    fields.require("n_embd", hidden, hidden % heads == 0, f"a multiple of n_head ({heads})")
    count = fields.size(config, "n_layer")
    scale = (hidden // heads) ** -0.5 if fields.switch(config, "scale_attn_weights", True) else 1.0
    by_layer = fields.switch(config, "scale_attn_by_inverse_layer_idx", False)
    fields.switch(config, "reorder_and_upcast_attn", False)
    return Gpt2Settings(
        vocab_size=fields.size(config, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.size_or_none(config, "n_inner") or 4 * hidden,
        num_hidden_layers=count,
        num_attention_heads=heads,
        positions=fields.size(config, "n_positions"),
        activation=fields.activation(config, "activation_function"),
        epsilon=fields.positive(config, "layer_norm_epsilon"),
        scales=tuple(scale / (index + 1 if by_layer else 1) for index in range(count)),
        embedding_dropout=fields.rate(config, "embd_pdrop"),
        residual_dropout=fields.rate(config, "resid_pdrop"),
        attention_dropout=fields.rate(config, "attn_pdrop"),
        tie_word_embeddings=fields.switch(config, "tie_word_embeddings", True),
        initializer_range=fields.positive(config, "initializer_range"),
        pad_token_id=read_padding(config),
        num_labels=fields.size(config, "num_labels"),
    )
