"""What does a step cost that trains the norms of the top k layers only?

Loss and gradient of LN tuning in the norms of the top k layers and in the last norm (k = 0: that
norm alone). The backward pass ends at the lowest norm that trains, so that FLOPs are those of the
forward pass, and about as many again for each of the k layers. Layers apart get that from JAX;
scanned ones with `frozen_layers=`, which puts the layers below in a loop of their own: a single
loop is differentiated whole ("one loop"). FLOPs and bytes are those of the compiled program,
times medians of interleaved runs to k = all.
"""

import argparse

import jax
import numpy as np
from _results import write_results
from _timing import median_ratio, time_in_turns
from decoder_memory import make_params

from lntune_jax.models.planning.program import count_bytes, count_flops
from tests.support.depth import compile_top, make_model
from tests.support.shapes import SMOLLM2

SHAPE = SMOLLM2 | {"vocab_size": 8192}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    config = SHAPE | {"num_hidden_layers": options.layers}
    tokens = jax.ShapeDtypeStruct((options.batch, options.length), "int32")
    ids = np.random.default_rng(2).integers(0, 8192, tokens.shape, np.int32)
    cases = [(k, form) for k in counts(options.layers) for form in ("apart", "scanned")]
    cases.append((options.layers // 4, "one loop"))
    figures, runs = {}, {}
    for k, form in cases:
        model = make_model(config, k, form != "apart")
        if form == "one loop":  # stacks train whole: all of them, though few are wanted
            model = make_model(config, options.layers, True)
        trained = options.layers if form == "one loop" else k
        compiled, given = compile_top(model, trained, tokens)
        name = f"top {k} of {options.layers}, {form}"
        held = make_params(given)
        runs[name] = lambda run=compiled, held=held: jax.block_until_ready(run(*held, ids))
        figures[name] = {
            "gflops": count_flops(compiled.as_text()) / 1e9,
            "temporary_mb": count_bytes(compiled)["temporary_bytes"] / 1e6,
        }
    times = time_in_turns(runs, options.rounds)
    whole = f"top {options.layers} of {options.layers}, apart"
    per_layer = figures[whole]["gflops"] - figures[f"top 0 of {options.layers}, apart"]["gflops"]
    for (k, _), (name, own) in zip(cases, figures.items(), strict=True):
        part = per_layer * k / options.layers
        own["limit_gflops"] = figures[whole]["gflops"] - per_layer + part
        own["time_ratio"] = median_ratio(times, name, whole)
        print(
            f"{name:26s} {own['gflops']:8.2f} GFLOPs (straight line {own['limit_gflops']:8.2f}) "
            f"{own['temporary_mb']:7.1f} MB  time {own['time_ratio']:5.2f}"
        )
    print(f"written to {write_results('depth', figures | {'shape': vars(options)})}")


def counts(layers):
    """Which k are shown."""
    return sorted({0, 1, layers // 4, layers // 2, layers})


if __name__ == "__main__":
    main()
