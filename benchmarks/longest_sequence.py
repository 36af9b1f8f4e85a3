"""How long a sequence can a step train on in a given memory, by each method and kind of remat?

One row, AdamW, random shapes only: nothing runs. The peak of the compiled step is found at three
lengths, a polynomial of the second degree (the scores of attention grow with the square) gives the
longest that should fit, and that is compiled too; so on, until one fits and the next does not.
Lengths are multiples of 64. In float32, since for bfloat16 the CPU compiler does much of its work
in float32. LoRA is not followed into scanned layers: beside it stands LN tuning with layers apart.
Attention is XLA's; flash attention keeps no scores, and then lengths are far greater on a GPU.
"""

import argparse

import jax
import numpy as np
from _results import write_results

from lntune_jax.models import from_config
from tests.support.mesh_steps import compiled_bytes
from tests.support.shapes import LLAMA_1B, SMOLLM2

SHAPES = {"smollm2-135m": SMOLLM2, "llama-3.2-1b": LLAMA_1B}
MEMORIES = {"smollm2-135m": (2, 8), "llama-3.2-1b": (8, 16)}
CASES = {
    "LN, none": ("ln", "none", True),
    "LN, dots_saveable": ("ln", "dots_saveable", True),
    "LN, dots_with_no_batch_dims_saveable": ("ln", "dots_with_no_batch_dims_saveable", True),
    "LN, full": ("ln", "full", True),
    "full fine-tuning, none": ("full", "none", True),
    "LN, none, layers apart": ("ln", "none", False),
    "LoRA, none, layers apart": ("lora", "none", False),
}
STEP = 64
PROBES = (256, 512, 1024)


def bytes_at(config, case, length):
    """The compiler's peak of a step with one row of that length."""
    method, remat, scanned = case
    model = from_config(config, "CAUSAL_LM", remat=remat, scan_layers=scanned)
    return compiled_bytes(model, method, jax.ShapeDtypeStruct((1, length), "int32"))


def fit(points, memory):
    """The polynomial of the second degree through the three lengths that come nearest."""
    near = sorted(points, key=lambda length: abs(points[length] - memory))[:3]
    return np.polyfit(near, [points[length] for length in near], 2)


def longest_by(curve, memory):
    """The greatest multiple of 64 at which a curve stays below a memory."""
    a, b, c = (float(number) for number in curve)
    if c >= memory:
        return 0
    a = max(a, 1e-9)
    length = (-b + (b * b + 4 * a * (memory - c)) ** 0.5) / (2 * a)
    return int(length) // STEP * STEP


def find_longest(config, case, memory, probes):
    """The longest that was compiled and fits, where the next was compiled too, and its bytes."""
    points = dict(probes)
    while True:
        fitting = max((length for length, held in points.items() if held <= memory), default=0)
        beyond = min((length for length, held in points.items() if held > memory), default=None)
        if beyond is not None and beyond - fitting <= STEP:
            return fitting, points.get(fitting, 0)
        length = max(longest_by(fit(points, memory), memory), fitting + STEP)
        length = length if beyond is None else min(length, beyond - STEP)
        points[length] = bytes_at(config, case, length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--layers", type=int, default=None, help="fewer, for a quick look")
    parser.add_argument("--memory", type=float, nargs="*", help="gigabytes (1e9 bytes)")
    options = parser.parse_args()
    config = SHAPES[options.shape]
    if options.layers:
        config = config | {"num_hidden_layers": options.layers}
    memories = options.memory or MEMORIES[options.shape]
    figures: dict = {}
    for name, case in CASES.items():
        probes = {length: bytes_at(config, case, length) for length in PROBES}
        figures[name] = {}
        for memory in memories:
            length, held = find_longest(config, case, memory * 1e9, probes)
            figures[name][f"{memory:g} GB"] = length
            figures[name][f"held of {memory:g} GB"] = held / 1e9
        cells = "".join(f"{figures[name][f'{memory:g} GB']:10,d}" for memory in memories)
        print(f"{name:26s}{cells}", flush=True)
        # After each case: a run that is cut short leaves what it has found.
        table = {"shape": vars(options), "tokens in one row": figures}
        part = "" if options.shape == "smollm2-135m" else f"_{options.shape}"
        path = write_results(f"longest_sequence{part}", table)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
