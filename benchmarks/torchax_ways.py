"""Two ways to run a PyTorch module in JAX, on the same types of models: which one is right?

The eager module traced through torchax, as this library did until November 2026, or the graph of
`torch.export` run operator by operator, as it does now. The types are those that people tune, and
those whose `forward` cuts gradients, branches on values or writes in place.

Each way runs in a process of its own, by `torchax_types.py`; the older one is taken from git.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from _results import write_results
from _torchax_models import MODULES

ROOT = Path(__file__).resolve().parents[1]
COMMIT = "0bc3e0f"  # the last that traces the eager module
EAGER, EXPORT = "the eager module", "the graph of torch.export"
TYPES = (
    *MODULES,
    *("yoso", "flaubert", "beit", "maskformer", "led", "paligemma", "bloom", "switch_transformers"),
    *("dinov3_vit", "granitemoehybrid", "internvl", "swinv2", "recurrent_gemma", "vitdet", "clip"),
    *("llama", "bert", "t5", "gpt2", "qwen2", "mixtral", "mamba", "whisper", "convnext", "bart"),
)


def main() -> None:
    """Runs both ways and writes what became of each type."""
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "old.tar"
        command = ["git", "archive", "--output", str(packed), COMMIT, "lntune_jax"]
        subprocess.run(command, cwd=ROOT, check=True)
        with tarfile.open(packed) as archive:
            archive.extractall(folder, filter="data")
        rows = {EAGER: run(Path(folder)), EXPORT: run(ROOT)}
    ran = [n for n in TYPES if all(own[n]["outcome"] != "not built" for own in rows.values())]
    counts = {
        way: {
            outcome: sum(own[n]["outcome"] == outcome for n in ran)
            for outcome in sorted({own[n]["outcome"] for own in rows.values() for n in ran})
        }
        for way, own in rows.items()
    }
    types = {n: {way: own[n]["outcome"] for way, own in rows.items()} for n in ran}
    details = {way: {n: own[n] for n in ran} for way, own in rows.items()}
    figures = {"types": len(ran), "counts": counts, "each": types, "details": details}
    write_results("torchax_ways", figures, others=("torch", "torchax", "transformers"))
    print(json.dumps(figures["counts"], indent=1))


def run(package: Path) -> dict[str, dict]:
    """What becomes of each type with the library in a folder."""
    script = ROOT / "benchmarks" / "torchax_types.py"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [sys.executable, str(script), "--out", str(out), *TYPES]
        environment = {**os.environ, "PYTHONPATH": str(package)}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        return json.loads(out.read_text())


if __name__ == "__main__":
    main()
