"""Fuzzing under the guidance of coverage: `python fuzz/run.py TARGET SECONDS [CORPUS]`.

Needs atheris (`pip install atheris`, Python 3.11 to 3.13) beside the package's extra `test`. Finds
are written as `crash-*` into the current directory; a target that hangs for 25 seconds or takes
more than 3 GB is one too. What was done is kept in `results-TARGET.json` beside them.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import atheris  # pyright: ignore[reportMissingImports]

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
# What parses a stranger's bytes: ours, and the Python below it.
PARSERS = ["lntune_jax", "gguf.gguf_reader", "json.decoder", "re._parser"]


def main() -> None:
    name, seconds = sys.argv[1], int(sys.argv[2])
    with atheris.instrument_imports(include=PARSERS):
        from targets import TARGETS, run  # which imports lntune_jax
    target, counts, start = TARGETS[name], {True: 0, False: 0}, time.monotonic()
    corpus = Path(sys.argv[3] if len(sys.argv) > 3 else tempfile.mkdtemp())
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)

    def feed(content: bytes) -> None:
        counts[run(target, content)] += 1
        if sum(counts.values()) % 200 == 0:  # the fuzzer ends without a word to Python
            report()

    def report() -> None:
        found = {
            "target": name,
            "executions": sum(counts.values()),
            "taken": counts[True],
            "refused": counts[False],
            "seconds": round(time.monotonic() - start),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        Path(f"results-{name}.json").write_text(json.dumps(found) + "\n")

    flags = [f"-max_total_time={seconds}", "-max_len=65536", "-timeout=25", "-rss_limit_mb=3072"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], feed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
