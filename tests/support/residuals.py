"""What JAX hands from the forward to the backward pass, by the function that made it."""

import contextlib
import io
import re
from collections import Counter

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import print_saved_residuals

from lntune_jax.models import from_config
from tests.support.shapes import BERT, SMOLLM2, split_loss

# The function that an entry comes from, and what it is.
ORIGINS = {
    "genexpr": "queries, keys, values",
    "Norm.__call__": "norms",
    "rotate": "rotated queries and keys",
    "attend": "attention",
    "Linear.__call__": "outputs of other products",
    "Dense.__call__": "outputs of other products",
    "_exact_gelu": "activation function",
    "MLP.__call__": "activation function",
    "Intermediate.__call__": "activation function",
    "(Layer.__call__": "residual stream, the norms' inputs",
    "Attention.__call__": "input of the output projection",
}
_ENTRY = re.compile(r"^(\w+?)(\d*)\[([\d,]*)\] (.*)$")
MODELS = {"llama": SMOLLM2, "bert": BERT}


def list_residuals(model, method, tokens) -> Counter:
    """Bytes by origin, and what the entry is where attention has several.

    Weights and other arguments, and what does not depend on the tokens, are left out.
    """
    loss, (trainable, fixed) = split_loss(model, method, tokens)
    # What does not train is closed over: what it is differentiated by would be kept as well.
    fixed = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), fixed)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        ids = jnp.zeros(tokens.shape, tokens.dtype)
        print_saved_residuals(lambda given: loss(given, fixed, ids), trainable)
    return sum_entries(printed.getvalue(), tokens.size, split=method != "lora")


def sum_entries(text: str, tokens: int, split: bool = True) -> Counter:
    """The sums of what `print_saved_residuals` prints, of arrays with an entry or more a token."""
    found: Counter = Counter()
    for line in text.splitlines():
        kind, bits, shape, origin = _ENTRY.match(line).groups()
        size = 1
        for axis in shape.split(","):
            size *= int(axis or 1)
        if origin.startswith("from ") or size < tokens:
            continue
        name = next((name for part, name in ORIGINS.items() if part in origin), "other")
        if name == "attention":
            square = size // tokens >= 2 * tokens**0.5 and "reshape" not in origin
            name = f"attention, {'masks' if kind == 'bool' else 'scores' if square else 'other'}"
        found[name if split else "all"] += size * (int(bits) // 8 if bits else 1)
    return found


def make_model(name, layers, dtype="float32"):
    config = MODELS[name] | {"num_hidden_layers": layers, "vocab_size": 512}
    return from_config(config, "SEQ_CLS" if name == "bert" else "CAUSAL_LM", dtype=dtype)


def listed(name, method, tokens, dtype="float32") -> dict[str, float]:
    """Bytes per token and layer by origin, as JAX lists them."""
    two, three = (
        list_residuals(make_model(name, layers, dtype), method, tokens) for layers in (2, 3)
    )
    return {origin: (three[origin] - two[origin]) / tokens.size for origin in three}
