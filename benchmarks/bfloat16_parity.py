"""Does a small step on a bfloat16 base teach anything: in PEFT, and here?

A small llama of random weights, 100 AdamW steps at two learning rates, in five ways: PEFT and ours
on a float32 base; PEFT on a bfloat16 base (its copies are bfloat16 too); ours on a bfloat16 base
with float32 masters, which is the default, and without them. Printed: the percentage of the norm
entries that moved, the percentage that the forward pass sees move (in the base's dtype), and the
loss on other batches before and after.

Needs torch, transformers, PEFT and torchax, as the parity tests do, whose models it uses.
"""

import argparse
import importlib.metadata
import sys
from pathlib import Path

from _results import write_results

ROOT = Path(__file__).parents[1]
RATES = ("1e-4", "1e-3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", nargs="+", default=RATES)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    import torch

    from tests.support.parity import low_precision

    torch.set_num_threads(1)
    outcomes = {
        rate: {
            name: low_precision.run_variant(name, float(rate)) for name in low_precision.VARIANTS
        }
        for rate in options.rates
    }
    print(low_precision.make_table(outcomes))
    figures = {
        rate: {name: row._asdict() for name, row in rows.items()} for rate, rows in outcomes.items()
    }
    theirs = {name: importlib.metadata.version(name) for name in ("torch", "peft", "transformers")}
    path = write_results(
        "bfloat16_parity",
        {
            "steps": low_precision.STEPS,
            "model": {"family": "llama"} | low_precision.SIZES,
            "libraries": theirs,
            "runs": figures,
        },
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()
