"""Small checkpoints of each kind of model, and the float model that a quantised one stands for."""

import jax
import jax.numpy as jnp

import lntune_jax as lnt
from lntune_jax.models import causal_lm_loss
from lntune_jax.models.nn.quantized import dequantize, read_kernel
from lntune_jax.models.nn.skeleton import by_path, nest
from tests.support.checkpoints import REFERENCE

# Directory and task: one of each kind of decoder, and the encoders.
MODELS = {
    "llama": (REFERENCE / "decoders" / "llama", "CAUSAL_LM"),
    "gemma2": (REFERENCE / "decoders" / "gemma2", "CAUSAL_LM"),
    "gpt2": (REFERENCE / "decoders" / "gpt2", "CAUSAL_LM"),
    "olmo2": (REFERENCE / "decoders" / "olmo2", "CAUSAL_LM"),
    "phi3": (REFERENCE / "decoders" / "phi3", "CAUSAL_LM"),
    "bert": (REFERENCE / "bert", "SEQ_CLS"),
    "roberta": (REFERENCE / "roberta_seq_cls", "SEQ_CLS"),
    "distilbert": (REFERENCE / "distilbert_seq_cls", "SEQ_CLS"),
    "modernbert": (REFERENCE / "modernbert_first_token", "SEQ_CLS"),
}
TOKENS = jax.random.randint(jax.random.key(1), (4, 12), 3, 60, "int32")
LABELS = jnp.array([0, 1, 1, 0], "int32")


def dequantized(params, dtype="float32"):
    """The tree with a float kernel in the place of each quantised one."""
    flat = by_path(params)
    found = {}
    for path, leaf in flat.items():
        if path[-1] == "qvalue":
            parts = {"qvalue": leaf, "scale": flat[(*path[:-1], "scale")]}
            found[path[:-2]] = dequantize(read_kernel({"array": parts}), dtype)
        elif path[-2:] != ("array", "scale"):
            found[path] = leaf
    return nest(found)


def loss_of(model):
    """The loss of the model's task on a tree of weights."""

    def loss(params):
        if model.task == "CAUSAL_LM":
            return causal_lm_loss(model, params, TOKENS)
        logits = model.apply(params, TOKENS).logits.astype(jnp.float32)
        scores = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(scores, LABELS[:, None], axis=1).mean()

    return loss


def gradients(model, params):
    """Loss and gradient of the norms."""
    halves = lnt.partition_params(params, lnt.LNTuningConfig())
    return jax.jit(lnt.value_and_grad(loss_of(model)))(*halves)
