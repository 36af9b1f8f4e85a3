"""GPT-2: learned positions, layer norms before attention and MLP, one product for all of q, k, v.

Its config is checked field by field. Every attribute is called what PyTorch's transformers calls
it; its `Conv1D` keeps weights as (inputs, outputs), which is how kernels are kept here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx

from ..nn.attention import attend_causally
from ..nn.layers import ACTIVATIONS, Embed, LayerNorm, dense, dropout, split_key
from ..nn.sharding import (
    Specs,
    gather_tokens,
    keep_features_apart,
    keep_tokens_apart,
    spread_lookup,
)
from ..nn.stack import make_contexts, place_states, run_layers, scan_layers, stack_layers
from . import base as fields
from . import gguf
from .base import VARIANTS, WITHOUT_EFFECT, read_padding, refuse_unknown_fields
from .names import name_decoder

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from ..inputs import DecoderInputs
    from ..nn.stack import Context, Kept
    from ..types import Cache, Options

    Hidden = Float[Array, "batch length hidden"]


HONOURED = (
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


@dataclass(frozen=True)
class Settings:
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
    table: str = "wte"
    final_cap: None = None
    attention_cap: None = None
    turning_point: None = None

    @property
    def windows(self) -> tuple[None, ...]:
        """None in any layer."""
        return (None,) * self.num_hidden_layers

    @property
    def num_key_value_heads(self) -> int:
        """As many as there are for queries."""
        return self.num_attention_heads

    @property
    def head_dim(self) -> int:
        """Entries of a head."""
        return self.hidden_size // self.num_attention_heads


def divide(settings: Settings, layers: int, tensor: int) -> Settings:
    """Give the settings of the first layers; heads are not divided over devices.

    Raises:
        ModelError: they are to be.
    """
    fields.refuse_tensor(settings.model_type, tensor)
    return replace(settings, num_hidden_layers=layers, scales=settings.scales[:layers])


def read_settings(config: Any) -> Settings:
    """Read and check the config of a GPT-2.

    Raises:
        ModelError: a field holds a value that the model does not honour.
    """
    fields.refuse_variants(config, VARIANTS)
    refuse_unknown_fields(config, (*HONOURED, *WITHOUT_EFFECT))
    heads, hidden = fields.size(config, "n_head"), fields.size(config, "n_embd")
    fields.require("n_embd", hidden, hidden % heads == 0, f"a multiple of n_head ({heads})")
    count = fields.size(config, "n_layer")
    scale = (hidden // heads) ** -0.5 if fields.switch(config, "scale_attn_weights", True) else 1.0
    by_layer = fields.switch(config, "scale_attn_by_inverse_layer_idx", False)
    fields.switch(config, "reorder_and_upcast_attn", False)
    return Settings(
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


NAMES = name_decoder(
    "transformer",
    "wte.weight",
    r"h\.\d+\.attn\.(bias|masked_bias)",
    kept=("c_attn", "c_proj", "c_fc"),
    layers="h",
)
SPECS = Specs(
    widening=("c_attn", "c_fc", "lm_head"),
    narrowing=("c_proj",),
    tables=("wte",),
    heads=(("c_attn", "num_attention_heads"), ("attn.c_proj", "num_attention_heads")),
)

_FIELDS = {
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}

_MODULES = {
    "token_embd": "wte",
    "position_embd": "wpe",
    "output_norm": "ln_f",
    "output": "lm_head",
}

_LAYER_MODULES = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}

GPT2 = gguf.Architecture(
    "gpt2",
    "gpt2",
    fields=_FIELDS,
    keys=gguf.OTHER_KEYS,
    constants={"activation_function": "gelu_new"},
    stack="h",
    modules=_MODULES,
    layer_modules=_LAYER_MODULES,
    transposed=("c_attn", "c_proj", "c_fc"),
    rotary=False,
)


class Gpt2(nnx.Module):
    """From token ids to hidden states."""

    def __init__(self, settings: Settings, options: Options, rngs: nnx.Rngs):
        """Make the modules."""
        width, dtype = settings.hidden_size, options.dtype
        self.settings = settings
        self.wte = Embed(settings.vocab_size, width, dtype=dtype, rngs=rngs)
        self.wpe = Embed(settings.positions, width, dtype=dtype, rngs=rngs)
        scales = settings.scales
        if options.scan_layers:
            self.h: Any = stack_layers(
                lambda: Block(settings, scales[0], options, rngs),
                len(scales),
                options.frozen_layers,
            )
        else:
            self.h = nnx.List([Block(settings, scale, options, rngs) for scale in scales])
        self.ln_f = _norm(settings, options, rngs)
        self.rate = settings.embedding_dropout
        self.options = options
        self.scales = (
            scales if options.scan_layers and len(set(scales)) > 1 else (None,) * len(scales)
        )

    def __call__(self, inputs: DecoderInputs, key: Any) -> tuple[Hidden, Cache | None]:
        """Compute the last hidden states, and the cache with these tokens in it."""
        first, rest = split_key(key, 2)
        hidden = spread_lookup(self.wte(inputs.input_ids)) + self.wpe(inputs.position_ids)
        hidden = dropout(hidden, self.rate, first)
        seen = make_contexts(self.options, self.settings, inputs, hidden, key)
        contexts = [
            context._replace(scale=scale) for context, scale in zip(seen, self.scales, strict=True)
        ]
        run = scan_layers if self.options.scan_layers else run_layers
        hidden, cache = run(self.h, hidden, contexts, inputs, self.options.remat, rest)
        return place_states(self.ln_f(hidden), inputs), cache


class Block(nnx.Module):
    """Attention, then the MLP, each on a normalised state and added to it."""

    def __init__(self, settings: Settings, scale: float, options: Options, rngs: nnx.Rngs):
        self.ln_1 = _norm(settings, options, rngs)
        self.attn = Attention(settings, scale, options, rngs)
        self.ln_2 = _norm(settings, options, rngs)
        self.mlp = MLP(settings, options, rngs)

    def __call__(self, hidden: Hidden, context: Context, key: Any) -> tuple[Hidden, Kept | None]:
        first, second = split_key(key, 2)
        attended, kept = self.attn(self.ln_1(hidden), context, first)
        hidden = hidden + attended
        return hidden + self.mlp(self.ln_2(hidden), second), kept


class Attention(nnx.Module):
    """Self-attention whose queries, keys and values come from one product."""

    def __init__(self, settings: Settings, scale: float, options: Options, rngs: nnx.Rngs):
        width, dtype = settings.hidden_size, options.dtype
        self.c_attn = dense(width, 3 * width, dtype, rngs)
        self.c_proj = dense(width, width, dtype, rngs)
        self.settings = settings
        self.scale = scale

    def __call__(self, hidden: Hidden, context: Context, key: Any) -> tuple[Hidden, Kept | None]:
        first, second = split_key(key, 2)
        shape = (*hidden.shape[:2], self.settings.num_attention_heads, -1)
        query, keys, values = (
            keep_features_apart(part.reshape(shape))
            for part in jnp.split(self.c_attn(gather_tokens(hidden)), 3, axis=-1)
        )
        (keys, values), kept = context.remember(keys, values)
        mixed = attend_causally(
            query,
            keys,
            values,
            context.masking,
            scale=self.scale if context.scale is None else context.scale,
            cap=None,
            rate=self.settings.attention_dropout,
            dropout_rng=first,
        )
        mixed = keep_tokens_apart(self.c_proj(keep_features_apart(mixed).reshape(hidden.shape)))
        return dropout(mixed, self.settings.residual_dropout, second), kept


class MLP(nnx.Module):
    """A wide layer, an activation, and the way back."""

    def __init__(self, settings: Settings, options: Options, rngs: nnx.Rngs):
        width, wide = settings.hidden_size, settings.intermediate_size
        self.c_fc = dense(width, wide, options.dtype, rngs)
        self.c_proj = dense(wide, width, options.dtype, rngs)
        self.activation = settings.activation
        self.rate = settings.residual_dropout

    def __call__(self, hidden: Hidden, key: Any) -> Hidden:
        inner = keep_features_apart(self.c_fc(gather_tokens(hidden)))
        inner = ACTIVATIONS[self.activation](inner)
        return dropout(keep_tokens_apart(self.c_proj(inner)), self.rate, key)


def _norm(settings: Settings, options: Options, rngs: nnx.Rngs) -> LayerNorm:
    width = settings.hidden_size
    return LayerNorm(width, epsilon=settings.epsilon, dtype=options.dtype, rngs=rngs)
