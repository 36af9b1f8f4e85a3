"""What does a scan over the layers save in compiling, and what does it cost in memory and time?

One jitted step of LN tuning (AdamW) on the shape of SmolLM2-135M with all 30 layers, float32,
random weights, a small batch; layers apart and scanned, with each kind of remat. Compiling and
steps are timed in processor time, which other work on the machine changes little: compiling once,
the step as the least of some interleaved runs. The memory is the compiler's analysis. As in
`decoder_memory.py` the pass is switched off with which the CPU compiler undoes remat where layers
are apart; scanned layers do not need that.
"""

import argparse
import time

import jax
import numpy as np
from _results import write_results
from decoder_memory import SHAPE, make_params, make_step

from lntune_jax.models import from_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    config = SHAPE | {"num_hidden_layers": options.layers}
    ids = np.random.default_rng(2).integers(0, 49152, (options.batch, options.length), np.int32)
    figures = {}
    for remat in ("none", "dots_with_no_batch_dims_saveable", "full"):
        running, compiling, times = {}, {}, {}
        for scan_layers in (False, True):
            shapes = from_config(config, "CAUSAL_LM", scan_layers=scan_layers).params
            shared = config, make_params(shapes)
            start = time.process_time()
            running[scan_layers] = make_step(
                shared, {"ids": ids}, remat=remat, scan_layers=scan_layers
            )
            compiling[scan_layers] = time.process_time() - start
            times[scan_layers] = []
        for _ in range(options.rounds + 1):  # the first round warms up
            for scan_layers, (compiled, arguments, _) in running.items():
                start = time.process_time()
                arguments[0], arguments[1], loss = compiled(*arguments)
                jax.block_until_ready((arguments[:2], loss))
                times[scan_layers].append(time.process_time() - start)
        least = {scan_layers: min(times[scan_layers][1:]) for scan_layers in running}
        for scan_layers, (_, _, peak) in running.items():
            name = f"remat {remat}, layers {'scanned' if scan_layers else 'apart'}"
            figures[name] = {
                "compile_processor_seconds": compiling[scan_layers],
                "compile_ratio": compiling[scan_layers] / compiling[False],
                "peak_mb": peak / 1e6,
                "peak_ratio": peak / running[False][2],
                "step_processor_seconds": least[scan_layers],
                "step_ratio": least[scan_layers] / least[False],
            }
            own = figures[name]
            print(
                f"{name:32s} compile {own['compile_processor_seconds']:6.1f} s "
                f"{own['compile_ratio']:5.2f}   peak {own['peak_mb']:6.0f} MB "
                f"{own['peak_ratio']:5.2f}   step {own['step_ratio']:5.2f}",
                flush=True,
            )
    print(f"written to {write_results('scan_layers', figures | {'shape': vars(options)})}")


if __name__ == "__main__":
    main()
