"""How accurate is a classifier tuned by norms alone, beside a frozen encoder and full fine-tuning?

all-MiniLM-L6-v2 on sentences from rotten_tomatoes, by the command `lntune-jax demo --full`: 2,048
rows to train on, 500 to pick the best step by, and the figures here from 2,000 test rows. "frozen
head" trains a linear head on the frozen encoder. The learning rates are the demo's; none was
searched for at length. Nothing is timed.
"""

import argparse
import re
import subprocess
import sys
import tempfile

from _results import write_results

METHODS = ("frozen head", "LN tuning", "full")
ROWS = {"training": 2048, "validation": 500, "test": 2000}


def measure(seeds: list[int]) -> dict[str, dict[str, float]]:
    """Test accuracy of each method by seed, and its trainable parameters."""
    command = [sys.executable, "-m", "lntune_jax", "demo", "--full", "--seeds", *map(str, seeds)]
    with tempfile.TemporaryDirectory() as folder:
        ended = subprocess.run([*command, "--output", folder], capture_output=True, text=True)
    if ended.returncode:
        sys.exit(ended.stderr)
    return read_figures(ended.stdout + ended.stderr, seeds)


def read_figures(text: str, seeds: list[int]) -> dict[str, dict[str, float]]:
    """What the demo printed, as rows: a method's runs come in the order of the seeds."""
    figures: dict[str, dict[str, float]] = {}
    for name in METHODS:
        counts = re.findall(rf"^{name}, seed \d+: trainable params: ([\d,]+)", text, re.MULTILINE)
        found = re.findall(rf"^{name}: test accuracy ([\d.]+) after", text, re.MULTILINE)
        if len(found) != len(seeds) or not counts:
            sys.exit(f"the demo printed {len(found)} accuracies of {name!r}, not {len(seeds)}")
        row: dict[str, float] = {"trainable": int(counts[0].replace(",", ""))}
        row |= {
            f"accuracy, seed {seed}": float(each) for seed, each in zip(seeds, found, strict=True)
        }
        row["accuracy"] = sum(map(float, found)) / len(found)
        figures[name] = row
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    figures = measure(options.seeds)
    write_results("accuracy", {**figures, "settings": {"rows": ROWS}}, others=("safetensors",))


if __name__ == "__main__":
    main()
