"""Phi-3: one product for queries, keys and values, one for the MLP's two halves, dropout on both.

A part of each head may turn (`partial_rotary_factor`), and the rotary positions may be "longrope".
The outputs of a fused product are not divided over "tensor": an even cut would not fall between
queries, keys and values. transformers' own plan gathers them there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx

from ..nn.layers import ACTIVATIONS, dense, dropout, split_key
from ..nn.sharding import Specs, gather_tokens, keep_tokens_apart
from . import base as fields
from . import gguf, rotary_decoder
from .base import VARIANTS, WITHOUT_EFFECT, refuse_unknown_fields
from .rope import read_rope
from .rotary_decoder import LayerSettings, norm

if TYPE_CHECKING:
    from ..nn.stack import Context, Kept
    from ..types import Options
    from .rotary_decoder import Heads, Hidden

HONOURED = (
    *rotary_decoder.HONOURED,
    "original_max_position_embeddings",
    "resid_pdrop",
    "sliding_window",
    # PyTorch's model has the field and drops no embeddings.
    "embd_pdrop",
)


@dataclass(frozen=True)
class Settings(rotary_decoder.Settings):
    """The numbers and switches of one Phi-3.

    Attributes:
        residual_dropout: the share of attention's and the MLP's results that is dropped.
    """

    residual_dropout: float = 0.0


def read_settings(config: Any) -> Settings:
    """Read and check the config of a Phi-3.

    Raises:
        ModelError: a field holds a value that the model does not honour.
    """
    fields.refuse_variants(config, VARIANTS)
    refuse_unknown_fields(config, (*HONOURED, *WITHOUT_EFFECT))
    rotary_decoder.refuse_unread(config, ("sliding_window",))
    shared = rotary_decoder.read_shared(config)
    rope = read_rope(config, shared["head_dim"], partial=True)
    layer = LayerSettings(fields.size_or_none(config, "sliding_window"), rope)
    return Settings(
        **shared,
        layers=(layer,) * fields.size(config, "num_hidden_layers"),
        activation=fields.activation(config),
        attention_scale=shared["head_dim"] ** -0.5,
        residual_dropout=fields.rate(config, "resid_pdrop"),
    )


def divide(settings: Settings, layers: int, tensor: int) -> Settings:
    """Give the settings of the first layers; fused products are not divided over devices.

    Raises:
        ModelError: they are to be.
    """
    fields.refuse_tensor(settings.model_type, tensor)
    return replace(settings, layers=settings.layers[:layers])


SPECS = Specs(
    widening=("lm_head",),
    narrowing=("o_proj", "down_proj"),
    tables=("embed_tokens",),
    heads=(("o_proj", "num_attention_heads"),),
)

PHI3 = gguf.Architecture(
    "phi3",
    "phi3",
    fields={**gguf.FIELDS, gguf.CONTEXT_BEFORE: gguf.FIELD_BEFORE},
    keys=(*gguf.OTHER_KEYS, *gguf.ROPE_KEYS, gguf.WINDOW, gguf.ROPE_AMPLITUDE),
    layer_modules={
        "attn_norm": "input_layernorm",
        "attn_qkv": "self_attn.qkv_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_up": "mlp.gate_up_proj",
        "ffn_down": "mlp.down_proj",
    },
    rope_tensors=tuple(gguf.LONGROPE_FACTORS),
    partial_rotary=True,
    windowed="phi3",
    doubled_space=True,
)


class Attention(rotary_decoder.RotaryAttention):
    """Attention whose queries, keys and values come from one product."""

    def __init__(self, settings: Settings, options: Options, rngs: nnx.Rngs):
        """Make the modules."""
        super().__init__(settings, options, rngs)
        heads = settings.num_attention_heads + 2 * settings.num_key_value_heads
        wide = heads * settings.head_dim
        self.qkv_proj = dense(settings.hidden_size, wide, options.dtype, rngs, bias=False)

    def project(self, hidden: Hidden) -> tuple[Heads, Heads, Heads]:
        """Give queries, keys and values, which lie one after the other in the product."""
        heads = self.split_heads(self.qkv_proj(hidden))
        own, shared = self.settings.num_attention_heads, self.settings.num_key_value_heads
        query, keys, values = jnp.split(heads, [own, own + shared], axis=2)
        return query, keys, values


class MLP(nnx.Module):
    """A wide layer whose first half weighs the second by its activation, and the way back."""

    def __init__(self, settings: Settings, options: Options, rngs: nnx.Rngs):
        """Make the modules."""
        width, wide = settings.hidden_size, settings.intermediate_size
        self.gate_up_proj = dense(width, 2 * wide, options.dtype, rngs, bias=False)
        self.down_proj = dense(wide, width, options.dtype, rngs, bias=False)
        self.activation = settings.activation

    def __call__(self, hidden: Hidden) -> Hidden:
        """Compute the inner states and the way back."""
        gate, inner = jnp.split(self.gate_up_proj(gather_tokens(hidden)), 2, axis=-1)
        return keep_tokens_apart(self.down_proj(inner * ACTIVATIONS[self.activation](gate)))


class Layer(nnx.Module):
    """Attention, then the MLP, each on a normalised state, dropped from, and added to it."""

    def __init__(self, settings: Settings, options: Options, rngs: nnx.Rngs):
        """Make the modules."""
        width = settings.hidden_size
        self.input_layernorm = norm(settings, width, options, rngs)
        self.self_attn = Attention(settings, options, rngs)
        self.post_attention_layernorm = norm(settings, width, options, rngs)
        self.mlp = MLP(settings, options, rngs)
        self.rate = settings.residual_dropout

    def __call__(self, hidden: Hidden, context: Context, key: Any) -> tuple[Hidden, Kept | None]:
        """Compute the next states, and give what a cache keeps."""
        first, second, third = split_key(key, 3)
        attended, kept = self.self_attn(self.input_layernorm(hidden), context, first)
        hidden = hidden + dropout(attended, self.rate, second)
        inner = self.mlp(self.post_attention_layernorm(hidden))
        return hidden + dropout(inner, self.rate, third), kept


class Decoder(rotary_decoder.Decoder):
    """From token ids to hidden states."""

    layer = Layer
