"""The decoder of the Llama family: embeddings, layers, and a last norm.

Every attribute is called what PyTorch's transformers calls it, so that the paths of the weights
are the ones in the checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx

from ._activations import ACTIVATIONS
from ._attention import attend_causally
from ._layers import Embed, RMSNorm, dense
from ._rope import rotate, rotations
from ._rows import keep_rows_apart, spread_lookup
from ._scan import scan_layers, stack_layers
from ._stack import Context, Options, run_layers

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from ._cache import Cache
    from ._decoder_inputs import DecoderInputs
    from ._decoder_settings import DecoderSettings, LayerSettings
    from ._stack import Kept

    Hidden = Float[Array, "batch length hidden"]


class Decoder(nnx.Module):
    """From token ids to hidden states."""

    def __init__(self, settings: DecoderSettings, options: Options, rngs: nnx.Rngs):
        """Make the modules."""
        self.settings = settings
        self.options = options
        self.embed_tokens = Embed(
            settings.vocab_size, settings.hidden_size, dtype=options.dtype, rngs=rngs
        )
        layers = settings.layers
        if options.scan_layers:
            self.layers: Any = stack_layers(
                lambda: Layer(settings, layers[0], options, rngs),
                len(layers),
                options.frozen_layers,
            )
        else:
            self.layers = nnx.List([Layer(settings, own, options, rngs) for own in layers])
        self.norm = norm(settings, settings.hidden_size, options, rngs)

    @property
    def table(self) -> Embed:
        """The word embeddings, which a tied head reads too."""
        return self.embed_tokens

    def __call__(self, inputs: DecoderInputs, key: Any) -> tuple[Hidden, Cache | None]:
        """Compute the last hidden states, and the cache with these tokens in it."""
        hidden = spread_lookup(self.embed_tokens(inputs.input_ids))
        if self.settings.family.scaled_embeddings:
            # Rounded to the model's own type, as the factor is in PyTorch.
            hidden = hidden * jnp.asarray(self.settings.hidden_size**0.5, hidden.dtype)
        layers = self.settings.layers
        angles = {own.rope: rotations(own.rope, inputs.position_ids) for own in layers}
        scanned, windows = self.options.scan_layers, {own.window for own in layers}
        varying = scanned and len(windows) > 1
        masks = {window: inputs.mask(window, varying) for window in windows}
        contexts = [Context(masks[own.window], angles[own.rope]) for own in layers]
        run = scan_layers if scanned else run_layers
        hidden, cache = run(self.layers, hidden, contexts, inputs, self.options.remat, key)
        return keep_rows_apart(self.norm(hidden)), cache


class Layer(nnx.Module):
    """Attention, then the MLP, each on a normalised state and added to it."""

    def __init__(
        self,
        settings: DecoderSettings,
        own: LayerSettings,
        options: Options,
        rngs: nnx.Rngs,
    ):
        width = settings.hidden_size
        self.sandwich = settings.family.feedforward_norms
        self.input_layernorm = norm(settings, width, options, rngs)
        self.self_attn = Attention(settings, own.window, options, rngs)
        self.post_attention_layernorm = norm(settings, width, options, rngs)
        if self.sandwich:
            self.pre_feedforward_layernorm = norm(settings, width, options, rngs)
            self.post_feedforward_layernorm = norm(settings, width, options, rngs)
        self.mlp = MLP(settings, options, rngs)

    def __call__(self, hidden: Hidden, context: Context, key: Any) -> tuple[Hidden, Kept | None]:
        attended, kept = self.self_attn(self.input_layernorm(hidden), context, key)
        if not self.sandwich:
            hidden = hidden + attended
            return hidden + self.mlp(self.post_attention_layernorm(hidden)), kept
        hidden = hidden + self.post_attention_layernorm(attended)
        inner = self.mlp(self.pre_feedforward_layernorm(hidden))
        return hidden + self.post_feedforward_layernorm(inner), kept


class Attention(nnx.Module):
    """Grouped-query attention over rotated queries and keys."""

    def __init__(
        self,
        settings: DecoderSettings,
        window: int | None,
        options: Options,
        rngs: nnx.Rngs,
    ):
        width, size, dtype = settings.hidden_size, settings.head_dim, options.dtype
        own, shared = settings.num_attention_heads * size, settings.num_key_value_heads * size
        biased = settings.attention_bias
        self.q_proj = dense(width, own, dtype, rngs, bias=biased)
        self.k_proj = dense(width, shared, dtype, rngs, bias=biased)
        self.v_proj = dense(width, shared, dtype, rngs, bias=biased)
        self.o_proj = dense(own, width, dtype, rngs, bias=settings.output_bias)
        self.normalised = settings.family.query_key_norms
        if self.normalised:
            self.q_norm = norm(settings, size, options, rngs)
            self.k_norm = norm(settings, size, options, rngs)
        self.settings = settings
        self.window = window
        self.implementation = options.attention

    def __call__(self, hidden: Hidden, context: Context, key: Any) -> tuple[Hidden, Kept | None]:
        query, keys, values = (
            projection(hidden).reshape(*hidden.shape[:2], -1, self.settings.head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.normalised:
            query, keys = self.q_norm(query), self.k_norm(keys)
        assert context.angles is not None
        query, keys = rotate(query, *context.angles), rotate(keys, *context.angles)
        (keys, values), kept = context.remember(keys, values)
        mixed = attend_causally(
            query,
            keys,
            values,
            context.mask,
            window=self.window,
            scale=self.settings.attention_scale,
            cap=self.settings.attention_cap,
            implementation=self.implementation,
            rate=self.settings.attention_dropout,
            dropout_rng=key,
        )
        return self.o_proj(mixed.reshape(*hidden.shape[:2], -1)), kept


class MLP(nnx.Module):
    """A wide layer, each entry of which is weighed by another's activation."""

    def __init__(self, settings: DecoderSettings, options: Options, rngs: nnx.Rngs):
        width, wide = settings.hidden_size, settings.intermediate_size
        dtype, bias = options.dtype, settings.mlp_bias
        self.gate_proj = dense(width, wide, dtype, rngs, bias=bias)
        self.up_proj = dense(width, wide, dtype, rngs, bias=bias)
        self.down_proj = dense(wide, width, dtype, rngs, bias=bias)
        self.activation = settings.activation

    def __call__(self, hidden: Hidden) -> Hidden:
        gate = ACTIVATIONS[self.activation](self.gate_proj(hidden))
        return self.down_proj(gate * self.up_proj(hidden))


def norm(settings: DecoderSettings, width: int, options: Options, rngs: nnx.Rngs) -> RMSNorm:
    """A norm over `width` entries with the family's offset."""
    offset = settings.family.norm_offset
    return RMSNorm(width, epsilon=settings.epsilon, offset=offset, dtype=options.dtype, rngs=rngs)
