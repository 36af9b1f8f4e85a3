"""A Llama in Flax NNX, as one would write it by hand: the native side of `torchax_step.py`."""

import jax
import jax.numpy as jnp
from flax import nnx


class Attention(nnx.Module):
    """Causal attention with rotary positions and grouped key-value heads."""

    def __init__(self, config, rngs: nnx.Rngs):
        self.head = config.head_dim
        keys = config.num_key_value_heads * self.head

        def linear(inputs, outputs):
            return nnx.Linear(inputs, outputs, use_bias=False, rngs=rngs)

        self.q_proj = linear(config.hidden_size, config.num_attention_heads * self.head)
        self.k_proj = linear(config.hidden_size, keys)
        self.v_proj = linear(config.hidden_size, keys)
        self.o_proj = linear(config.num_attention_heads * self.head, config.hidden_size)

    def __call__(self, x, cosine, sine, mask):
        def heads(x):
            return x.reshape(*x.shape[:2], -1, self.head)

        def rotate(x):
            left, right = jnp.split(x, 2, axis=-1)
            return x * cosine + jnp.concatenate([-right, left], axis=-1) * sine

        query, key = rotate(heads(self.q_proj(x))), rotate(heads(self.k_proj(x)))
        y = jax.nn.dot_product_attention(query, key, heads(self.v_proj(x)), mask=mask)
        return self.o_proj(y.reshape(*x.shape[:2], -1))


class FeedForward(nnx.Module):
    """The gated feed-forward block."""

    def __init__(self, config, rngs: nnx.Rngs):
        width, hidden = config.hidden_size, config.intermediate_size
        self.gate_proj = nnx.Linear(width, hidden, use_bias=False, rngs=rngs)
        self.up_proj = nnx.Linear(width, hidden, use_bias=False, rngs=rngs)
        self.down_proj = nnx.Linear(hidden, width, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return self.down_proj(nnx.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nnx.Module):
    """Attention and feed-forward, each behind a norm."""

    def __init__(self, config, rngs: nnx.Rngs):
        self.input_layernorm = norm(config, rngs)
        self.self_attn = Attention(config, rngs)
        self.post_attention_layernorm = norm(config, rngs)
        self.mlp = FeedForward(config, rngs)

    def __call__(self, x, cosine, sine, mask):
        x = x + self.self_attn(self.input_layernorm(x), cosine, sine, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nnx.Module):
    """A causal language model with tied embeddings; module names as in transformers."""

    def __init__(self, config, rngs: nnx.Rngs):
        self.config = config
        self.embed_tokens = nnx.Embed(config.vocab_size, config.hidden_size, rngs=rngs)
        layers = range(config.num_hidden_layers)
        self.layers = nnx.List([Layer(config, rngs) for _ in layers])
        self.norm = norm(config, rngs)

    def __call__(self, ids, attention_mask):
        base, half = self.config.rope_parameters["rope_theta"], self.config.head_dim // 2
        frequencies = base ** (-jnp.arange(half) / half)
        angles = jnp.tile(jnp.arange(ids.shape[1])[:, None] * frequencies, 2)[:, None]
        causal = jnp.tril(jnp.ones((ids.shape[1], ids.shape[1]), bool))
        mask = causal & (attention_mask > 0)[:, None, None]
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, jnp.cos(angles), jnp.sin(angles), mask)
        return self.embed_tokens.attend(self.norm(x))


def norm(config, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(config.hidden_size, epsilon=config.rms_norm_eps, rngs=rngs)


def make_llama(config):
    """Shapes and pure function: `apply(params, ids, attention_mask) -> logits`."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Llama(config, nnx.Rngs(0))))
    return nnx.to_pure_dict(state), lambda params, *inputs: nnx.merge(graph, nnx.State(params))(
        *inputs
    )
