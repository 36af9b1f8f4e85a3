"""Shapes of published models, as their config files say, and the loss of each method."""

import jax

import lntune_jax as lnt
from lntune_jax.models import causal_lm_loss
from lntune_jax.models.estimating.lora import add_lora, lora_shapes
from lntune_jax.models.nn.skeleton import nest

SMOLLM2 = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
    "max_position_embeddings": 1 << 20,
}
LLAMA_1B = SMOLLM2 | {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
BERT = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "hidden_act": "gelu",
}


def loss_of(model, chunk=8192):
    """The loss of a model, of its weights and of tokens."""
    if model.task == "CAUSAL_LM":
        return lambda params, tokens: causal_lm_loss(model, params, tokens, chunk=chunk)
    return lambda params, tokens: model.apply(params, tokens).logits.astype("float32").sum()


def split_loss(model, method, tokens, config=None):
    """A loss of what trains, of what does not and of tokens, and shapes of the first two."""
    loss = loss_of(model)
    if method == "ln":
        config = config or lnt.LNTuningConfig()
        halves = lnt.partition_params(model.params, config, name_map=model.name_map)
        return (lambda t, f, x: loss(lnt.merge_params(t, f), x)), tuple(halves)
    if method == "full":
        return (lambda t, _, x: loss(t, x)), (model.params, None)
    flat = jax.tree_util.tree_flatten_with_path(model.params)[0]
    leaves = {tuple(key.key for key in path): leaf for path, leaf in flat}
    adapted = add_lora(lambda given, x: loss(nest(given), x), leaves, tokens)
    return adapted, (lora_shapes(leaves, 8), leaves)
