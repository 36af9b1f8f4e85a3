"""What does each process of a run read, and hold, while a model is loaded onto a mesh?

A Llama of random weights, with its layers scanned, is loaded by 1, 2 and 4 processes with one
simulated device each. Counted in the process with the most: the bytes that are asked of the file,
those that come from the disk (the file is put out of the system's cache first), and the most that
numpy holds on the way to the devices; the least of `--rounds` runs. The devices' own share, which
lies in the host's memory on a CPU, is not counted in.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from _results import write_results
from safetensors.numpy import save_file

CHILD = Path(__file__).with_name("_loading_child.py")
LLAMA = {
    "model_type": "llama",
    "vocab_size": 8192,
    "hidden_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "intermediate_size": 2816,
    "tie_word_embeddings": True,
}
RUNS = ((1, "fsdp"), (2, "fsdp"), (4, "fsdp"), (2, "tensor"), (4, "tensor"))


def write_checkpoint(folder: Path) -> int:
    """Writes the model, and gives the size of its file."""
    from jax import tree_util

    from lntune_jax.models import from_config

    draw, tensors = np.random.default_rng(0), {}
    shapes = from_config(LLAMA, "CAUSAL_LM").params
    for path, leaf in tree_util.tree_leaves_with_path(shapes):
        *modules, last = (key.key for key in path)
        shape = leaf.shape[::-1] if last == "kernel" else leaf.shape
        tensors[".".join([*modules, "weight"])] = draw.standard_normal(shape, np.float32)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return (folder / "model.safetensors").stat().st_size


def measure(folder: Path, count: int, axis: str) -> dict[str, float]:
    """Gives the largest of each figure among the processes."""
    empty_cache(folder / "model.safetensors")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    }
    words = [sys.executable, str(CHILD), str(folder), axis, str(port), str(count)]
    children = [
        subprocess.Popen([*words, str(rank)], env=environment, stdout=subprocess.PIPE, text=True)
        for rank in range(count)
    ]
    ends = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise SystemExit("a process has failed: see above")
    found = [json.loads(end.splitlines()[-1]) for end in ends]
    return {name: max(each[name] for each in found) for name in found[0]}


def empty_cache(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        size = write_checkpoint(Path(name))
        for count, axis in RUNS:
            row = f"{axis}={count}" if count > 1 else "1 process"
            runs = [measure(Path(name), count, axis) for _ in range(rounds)]
            rows[row] = {key: min(run[key] for run in runs) for key in runs[0]}
            print(f"{row:12s}", {key: round(value, 2) for key, value in rows[row].items()})
    figures = {"processes": rows, "settings": {"file_bytes": size, "rounds": rounds}}
    print(f"written to {write_results('loading_shards', figures, ('transformers',))}")


if __name__ == "__main__":
    main()
