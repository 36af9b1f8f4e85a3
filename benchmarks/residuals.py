"""What does the backward pass keep of each layer, where does it come from, and is it needed?

`jax.ad_checkpoint.print_saved_residuals` lists what JAX hands from the forward to the backward
pass before the compiler sees it; here by the function that made it, in bytes per token and layer
(the listing of three layers less that of two). Beside it stands what the compiled program holds
(temporaries of four layers less those of two, float32): the compiler computes cheap elementwise
work again where it is read, and keeps less than is listed. Weights are not counted: they are read
where they are. What each entry is for stands in docs/benchmarks/memory.md.
"""

import argparse
import contextlib
import io
import re
from collections import Counter

import jax
import jax.numpy as jnp
from _programs import count_bytes
from _results import write_results
from _shapes import BERT, SMOLLM2, split_loss
from jax.ad_checkpoint import print_saved_residuals

import lntune_jax as lnt
from lntune_jax.models import from_config

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
METHODS = ("ln", "lora", "full")
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


def held(name, method, tokens) -> float:
    """Bytes per token and layer that the compiled program holds more for two layers more."""
    bytes_of = []
    for layers in (2, 4):
        loss, given = split_loss(make_model(name, layers), method, tokens)
        gradient = jax.grad(loss)

        # Sums in place of gradients, which in full fine-tuning are as large as the weights, and
        # in whose memory the compiler would put other things before.
        def sums(*arguments, gradient=gradient):
            return jax.tree.map(jnp.sum, gradient(*arguments))

        lowered = jax.jit(sums).lower(*given, tokens)
        found = count_bytes(lowered.compile(compiler_options=lnt.compiler_options()))
        bytes_of.append(found["temporary_bytes"])
    return (bytes_of[1] - bytes_of[0]) / 2 / tokens.size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    options = parser.parse_args()
    tokens = jax.ShapeDtypeStruct((options.batch, options.length), "int32")
    figures = {"shape": vars(options)}
    for name in MODELS:
        for dtype in ("float32", "bfloat16"):
            rows: dict = {}
            for method in METHODS:
                found = listed(name, method, tokens, dtype)
                for origin, size in found.items():
                    if size and origin != "all":
                        rows.setdefault(origin, {})[method] = size
                rows.setdefault("sum, as JAX lists it", {})[method] = sum(found.values())
            rows["sum, as JAX lists it"] = rows.pop("sum, as JAX lists it")
            if dtype == "float32":
                rows["compiled program"] = {m: held(name, m, tokens) for m in METHODS}
            figures[f"{name}, {dtype}, bytes per token and layer"] = rows
            print(f"{name}, {dtype}, bytes per token and layer" + " " * 6 + "ln     lora     full")
            for row, columns in rows.items():
                cells = (f"{columns[m]:9,.0f}" if m in columns else " " * 9 for m in METHODS)
                print(f"  {row:36s}" + "".join(cells))
    print(f"written to {write_results('residuals', figures)}")


if __name__ == "__main__":
    main()
