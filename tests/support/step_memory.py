"""A tiny language model, and the bytes that the compiler gives an AdamW step of it."""

from __future__ import annotations

import jax
import optax

import lntune_jax as lnt
from lntune_jax.models import causal_lm_loss
from lntune_jax.models.estimating.lora import add_lora, lora_shapes
from lntune_jax.models.nn.skeleton import by_path, nest

TINY = {
    "model_type": "llama",
    "vocab_size": 2048,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
# XLA's CPU compiler takes out the barriers that keep recomputed work apart from the first, and
# then merges the two: without this option remat changes nothing there.
OPTIONS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


def compile_step(model, method: str, tokens, options=OPTIONS):
    """Arguments, temporaries and outputs of an AdamW step, less what takes arguments' places."""
    tx = optax.adamw(1e-3)

    def loss(params, tokens):
        return causal_lm_loss(model, params, tokens)

    if method == "ln":
        trainable, frozen = lnt.partition_params(model.params, lnt.LNTuningConfig())
        gradient = lnt.value_and_grad(loss)
    elif method == "lora":
        frozen = by_path(model.params)
        trainable = lora_shapes(frozen, 8)
        adapted = add_lora(lambda flat, x: loss(nest(flat), x), frozen, tokens)
        gradient = jax.value_and_grad(adapted)
    else:
        trainable, frozen = model.params, None
        gradient = jax.value_and_grad(lambda params, _, tokens: loss(params, tokens))

    def step(trainable, state, frozen, tokens):
        value, gradients = gradient(trainable, frozen, tokens)
        with jax.numpy_dtype_promotion("standard"):  # Optax raises floats to integer powers
            updates, state = tx.update(gradients, state, trainable)
        return optax.apply_updates(trainable, updates), state, value

    state = jax.eval_shape(tx.init, trainable)
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(trainable, state, frozen, tokens)
    found = lowered.compile(compiler_options=options).memory_analysis()
    kept = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return kept + found.temp_size_in_bytes
