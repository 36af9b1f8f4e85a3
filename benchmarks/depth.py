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
from _programs import count_bytes, count_flops
from _results import write_results
from _shapes import SMOLLM2, split_loss
from _timing import median_ratio, time_in_turns
from decoder_memory import make_params

import lntune_jax as lnt
from lntune_jax.models import from_config

SHAPE = SMOLLM2 | {"vocab_size": 8192}


def top_norms(k, layers):
    """The config of the last norm and those of the top k layers."""
    numbers = "|".join(str(number) for number in range(layers - k, layers))
    below = rf"|model\.layers\.({numbers})\..*" if k else ""
    return lnt.LNTuningConfig(target_modules=rf"model\.norm{below}")


def make_model(config, k, scanned):
    """The model with the layers below the top k in a loop of their own, where that is of use."""
    layers = config["num_hidden_layers"]
    frozen = 0 if not scanned or k == layers else min(layers - k, layers - 1)
    return from_config(config, "CAUSAL_LM", scan_layers=scanned, frozen_layers=frozen)


def compile_top(model, k, tokens):
    """Loss and gradient by the norms of the top k layers, and what they are called with."""
    config = top_norms(k, model.settings.num_hidden_layers)
    loss, given = split_loss(model, "ln", tokens, config)
    return jax.jit(jax.value_and_grad(loss)).lower(*given, tokens).compile(), given


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
