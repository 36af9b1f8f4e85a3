"""How long from the start of a process to its first step, and what does JAX's cache save?

Each run is a process: it imports, loads a checkpoint of random weights (the shape of
all-MiniLM-L6-v2 as a classifier, and of SmolLM2-135M with a few layers, unrolled and scanned),
splits it, and trains two steps. JAX's persistent compilation cache is off; on and empty; on and
filled by the run before; and filled with nothing but `JAX_COMPILATION_CACHE_DIR` set, where JAX
keeps only programs that took a second to compile. Processes of all kinds take turns; medians
over `--rounds`. The limit is no compilation where the cache is filled.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _results import write_results
from safetensors.numpy import save_file

CHILD = Path(__file__).with_name("_start_child.py")
EVERYTHING = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
BERT = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}
TIMES = ("to first step", "import", "load", "first step", "traced", "compiled or read")
COLUMNS = (*TIMES, "programs", "programs compiled")


def list_bert() -> dict[str, tuple[int, ...]]:
    width, inner = BERT["hidden_size"], BERT["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (BERT["vocab_size"], width),
        "embeddings.position_embeddings.weight": (512, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    modules = {f"attention.self.{name}": (width, width) for name in ("query", "key", "value")}
    modules |= {"attention.output.dense": (width, width), "attention.output.LayerNorm": (width,)}
    modules |= {"intermediate.dense": (inner, width), "output.dense": (width, inner)}
    modules |= {"output.LayerNorm": (width,)}
    for layer in range(BERT["num_hidden_layers"]):
        for name, shape in modules.items():
            shapes[f"encoder.layer.{layer}.{name}.weight"] = shape
            shapes[f"encoder.layer.{layer}.{name}.bias"] = shape[:1]
    return shapes


def list_llama(layers: int) -> dict[str, tuple[int, ...]]:
    width, inner, small = LLAMA["hidden_size"], LLAMA["intermediate_size"], 3 * 64
    shapes = {"model.embed_tokens.weight": (LLAMA["vocab_size"], width)}
    modules = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (small, width),
        "self_attn.v_proj": (small, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    for layer in range(layers):
        for name, shape in modules.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    return shapes | {"model.norm.weight": (width,)}


def write_checkpoint(folder: Path, config: dict, shapes: dict[str, tuple[int, ...]]) -> Path:
    draw = np.random.default_rng(0)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {
        name: np.ones(shape, np.float32)
        if "orm." in name
        else draw.standard_normal(shape, np.float32) * np.float32(0.02)
        for name, shape in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def run(arguments: list[str], cache: Path | None, *, keeps_all: bool) -> dict[str, float]:
    environment = {name: value for name, value in os.environ.items() if "JAX_" not in name}
    environment |= {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "JAX_PLATFORMS": "cpu"}
    if cache is not None:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        environment |= EVERYTHING if keeps_all else {}
    command = [sys.executable, str(CHILD), str(time.time()), *arguments]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(arguments: list[str], folder: Path) -> dict[str, dict[str, float]]:
    """One run of each kind."""
    for name in ("all", "slow"):
        shutil.rmtree(folder / name, ignore_errors=True)
    found = {"off": run(arguments, None, keeps_all=True)}
    found["on, empty"] = run(arguments, folder / "all", keeps_all=True)
    found["on, filled"] = run(arguments, folder / "all", keeps_all=True)
    run(arguments, folder / "slow", keeps_all=False)
    found["only the directory set, filled"] = run(arguments, folder / "slow", keeps_all=False)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default="", help="how the names of the cases to run begin")
    parser.add_argument("--layers", type=int, default=2, help="of the SmolLM2 shape, which has 30")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        bert = write_checkpoint(folder / "bert", BERT, list_bert())
        config = LLAMA | {"num_hidden_layers": options.layers}
        llama = write_checkpoint(folder / "llama", config, list_llama(options.layers))
        cases = {
            "MiniLM": [str(bert), "SEQ_CLS", "unrolled"],
            f"SmolLM2, {options.layers} layers": [str(llama), "CAUSAL_LM", "unrolled"],
            f"SmolLM2, {options.layers} layers scanned": [str(llama), "CAUSAL_LM", "scan"],
        }
        runs: dict[str, list[dict[str, float]]] = {}
        for _ in range(options.rounds):
            for case, arguments in cases.items():
                if not case.startswith(options.only):
                    continue
                for kind, figures in measure(arguments, folder).items():
                    runs.setdefault(f"{case}: {kind}", []).append(figures)
    rows = {
        name: {key: statistics.median(one[key] for one in found) for key in found[0]}
        for name, found in runs.items()
    }
    print(f"{'seconds':58s}" + "".join(f"{column:>18s}" for column in COLUMNS))
    for name, row in rows.items():
        print(f"{name:58s}" + "".join(f"{row[column]:18.2f}" for column in COLUMNS))
    print(f"written to {write_results('start', {'seconds': rows, 'settings': vars(options)})}")


if __name__ == "__main__":
    main()
