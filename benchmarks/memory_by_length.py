"""How does the memory of a step grow with the length of the sequence, by method and kind of remat?

One row, AdamW, float32, SmolLM2-135M's shape with its layers in a loop: nothing runs. Memory is the
compiler's peak of a step, arguments included. `longest_sequence.py` asks the other way round: which
length fits into a given memory.
"""

import argparse

from _results import write_results
from longest_sequence import CASES, SHAPES, bytes_at

LENGTHS = (256, 512, 1024, 2048, 4096)
SCANNED = {name: case for name, case in CASES.items() if case[2]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    options = parser.parse_args()
    figures: dict = {}
    for name, case in SCANNED.items():
        figures[name] = {
            f"{length:,} tokens_bytes": int(bytes_at(SHAPES["smollm2-135m"], case, length))
            for length in options.lengths
        }
        print(name, figures[name], flush=True)
        write_results("memory_by_length", figures)  # a run that is cut short leaves what it found


if __name__ == "__main__":
    main()
