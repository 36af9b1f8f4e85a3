"""What does the backward pass keep of each layer, where does it come from, and is it needed?

`jax.ad_checkpoint.print_saved_residuals` lists what JAX hands from the forward to the backward
pass before the compiler sees it; here by the function that made it, in bytes per token and layer
(the listing of three layers less that of two). Beside it stands what the compiled program holds
(temporaries of four layers less those of two, float32): the compiler computes cheap elementwise
work again where it is read, and keeps less than is listed. Weights are not counted: they are read
where they are. What each entry is for stands in docs/benchmarks/memory.md.
"""

import argparse

import jax
import jax.numpy as jnp
from _results import write_results

from lntune_jax.models.planning.program import count_bytes
from lntune_jax.training.xla_cpu import compiler_options
from tests.support.residuals import MODELS, listed, make_model
from tests.support.shapes import split_loss

METHODS = ("ln", "lora", "full")


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
        found = count_bytes(lowered.compile(compiler_options=compiler_options()))
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
