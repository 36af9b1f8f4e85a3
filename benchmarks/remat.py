"""How much memory does each kind of remat save, and how much time does it cost?

A step of LN tuning (loss, gradient, AdamW) on SmolLM2-135M's shape with few layers, float32, for
each value of `remat=`, layers apart and scanned, beside LoRA and full fine-tuning without remat.
"dots_saveable" keeps the matrix products that the backward pass reads and computes norms,
activations and softmax again: no product is computed twice, so its FLOPs are those of "none". It is
JAX's policy of that name plus the results of cuDNN's attention.
"dots_with_no_batch_dims_saveable" is JAX's too, and computes the products of queries and keys
again. Peaks are the compiler's, times medians of interleaved runs, both as ratios to LN tuning
without remat, layers apart. The figure is docs/benchmarks/remat.png.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from _results import write_results
from _timing import median_ratio, time_in_turns
from decoder_memory import make_params

from lntune_jax.models import from_config
from lntune_jax.models.planning.program import count_bytes, count_flops
from tests.support.mesh_steps import compile_step, make_step
from tests.support.shapes import SMOLLM2

FIGURE = Path(__file__).parents[1] / "docs" / "benchmarks" / "remat.png"
REMATS = ("none", "dots_saveable", "dots_with_no_batch_dims_saveable", "full")
MARKS = ("o", "D", "X", "v")
CASES = {
    **{f"LN, {remat}": ("ln", remat, False) for remat in REMATS},
    **{f"LN, {remat}, scanned": ("ln", remat, True) for remat in REMATS},
    "LoRA, none": ("lora", "none", False),
    "full fine-tuning, none": ("full", "none", False),
}


def compile_case(config, case, tokens):
    """The compiled step of a case, and shapes of what it takes besides the tokens."""
    method, remat, scanned = case
    model = from_config(config, "CAUSAL_LM", remat=remat, scan_layers=scanned)
    return compile_step(model, method, tokens), make_step(model, method)[1]


def make_run(compiled, given, ids):
    """A function that takes a step from where the one before ended."""
    held = make_params(given)
    # Second moments are never negative.
    held = [held[0], jax.tree.map(jnp.abs, held[1]), *held[2:]]

    def run():
        *after, loss = compiled(*held, ids)
        held[:] = [before if now is None else now for before, now in zip(held, after, strict=True)]
        jax.block_until_ready((held, loss))

    return run


def plot(figures, path):
    """Peak against time: a line for each form of the layers, a point for each kind of remat."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for ending, form in {"": "layers apart", ", scanned": "layers scanned"}.items():
        points = [figures[f"LN, {remat}{ending}"] for remat in REMATS]
        places = [(own["time_ratio"], own["peak_ratio"]) for own in points]
        (line,) = axes.plot(*zip(*places, strict=True), label=f"LN tuning, {form}")
        for mark, place in zip(MARKS, places, strict=True):
            axes.plot(*place, mark, color=line.get_color())
    for remat, mark in zip(REMATS, MARKS, strict=True):
        axes.plot([], [], mark, color="grey", label=f"remat {remat}")
    for name, mark in {"LoRA, none": "^", "full fine-tuning, none": "s"}.items():
        own = figures[name]
        axes.plot(own["time_ratio"], own["peak_ratio"], mark, label=name)
    axes.set_xlabel("time of a step (LN tuning without remat = 1)")
    axes.set_ylabel("peak memory (LN tuning without remat = 1)")
    axes.legend(loc="upper left", fontsize=8)
    axes.margins(x=0.12, y=0.1)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    config = SMOLLM2 | {"num_hidden_layers": options.layers, "vocab_size": 8192}
    tokens = jax.ShapeDtypeStruct((options.batch, options.length), "int32")
    ids = np.random.default_rng(2).integers(0, 8192, tokens.shape, np.int32)
    figures, runs = {}, {}
    for name, case in CASES.items():
        compiled, given = compile_case(config, case, tokens)
        runs[name] = make_run(compiled, given, ids)
        counted = count_bytes(compiled)
        figures[name] = {
            "peak_mb": counted["peak_bytes"] / 1e6,
            "temporary_mb": counted["temporary_bytes"] / 1e6,
            "gflops": count_flops(compiled.as_text()) / 1e9,
        }
    times = time_in_turns(runs, options.rounds)
    for name, own in figures.items():
        own["peak_ratio"] = own["peak_mb"] / figures["LN, none"]["peak_mb"]
        own["time_ratio"] = median_ratio(times, name, "LN, none")
        print(
            f"{name:24s} peak {own['peak_mb']:7.1f} MB {own['peak_ratio']:5.2f}   temporaries "
            f"{own['temporary_mb']:7.1f} MB   {own['gflops']:6.2f} GFLOPs   "
            f"time {own['time_ratio']:5.2f}"
        )
    plot(figures, FIGURE)
    print(f"written to {write_results('remat', figures | {'shape': vars(options)})} and {FIGURE}")


if __name__ == "__main__":
    main()
