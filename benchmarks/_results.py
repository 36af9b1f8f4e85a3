"""Where a benchmark's figures go: a JSON file beside the script.

With the figures it keeps the date, the commit, the versions, the machine, and how busy it was.
`page.py` refuses a file that lacks the date, the commit or the load.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# Named where the script, or a process that it says so of, has imported them.
OTHERS = ("torch", "peft", "transformers", "torchax", "qwix", "safetensors")
# The script has just begun when it imports this module: from here on its own work is counted.
_BEGAN = time.monotonic()
_LOAD = os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def write_results(name: str, figures: dict, others: tuple[str, ...] = ()) -> Path:
    """Writes `results/<name>.json` and returns its path.

    Args:
        name: of the file.
        figures: `{row: {column: value}}`, or such tables by name; settings beside them.
        others: packages that took part in another process: their versions are written too.
    """
    imported = [package for package in OTHERS if package in sys.modules or package in others]
    record = {
        "benchmark": name,
        "arguments": sys.argv[1:],
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _COMMIT,
        "load": describe_load(),
        "python": platform.python_version(),
        "versions": find_versions((*PACKAGES, *imported)),
        "machine": describe_machine(),
        "figures": figures,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(record, indent=2) + "\n")
    unfinished.replace(path)  # whole or not at all
    return path


def find_commit(folder: Path = Path(__file__).parent) -> str | None:
    """The checkout's commit, with "+changes" where files differ from it; None outside Git."""
    try:
        words = ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--exclude=*"]
        named = subprocess.run([*words, "--dirty=+changes"], capture_output=True, text=True)
    except OSError:
        return None
    return named.stdout.strip() or None


def describe_load() -> dict[str, float | None]:
    """How busy the machine was: the load when the script began, and what others took since then.

    `others` is in processors: 0.5 means that other programs kept half a processor busy on average.
    It is None where the system does not tell.
    """
    return {"at_start": _LOAD, "others": _measure_others()}


def _measure_others() -> float | None:
    busy, own, seconds = _read_busy(), _read_own(), time.monotonic() - _BEGAN
    if busy is None or _BUSY is None or seconds < 1:
        return None
    return round(max(0.0, (busy - _BUSY) - (own - _OWN)) / seconds, 2)


def _read_busy() -> float | None:
    """Seconds that all processors have worked since the machine started."""
    try:
        numbers = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    except (OSError, ValueError):
        return None
    user, nice, system, _, _, interrupts, soft_interrupts = numbers[:7]
    return (user + nice + system + interrupts + soft_interrupts) / os.sysconf("SC_CLK_TCK")


def _read_own() -> float:
    """Seconds that this process and those that it has waited for have worked."""
    return sum(os.times()[:4])


_BUSY, _OWN, _COMMIT = _read_busy(), _read_own(), find_commit()


def find_versions(packages: tuple[str, ...]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def describe_machine() -> dict:
    """What a reader needs to place the figures; nothing that names the machine."""
    return {
        "system": platform.system(),
        "cpu": platform.machine(),
        "cpu_model": _find_cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": _find_memory(),
    }


def _find_cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {key.strip(): value.strip() for key, value in found.items()}
    return named.get("model name") or named.get("Model") or None


def _find_memory() -> int | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9)
    except (AttributeError, OSError, ValueError):
        return None
