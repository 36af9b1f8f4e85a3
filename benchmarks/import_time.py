"""What does `import lntune_jax` cost over `import jax, optax`, which its user imports anyway?

Processes alternate, so that a busy machine slows both alike; medians of `--rounds` runs each.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

from _results import write_results

PROGRAMS = {"jax, optax": "import jax, optax", "lntune_jax": "import jax, optax, lntune_jax"}


def measure(program: str) -> float:
    start = time.perf_counter()
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for program in PROGRAMS.values():  # what a first import compiles and keeps is not measured
        measure(program)
    for _ in range(rounds):
        for name, program in PROGRAMS.items():
            times[name].append(measure(program))
    seconds = {name: statistics.median(runs) for name, runs in times.items()}
    ratio = seconds["lntune_jax"] / seconds["jax, optax"]
    for name, value in seconds.items():
        print(f"import {name:12s} {value:6.2f} s")
    print(f"ratio               {ratio:6.3f}   (1.000 is the limit)")
    path = write_results("import_time", {"seconds": seconds, "ratio": ratio, "rounds": rounds})
    print(f"written to {path}")


if __name__ == "__main__":
    main()
