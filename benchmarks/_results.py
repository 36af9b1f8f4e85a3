"""Where a benchmark's figures go: a JSON file beside the script, with versions and machine."""

import importlib.metadata
import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# Named where the script, or a process that it says so of, has imported them.
OTHERS = ("torch", "peft", "transformers", "torchax", "qwix", "safetensors")


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
