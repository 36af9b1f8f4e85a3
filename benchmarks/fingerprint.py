"""What does it cost to sample every matrix of a base, beside eight of them?

A tree of as many matrices as Llama-2-70B has (560), of jax arrays and of numpy arrays, and the same
in seven stacks of 80 layers; on the host, and by the way that arrays on an accelerator go. Median
milliseconds of runs in turns, the bytes that leave the devices, and the bytes in the file. Eight
leaves are what was sampled before.
"""

import argparse
import json
import statistics

import jax
import jax.numpy as jnp
import numpy as np
from _results import write_results
from _timing import time_in_turns

from lntune_jax.adapters import fingerprint
from lntune_jax.adapters.fingerprint import make_fingerprint, read_samples
from lntune_jax.names.layers import LayerSlice

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LAYERS = 80


def name(layer: int, module: str) -> str:
    return f"model.layers.{layer}.{module}.kernel"


def make_trees(width: int) -> dict[str, dict]:
    draw = np.random.default_rng(0)
    stacks = {
        module: draw.standard_normal((LAYERS, width, width)).astype(np.float32)
        for module in MODULES
    }
    places = [(layer, module) for layer in range(LAYERS) for module in MODULES]
    on_device = {module: jnp.asarray(stack) for module, stack in stacks.items()}
    return {
        "numpy": {name(i, m): stacks[m][i] for i, m in places},
        "jax, a leaf a layer": {name(i, m): jnp.asarray(stacks[m][i]) for i, m in places},
        "jax, stacked": {name(i, m): LayerSlice(on_device[m], 0, i) for i, m in places},
    }


def choose_eight(tree: dict) -> dict:
    paths = sorted(tree)
    return {
        paths[i * (len(paths) - 1) // 7]: tree[paths[i * (len(paths) - 1) // 7]] for i in range(8)
    }


def count_bytes(tree: dict) -> int:
    """What leaves the devices in one call."""
    read = []
    fetch = jax.device_get

    def count(values: list) -> list:
        read.append(sum(value.nbytes for value in values))
        return fetch(values)

    jax.device_get = count
    try:
        read_samples(tree)
    finally:
        jax.device_get = fetch
    assert len(read) == 1
    return read[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    on_host = fingerprint._is_on_host
    rows = {}
    for kind, tree in make_trees(options.width).items():
        for way in ("in place", "from a device") if kind != "numpy" else ("in place",):
            fingerprint._is_on_host = on_host if way == "in place" else lambda data: False
            eight = choose_eight(tree)
            calls = {
                "all": lambda tree=tree: make_fingerprint(tree),
                "eight": lambda eight=eight: make_fingerprint(eight),
            }
            times = time_in_turns(calls, options.rounds)
            row = {f"{each} ms": statistics.median(times[each]) * 1e3 for each in calls}
            row["bytes from devices"] = count_bytes(tree) if way == "from a device" else 0
            row["bytes in the file"] = len(json.dumps(make_fingerprint(tree)))
            rows[f"{kind}, {way}"] = row
            print(f"{kind + ', ' + way:40s}", {k: round(v, 2) for k, v in row.items()})
    fingerprint._is_on_host = on_host
    figures = {"sampling": rows, "settings": vars(options) | {"matrices": LAYERS * len(MODULES)}}
    print(f"written to {write_results('fingerprint', figures)}")


if __name__ == "__main__":
    main()
