"""OLMo 2: norms after attention and after the MLP only, and over all queries and keys at once.

The norms of queries and keys stand before the heads are split, so that each goes over the whole
projected width. All else is the shared decoder's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flax import nnx

from . import base as fields
from . import gguf, rotary_decoder
from .base import VARIANTS, WITHOUT_EFFECT, refuse_unknown_fields
from .rope import read_rope
from .rotary_decoder import MLP, LayerSettings, Settings, norm

if TYPE_CHECKING:
    from ..nn.stack import Context, Kept
    from ..types import Options
    from .rotary_decoder import Heads, Hidden

HONOURED = (*rotary_decoder.HONOURED, "attention_bias")


def read_settings(config: Any) -> Settings:
    """Read and check the config of an OLMo 2.

    Raises:
        ModelError: a field holds a value that the model does not honour.
    """
    fields.refuse_variants(config, VARIANTS)
    refuse_unknown_fields(config, (*HONOURED, *WITHOUT_EFFECT))
    rotary_decoder.refuse_unread(config, ("attention_bias",))
    shared = rotary_decoder.read_shared(config)
    biased = fields.switch(config, "attention_bias", False)
    rope = read_rope(config, shared["head_dim"])
    return Settings(
        **shared,
        layers=(LayerSettings(None, rope),) * fields.size(config, "num_hidden_layers"),
        activation=fields.activation(config),
        attention_bias=biased,
        output_bias=biased,
        attention_scale=shared["head_dim"] ** -0.5,
    )


OLMO2 = gguf.Architecture(
    "olmo2",
    "olmo2",
    layer_modules={
        **{k: v for k, v in gguf.LAYER_MODULES.items() if k not in ("attn_norm", "ffn_norm")},
        "post_attention_norm": "post_attention_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
)


class Attention(rotary_decoder.Attention):
    """Attention whose queries, and whose keys, are normalised all together."""

    def __init__(self, settings: Settings, options: Options, rngs: nnx.Rngs):
        """Make the modules."""
        super().__init__(settings, options, rngs)
        own, shared = settings.num_attention_heads, settings.num_key_value_heads
        self.q_norm = norm(settings, own * settings.head_dim, options, rngs)
        self.k_norm = norm(settings, shared * settings.head_dim, options, rngs)

    def project(self, hidden: Hidden) -> tuple[Heads, Heads, Heads]:
        """Give queries and keys, normalised, and values."""
        query, keys = self.q_norm(self.q_proj(hidden)), self.k_norm(self.k_proj(hidden))
        values = self.v_proj(hidden)
        return self.split_heads(query), self.split_heads(keys), self.split_heads(values)


class Layer(nnx.Module):
    """Attention, then the MLP, what each gives being normalised before it is added."""

    def __init__(self, settings: Settings, options: Options, rngs: nnx.Rngs):
        """Make the modules."""
        width = settings.hidden_size
        self.self_attn = Attention(settings, options, rngs)
        self.post_attention_layernorm = norm(settings, width, options, rngs)
        self.mlp = MLP(settings, options, rngs)
        self.post_feedforward_layernorm = norm(settings, width, options, rngs)

    def __call__(self, hidden: Hidden, context: Context, key: Any) -> tuple[Hidden, Kept | None]:
        """Compute the next states, and give what a cache keeps."""
        attended, kept = self.self_attn(hidden, context, key)
        hidden = hidden + self.post_attention_layernorm(attended)
        return hidden + self.post_feedforward_layernorm(self.mlp(hidden)), kept


class Decoder(rotary_decoder.Decoder):
    """From token ids to hidden states."""

    layer = Layer
