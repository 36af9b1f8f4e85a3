"""The decoder that several families share: rotary positions, RMS norms, a gated MLP.

A family's file reads its config into `Settings` and says by `Decoder.layer` what a layer is; where
its attention is made of other products, it is a subclass of `RotaryAttention`. Every attribute is
called what PyTorch's transformers calls it, so that the paths of the weights are the ones in the
checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import jax.numpy as jnp
from flax import nnx

from lntune_jax.errors import ModelError

from ..nn.attention import attend_causally
from ..nn.layers import ACTIVATIONS, Embed, RMSNorm, dense
from ..nn.rope import Rope, rotate, rotations
from ..nn.sharding import (
    Specs,
    gather_tokens,
    keep_features_apart,
    keep_tokens_apart,
    spread_lookup,
)
from ..nn.stack import make_contexts, place_states, run_layers, scan_layers, stack_layers
from . import base as fields
from .base import read_padding
from .names import name_decoder

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from ..inputs import DecoderInputs
    from ..nn.stack import Context, Kept
    from ..types import Cache, Options

    Hidden = Float[Array, "batch length hidden"]
    Heads = Float[Array, "batch length heads size"]


@dataclass(frozen=True)
class LayerSettings:
    """What one layer differs in: how far back it sees, and its rotary positions."""

    window: int | None
    rope: Rope


@dataclass(frozen=True)
class Settings:
    """The numbers and switches of one decoder.

    Attributes:
        epsilon: of every norm.
        norm_offset: added to the stored scale of every norm.
        query_key_norms: whether each head's queries and keys are normalised.
        feedforward_norms: whether a norm stands before and after the MLP, and one after attention.
        scaled_embeddings: whether embeddings are multiplied by the square root of their width.
        attention_scale: what scores are multiplied by.
        positions: rotary ones are computed, without a table that could end.
        scales: of scores by layer, for families in which they differ.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    layers: tuple[LayerSettings, ...]
    activation: str
    epsilon: float
    attention_scale: float
    attention_dropout: float
    tie_word_embeddings: bool
    initializer_range: float
    pad_token_id: int | None
    num_labels: int
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    norm_offset: float = 0.0
    query_key_norms: bool = False
    feedforward_norms: bool = False
    scaled_embeddings: bool = False
    attention_cap: float | None = None
    final_cap: float | None = None
    prefix: str = "model"
    table: str = "embed_tokens"
    positions: None = None
    scales: tuple[float, ...] = ()

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Each layer's."""
        return tuple(layer.window for layer in self.layers)

    @property
    def turning_point(self) -> int | None:
        """Beyond so many tokens the earlier ones turn otherwise too: no cache goes past it."""
        return next((o.rope.positions for o in self.layers if o.rope.kind == "longrope"), None)

    @property
    def num_hidden_layers(self) -> int:
        """One for each entry of `layers`."""
        return len(self.layers)


# Fields that every family here reads, by the functions below.
HONOURED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "pad_token_id",
    "tie_word_embeddings",
    "rope_parameters",
    "attention_dropout",
)


def read_shared(config: Any) -> dict[str, Any]:
    """Read the settings that have one meaning in every family here.

    Raises:
        ModelError: a field holds a value that the models do not honour.
    """
    heads = fields.size(config, "num_attention_heads")
    shared = fields.size_or_none(config, "num_key_value_heads") or heads
    fields.require(
        "num_key_value_heads", shared, heads % shared == 0, f"a divisor of {heads} attention heads"
    )
    unset = fields.read(config, "attention_dropout") is None
    return {
        "model_type": config.model_type,
        "vocab_size": fields.size(config, "vocab_size"),
        "hidden_size": fields.size(config, "hidden_size"),
        "intermediate_size": fields.size(config, "intermediate_size"),
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "head_dim": _head_width(config, heads),
        "epsilon": fields.positive(config, "rms_norm_eps"),
        "attention_dropout": 0.0 if unset else fields.rate(config, "attention_dropout"),
        "tie_word_embeddings": fields.switch(config, "tie_word_embeddings", False),
        "initializer_range": fields.positive(config, "initializer_range"),
        "pad_token_id": read_padding(config),
        "num_labels": fields.size(config, "num_labels"),
    }


ATTENTION_CAP, FINAL_CAP = "attn_logit_softcapping", "final_logit_softcapping"

# Fields that one architecture's code reads and another's passes over, and what means "not in use".
_READ_BY_SOME = {
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": None,
    "layer_types": None,
    "query_pre_attn_scalar": None,
    ATTENTION_CAP: None,
    FINAL_CAP: None,
}


def refuse_unread(config: Any, read: tuple[str, ...]) -> None:
    """Refuse what the architecture's own code would pass over though another one reads it.

    Args:
        config: the config.
        read: of the fields above, those that the architecture reads.

    Raises:
        ModelError: another one is set.
    """
    unread = {field: unused for field, unused in _READ_BY_SOME.items() if field not in read}
    fields.refuse_variants(
        config,
        {field: (unused, f"{unused}, for this architecture") for field, unused in unread.items()},
    )


def _head_width(config: Any, heads: int) -> int:
    width = fields.size_or_none(config, "head_dim")
    if width is None:
        hidden = fields.size(config, "hidden_size")
        fields.require(
            "hidden_size", hidden, hidden % heads == 0, f"a multiple of {heads} attention heads"
        )
        width = hidden // heads
    fields.require("head_dim", width, width % 2 == 0, "an even number")
    return width


def divide(settings: Settings, layers: int, tensor: int) -> Settings:
    """Give the settings of the first layers, as one of `tensor` devices holds them.

    Heads, the MLP's width and the vocabulary are divided, so that what is left is a model of the
    same kind: what each device computes with under tensor parallelism.

    Raises:
        ModelError: the model cannot be divided so.
    """
    parts = {name: _divide(settings, name, tensor) for name in _SHARED}
    return replace(settings, layers=settings.layers[:layers], **parts)


_SHARED = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size")


def _divide(settings: Settings, name: str, tensor: int) -> int:
    size = getattr(settings, name)
    if size % tensor:
        raise ModelError(f"the mesh has tensor={tensor}, which does not divide {name} = {size}")
    return size // tensor


NAMES = name_decoder(
    "model", "embed_tokens.weight", r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"
)
SPECS = Specs(
    widening=("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head"),
    narrowing=("o_proj", "down_proj"),
    tables=("embed_tokens",),
    heads=(
        ("q_proj", "num_attention_heads"),
        ("k_proj", "num_key_value_heads"),
        ("v_proj", "num_key_value_heads"),
        ("o_proj", "num_attention_heads"),
    ),
)


class RotaryAttention(nnx.Module):
    """Grouped-query attention over rotated queries and keys, however these are made."""

    def __init__(self, settings: Settings, options: Options, rngs: nnx.Rngs):
        """Make the way out; a subclass makes the way in."""
        own = settings.num_attention_heads * settings.head_dim
        self.o_proj = dense(
            own, settings.hidden_size, options.dtype, rngs, bias=settings.output_bias
        )
        self.settings = settings

    def project(self, hidden: Hidden) -> tuple[Heads, Heads, Heads]:
        """Give queries, keys and values, by heads."""
        raise NotImplementedError

    def split_heads(self, x: Hidden) -> Heads:
        """Give heads an axis of their own."""
        return x.reshape(*x.shape[:2], -1, self.settings.head_dim)

    def __call__(self, hidden: Hidden, context: Context, key: Any) -> tuple[Hidden, Kept | None]:
        """Attend, and give what a cache keeps."""
        query, keys, values = map(keep_features_apart, self.project(gather_tokens(hidden)))
        assert context.angles is not None
        query, keys = rotate(query, *context.angles), rotate(keys, *context.angles)
        (keys, values), kept = context.remember(keys, values)
        mixed = attend_causally(
            query,
            keys,
            values,
            context.masking,
            scale=self.settings.attention_scale,
            cap=self.settings.attention_cap,
            rate=self.settings.attention_dropout,
            dropout_rng=key,
        )
        mixed = keep_features_apart(mixed).reshape(*hidden.shape[:2], -1)
        return keep_tokens_apart(self.o_proj(mixed)), kept


class Attention(RotaryAttention):
    """Attention with a product each for queries, keys and values."""

    def __init__(self, settings: Settings, options: Options, rngs: nnx.Rngs):
        """Make the modules."""
        super().__init__(settings, options, rngs)
        width, size, dtype = settings.hidden_size, settings.head_dim, options.dtype
        own, shared = settings.num_attention_heads * size, settings.num_key_value_heads * size
        biased = settings.attention_bias
        self.q_proj = dense(width, own, dtype, rngs, bias=biased)
        self.k_proj = dense(width, shared, dtype, rngs, bias=biased)
        self.v_proj = dense(width, shared, dtype, rngs, bias=biased)
        if settings.query_key_norms:
            self.q_norm = norm(settings, size, options, rngs)
            self.k_norm = norm(settings, size, options, rngs)

    def project(self, hidden: Hidden) -> tuple[Heads, Heads, Heads]:
        """Give queries and keys, normalised head by head where the family does so, and values."""
        query, keys, values = (
            self.split_heads(projection(hidden))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.settings.query_key_norms:
            query, keys = self.q_norm(query), self.k_norm(keys)
        return query, keys, values


class MLP(nnx.Module):
    """A wide layer, each entry of which is weighed by another's activation."""

    def __init__(self, settings: Settings, options: Options, rngs: nnx.Rngs):
        """Make the modules."""
        width, wide = settings.hidden_size, settings.intermediate_size
        dtype, bias = options.dtype, settings.mlp_bias
        self.gate_proj = dense(width, wide, dtype, rngs, bias=bias)
        self.up_proj = dense(width, wide, dtype, rngs, bias=bias)
        self.down_proj = dense(wide, width, dtype, rngs, bias=bias)
        self.activation = settings.activation

    def __call__(self, hidden: Hidden) -> Hidden:
        """Compute the inner states and the way back."""
        hidden = gather_tokens(hidden)
        gate, up = (keep_features_apart(own(hidden)) for own in (self.gate_proj, self.up_proj))
        return keep_tokens_apart(self.down_proj(ACTIVATIONS[self.activation](gate) * up))


class Layer(nnx.Module):
    """Attention, then the MLP, each on a normalised state and added to it."""

    def __init__(self, settings: Settings, options: Options, rngs: nnx.Rngs):
        """Make the modules."""
        width = settings.hidden_size
        self.sandwich = settings.feedforward_norms
        self.input_layernorm = norm(settings, width, options, rngs)
        self.self_attn = Attention(settings, options, rngs)
        self.post_attention_layernorm = norm(settings, width, options, rngs)
        if self.sandwich:
            self.pre_feedforward_layernorm = norm(settings, width, options, rngs)
            self.post_feedforward_layernorm = norm(settings, width, options, rngs)
        self.mlp = MLP(settings, options, rngs)

    def __call__(self, hidden: Hidden, context: Context, key: Any) -> tuple[Hidden, Kept | None]:
        """Compute the next states, and give what a cache keeps."""
        attended, kept = self.self_attn(self.input_layernorm(hidden), context, key)
        if not self.sandwich:
            hidden = hidden + attended
            return hidden + self.mlp(self.post_attention_layernorm(hidden)), kept
        hidden = hidden + self.post_attention_layernorm(attended)
        inner = self.mlp(self.pre_feedforward_layernorm(hidden))
        return hidden + self.post_feedforward_layernorm(inner), kept


class Decoder(nnx.Module):
    """From token ids to hidden states."""

    layer: ClassVar[Any] = Layer

    def __init__(self, settings: Settings, options: Options, rngs: nnx.Rngs):
        """Make the modules."""
        self.settings = settings
        self.options = options
        self.embed_tokens = Embed(
            settings.vocab_size, settings.hidden_size, dtype=options.dtype, rngs=rngs
        )
        count = settings.num_hidden_layers
        if options.scan_layers:
            self.layers: Any = stack_layers(
                lambda: self.layer(settings, options, rngs), count, options.frozen_layers
            )
        else:
            self.layers = nnx.List([self.layer(settings, options, rngs) for _ in range(count)])
        self.norm = norm(settings, settings.hidden_size, options, rngs)

    def __call__(self, inputs: DecoderInputs, key: Any) -> tuple[Hidden, Cache | None]:
        """Compute the last hidden states, and the cache with these tokens in it."""
        hidden = spread_lookup(self.embed_tokens(inputs.input_ids))
        if self.settings.scaled_embeddings:
            # Rounded to the model's own type, as the factor is in PyTorch.
            hidden = hidden * jnp.asarray(self.settings.hidden_size**0.5, hidden.dtype)
        layers = self.settings.layers
        angles = {own.rope: rotations(own.rope, inputs.position_ids) for own in layers}
        seen = make_contexts(self.options, self.settings, inputs, hidden, key)
        contexts = [
            context._replace(angles=angles[own.rope])
            for context, own in zip(seen, layers, strict=True)
        ]
        run = scan_layers if self.options.scan_layers else run_layers
        hidden, cache = run(self.layers, hidden, contexts, inputs, self.options.remat, key)
        return place_states(self.norm(hidden), inputs), cache


def norm(settings: Settings, width: int, options: Options, rngs: nnx.Rngs) -> RMSNorm:
    """A norm over `width` entries with the family's offset."""
    offset = settings.norm_offset
    return RMSNorm(width, epsilon=settings.epsilon, offset=offset, dtype=options.dtype, rngs=rngs)
