"""Fuzzing under the guidance of coverage: `python fuzz/run.py TARGET SECONDS [CORPUS]`.

Needs atheris (`pip install atheris`, Python 3.11 to 3.13) beside the package's extra `test`. Finds
are written as `crash-*` into the current directory; a target that hangs for 25 seconds or takes
more than 3 GB is one too. Put a find into `fuzz/found/TARGET`, where the tests read it from then
on. What was done is kept in `fuzz/results/TARGET.json`.
"""

from __future__ import annotations

import datetime
import json
import platform
import resource
import sys
import tempfile
import time
from importlib.metadata import version
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
    results = Path(__file__).parent / "results" / f"{name}.json"
    results.parent.mkdir(exist_ok=True)
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
            "date": datetime.date.today().isoformat(),
            "python": platform.python_version(),
            "atheris": version("atheris"),
            "executions": sum(counts.values()),
            "taken": counts[True],
            "refused": counts[False],
            "seconds": round(time.monotonic() - start),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        results.write_text(json.dumps(found, indent=1) + "\n")

    flags = [f"-max_total_time={seconds}", "-max_len=65536", "-timeout=25", "-rss_limit_mb=3072"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], feed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
