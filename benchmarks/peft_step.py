"""What does one step of LayerNorm tuning cost on this CPU, beside PEFT's in PyTorch?

The same model from the same config (random weights, no dropout), the same batch, the same AdamW on
the same leaves: forward, backward, update. PEFT runs eagerly and compiled by inductor, with one
thread and with more, and with torch's fused attention; its best time is the bar. Ours runs with
JAX's defaults, with freed memory kept, with this and XLA's other library of products,
oneDNN, and with memory kept and a device for each core, which takes its part of the rows (fewer
devices, where the rows cannot be divided so). Each variant lives in a process of its own, which
takes steps only when it is its turn. Shown are the median of wall seconds a step, the least, and
the least processor seconds, which hardly see what else the machine does; ratios are taken to PEFT's
best variant, round by round.

Run it in the parity environment, which has torch. First the losses of both with one set of weights
are compared. `--newer PYTHON` names another environment's Python, whose JAX ours run with as well:
the `.venv/bin/python` that `make test` makes with Python 3.13, for one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from _peft_worker import Shape, parse_shape
from _results import write_results

WORKER = Path(__file__).parent / "_peft_worker.py"
SHAPES = ["minilm:8x64:float32", "minilm:8x64:bfloat16"]
LARGER = [
    "bert:4x128:float32",
    "smollm2:2x96:float32",
    "gpt2:2x128:float32",
    "smollm2:2x96:bfloat16",
]
LIMIT = 1.0
PACKAGES = ("torch", "peft", "transformers")
# What a process is asked for, and the environment that it is started in. Threads are XLA's own
# affair: it takes as many as there are cores.
CORES = os.cpu_count() or 1
THREADS = sorted({1, min(2, CORES), max(1, CORES // 2), CORES})
ONEDNN = (
    "--xla_cpu_use_onednn=true "
    "--xla_cpu_experimental_onednn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
)
VARIANTS = {
    "ours": ("ours", {}),
    "ours, memory kept": ("kept", {}),
    "ours, memory kept, oneDNN": ("kept", {"XLA_FLAGS": ONEDNN}),
    "ours, a device a core": ("divided", {}),
} | {
    f"PEFT {way}, {count} thread{'s' * (count > 1)}": (way, {"OMP_NUM_THREADS": str(count)})
    for way in ("eager", "compiled")
    for count in THREADS
}
NEWER = ", newer JAX"
VARIANTS |= {name + NEWER: VARIANTS[name] for name in list(VARIANTS) if name.startswith("ours")}

# For larger models, whose processes take a minute or two each to start.
FEW = [
    variant
    for variant, (_, changes) in VARIANTS.items()
    if changes.get("OMP_NUM_THREADS", str(THREADS[-1])) == str(THREADS[-1])
]


class Worker:
    """A process that takes steps when it is told to."""

    def __init__(self, variant: str, shape: Shape, newer: str | None):
        side, changes = VARIANTS[variant]
        python = newer if variant.endswith(NEWER) and newer else sys.executable
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", **changes}
        self.process = subprocess.Popen(
            [python, "-W", "ignore", WORKER, side, str(shape)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.start = self.read()

    def read(self) -> dict:
        """The process's next answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended: see what it wrote above")
        return json.loads(line)

    def take_steps(self, count: int) -> dict:
        """Seconds of a step, by the wall and by the processor."""
        assert self.process.stdin is not None
        print(count, file=self.process.stdin, flush=True)
        return self.read()

    def end(self) -> None:
        """Close its input, and wait."""
        self.process.communicate()


def compare(
    shape: Shape, variants: list[str], rounds: int, steps: int, newer: str | None = None
) -> dict[str, dict]:
    """Times of every variant of one shape, in turns."""
    workers = {}
    try:
        for variant in variants:
            workers[variant] = Worker(variant, shape, newer)
        wall: dict[str, list[float]] = {variant: [] for variant in variants}
        processor: dict[str, list[float]] = {variant: [] for variant in variants}
        for turn in range(rounds + 1):  # the first warms up
            for variant in variants[:: 1 if turn % 2 else -1]:
                times = workers[variant].take_steps(steps)
                if turn:
                    wall[variant].append(times["wall"])
                    processor[variant].append(times["processor"])
    finally:
        for worker in workers.values():
            worker.end()
    rows = {
        variant: {
            "median_seconds": statistics.median(wall[variant]),
            "least_seconds": min(wall[variant]),
            "least_processor_seconds": min(processor[variant]),
            "first_step_seconds": workers[variant].start["first_step"],
            "by": workers[variant].start["by"],
        }
        for variant in variants
    }
    theirs = [variant for variant in variants if variant.startswith("PEFT")]
    bars = {
        "ratio": (wall, min(theirs, key=lambda each: rows[each]["median_seconds"])),
        "processor_ratio": (
            processor,
            min(theirs, key=lambda each: rows[each]["least_processor_seconds"]),
        ),
    }
    for column, (times, bar) in bars.items():
        for variant, row in rows.items():
            pairs = zip(times[variant], times[bar], strict=True)
            row[column] = statistics.median(mine / best for mine, best in pairs)
    for variant, row in rows.items():
        if "ours" in wall:
            pairs = zip(wall[variant], wall["ours"], strict=True)
            row["ratio_to_ours"] = statistics.median(time / mine for time, mine in pairs)
    return rows


def check_losses() -> dict[str, float]:
    """The loss of both sides with the same weights, which must be one."""
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", WORKER, "check", SHAPES[0]],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"},
    )
    losses = json.loads(answer.stdout.splitlines()[-1])
    assert abs(losses["ours"] - losses["peft"]) < 1e-5, losses
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--larger", action="store_true", help=" ".join(LARGER))
    parser.add_argument("--shapes", nargs="+", help="minilm:8x64:float32 ...")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS)
    parser.add_argument("--newer", metavar="PYTHON", help="for ours once more, with its JAX")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of each variant in a round")
    options = parser.parse_args()
    shapes = options.shapes or (LARGER if options.larger else SHAPES)
    variants = options.variants or (FEW if options.larger else list(VARIANTS))
    if not options.newer:
        if any(name.endswith(NEWER) for name in options.variants or []):
            parser.error(f"variants that end in {NEWER!r} need --newer PYTHON")
        variants = [name for name in variants if not name.endswith(NEWER)]
    settings = {"rounds": options.rounds, "steps": options.steps, "limit": LIMIT}
    figures: dict[str, dict] = {"loss with the same weights": check_losses()}
    print("losses with the same weights:", figures["loss with the same weights"], flush=True)
    for text in shapes:
        figures[text] = compare(
            parse_shape(text), variants, options.rounds, options.steps, options.newer
        )
        head = (text, "median s", "least s", "CPU s", "ratio", "CPU", "limit")
        print("{:38s} {:>9s} {:>8s} {:>8s} {:>6s} {:>6s} {:>6s}".format(*head))
        for variant, row in figures[text].items():
            limit = f"{LIMIT:6.2f}" if variant.startswith("ours") else ""
            print(
                f"{variant:38s} {row['median_seconds']:9.3f} {row['least_seconds']:8.3f} "
                f"{row['least_processor_seconds']:8.3f} {row['ratio']:6.2f} "
                f"{row['processor_ratio']:6.2f} {limit}",
                flush=True,
            )
        # After each shape: a run that is cut short leaves what it has found.
        name = "peft_step_larger" if options.larger else "peft_step"
        path = write_results(name, figures | {"settings": settings}, PACKAGES)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
