"""GPT-2: learned positions, layer norms before attention and MLP, one product for all of q, k, v.

Every attribute is called what PyTorch's transformers calls it. Its `Conv1D` keeps weights as
(inputs, outputs), which is how kernels are kept here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx

from ._activations import ACTIVATIONS
from ._attention import attend_causally
from ._dropout import dropout, split_key
from ._layers import Embed, LayerNorm, dense
from ._rows import keep_rows_apart, spread_lookup
from ._scan import scan_layers, stack_layers
from ._stack import Context, Options, run_layers

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from ._cache import Cache
    from ._decoder_inputs import DecoderInputs
    from ._gpt2_settings import Gpt2Settings
    from ._stack import Kept

    Hidden = Float[Array, "batch length hidden"]


class Gpt2(nnx.Module):
    """From token ids to hidden states."""

    def __init__(self, settings: Gpt2Settings, options: Options, rngs: nnx.Rngs):
        """Make the modules."""
        width, dtype = settings.hidden_size, options.dtype
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

    @property
    def table(self) -> Embed:
        """The word embeddings, which a tied head reads too."""
        return self.wte

    def __call__(self, inputs: DecoderInputs, key: Any) -> tuple[Hidden, Cache | None]:
        """Compute the last hidden states, and the cache with these tokens in it."""
        first, rest = split_key(key, 2)
        hidden = spread_lookup(self.wte(inputs.input_ids)) + self.wpe(inputs.position_ids)
        hidden = dropout(hidden, self.rate, first)
        mask = inputs.mask(None)
        contexts = [Context(mask, scale=scale) for scale in self.scales]
        run = scan_layers if self.options.scan_layers else run_layers
        hidden, cache = run(self.h, hidden, contexts, inputs, self.options.remat, rest)
        return keep_rows_apart(self.ln_f(hidden)), cache


class Block(nnx.Module):
    """Attention, then the MLP, each on a normalised state and added to it."""

    def __init__(self, settings: Gpt2Settings, scale: float, options: Options, rngs: nnx.Rngs):
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

    def __init__(self, settings: Gpt2Settings, scale: float, options: Options, rngs: nnx.Rngs):
        width, dtype = settings.hidden_size, options.dtype
        self.c_attn = dense(width, 3 * width, dtype, rngs)
        self.c_proj = dense(width, width, dtype, rngs)
        self.settings = settings
        self.scale = scale
        self.implementation = options.attention

    def __call__(self, hidden: Hidden, context: Context, key: Any) -> tuple[Hidden, Kept | None]:
        first, second = split_key(key, 2)
        shape = (*hidden.shape[:2], self.settings.num_attention_heads, -1)
        query, keys, values = (
            part.reshape(shape) for part in jnp.split(self.c_attn(hidden), 3, axis=-1)
        )
        (keys, values), kept = context.remember(keys, values)
        mixed = attend_causally(
            query,
            keys,
            values,
            context.mask,
            window=None,
            scale=self.scale if context.scale is None else context.scale,
            cap=None,
            implementation=self.implementation,
            rate=self.settings.attention_dropout,
            dropout_rng=first,
        )
        mixed = self.c_proj(mixed.reshape(hidden.shape))
        return dropout(mixed, self.settings.residual_dropout, second), kept


class MLP(nnx.Module):
    """A wide layer, an activation, and the way back."""

    def __init__(self, settings: Gpt2Settings, options: Options, rngs: nnx.Rngs):
        width, wide = settings.hidden_size, settings.intermediate_size
        self.c_fc = dense(width, wide, options.dtype, rngs)
        self.c_proj = dense(wide, width, options.dtype, rngs)
        self.activation = settings.activation
        self.rate = settings.residual_dropout

    def __call__(self, hidden: Hidden, key: Any) -> Hidden:
        inner = ACTIVATIONS[self.activation](self.c_fc(hidden))
        return dropout(self.c_proj(inner), self.rate, key)


def _norm(settings: Gpt2Settings, options: Options, rngs: nnx.Rngs) -> LayerNorm:
    width = settings.hidden_size
    return LayerNorm(width, epsilon=settings.epsilon, dtype=options.dtype, rngs=rngs)
