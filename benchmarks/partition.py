"""What does splitting a parameter tree cost, as the tree grows?

Llama-like trees of 100 to 100,000 leaves, abstract (`jax.ShapeDtypeStruct`) and real (small numpy
arrays). For each function processor time a leaf (the best of a few runs, with Python's garbage
collector and without), and for abstract trees the bytes a leaf that are kept and that are
needed at the peak (tracemalloc, in a run of its own). Linear means the same time a leaf at any
size, as far as the machine can: the objects of a large tree may not fit into its caches. So JAX's
own `jax.tree.map`, which calls a function that does nothing once a leaf, is timed beside ours, and
the limit is on our growth a leaf from 1,000 leaves on over JAX's: 2, without the collector. In a
small run the collector never looks at all objects, in one of more than about 10,000 leaves it does,
those of JAX's modules included. The tree of Llama-3.1-405B (126 layers) has a limit of its own: 50
ms for `partition_params`. The last lines split the largest tree under other patterns: expressions
are matched against every path.
"""

import argparse
import gc
import time
import tracemalloc
from collections.abc import Callable

import jax
from _results import write_results

import lntune_jax as lnt
from tests.support.trees import make_tree

LEAVES = (100, 1_000, 10_000, 100_000)
PER_LAYER, OUTSIDE, LAYERS_405B = 9, 3, 126
CONFIG = lnt.LNTuningConfig(model_type="llama")
PATTERNS = {
    "every norm found": lnt.LNTuningConfig(),
    "list of names": lnt.LNTuningConfig(target_modules=["input_layernorm", "norm"]),
    "expression": lnt.LNTuningConfig(target_modules=r".*\.layers\.\d+\.(input|post_\w+)_layernorm"),
    "list of expressions": lnt.LNTuningConfig(target_modules=[".*input_layer.*", ".*norm.*"]),
    "with modules_to_save": lnt.LNTuningConfig(model_type="llama", modules_to_save=["lm_head"]),
}
FLOOR, GROWTH = "jax.tree.map", "over JAX's"
LIMIT_RATIO, LIMIT_405B_MS = 2.0, 50.0


def make_functions(params: dict) -> dict[str, Callable[[], object]]:
    halves = lnt.partition_params(params, CONFIG)
    return {
        "partition_params": lambda: lnt.partition_params(params, CONFIG),
        "merge_params": lambda: lnt.merge_params(*halves),
        "label_params": lambda: lnt.label_params(params, CONFIG),
        "report_params": lambda: lnt.report_params(params, CONFIG),
        FLOOR: lambda: jax.tree.map(lambda leaf: leaf, params),
    }


def time_best(run: Callable[[], object], rounds: int, *, collects: bool = True) -> float:
    times = []
    gc.collect()
    for _ in range(rounds):
        if not collects:
            gc.disable()
        start = time.process_time()  # not what other programs take of the machine
        run()
        times.append(time.process_time() - start)
        gc.enable()
    return min(times)


def measure_memory(run: Callable[[], object]) -> tuple[int, int]:
    """Bytes that the result holds, and that were held at the peak."""
    tracemalloc.start()
    result = run()
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del result
    return kept, peak


def measure(leaves: int, *, is_real: bool, rounds: int) -> dict[str, dict[str, float]]:
    params = make_tree(max((leaves - OUTSIDE) // PER_LAYER, 1), is_real=is_real)
    count = len(jax.tree.leaves(params))
    rows = {}
    for name, run in make_functions(params).items():
        seconds = time_best(run, rounds * max(30_000 // leaves, 3))
        own = time_best(run, rounds * max(30_000 // leaves, 3), collects=False)
        row = {"leaves": count, "milliseconds": seconds * 1e3}
        row["microseconds a leaf"] = seconds / count * 1e6
        row["without collector"] = own / count * 1e6
        # Tracing memory is slow: in the largest tree one function stands for all that select.
        if not is_real and (leaves < LEAVES[-1] or name in ("partition_params", "merge_params")):
            kept, peak = measure_memory(run)
            row |= {"kept bytes a leaf": kept / count, "peak bytes a leaf": peak / count}
        rows[f"{name}, {'real' if is_real else 'abstract'}, {leaves:,}"] = row
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--most", type=int, default=LEAVES[-1], choices=LEAVES[2:])
    options = parser.parse_args()
    sizes = [size for size in LEAVES if size <= options.most]
    head = ("function, tree, leaves", "ms", "us/leaf", "no gc", "to 1,000", "over JAX's")
    print("{:34s} {:>8s} {:>8s} {:>8s} {:>9s} {:>10s}  kept B  peak B".format(*head))
    growth: dict[str, dict[str, float]] = {}
    for is_real in (False, True):
        found = {size: measure(size, is_real=is_real, rounds=options.rounds) for size in sizes}
        for size in sizes:
            for (name, row), base in zip(found[size].items(), found[1_000].values(), strict=True):
                row["to 1,000"] = row["without collector"] / base["without collector"]
                growth[name] = row
            *ours, floor = found[size].values()
            for row in ours:
                row[GROWTH] = row["to 1,000"] / floor["to 1,000"]
    for name, row in growth.items():
        memory = "".join(f"{row[key]:8.0f}" for key in row if key.endswith("bytes a leaf"))
        over = f"{row[GROWTH]:.2f}" if GROWTH in row else ""
        print(
            f"{name:34s} {row['milliseconds']:8.1f} {row['microseconds a leaf']:8.1f} "
            f"{row['without collector']:8.1f} {row['to 1,000']:9.2f} {over:>10s}{memory}"
        )
    large = {name: row for name, row in growth.items() if row["leaves"] > 1_000}
    worst = max(row[GROWTH] for row in large.values() if GROWTH in row)
    print(f"most growth a leaf over that of jax.tree.map: {worst:.2f} (limit {LIMIT_RATIO})")
    for name in ("merge_params", FLOOR):
        most = max(row["to 1,000"] for key, row in large.items() if key.startswith(name))
        print(f"{name} at most {most:.2f} of its time a leaf at 1,000")

    largest = make_tree((sizes[-1] - OUTSIDE) // PER_LAYER)
    count = len(jax.tree.leaves(largest))
    patterns = {}
    for name, config in PATTERNS.items():
        seconds = time_best(lambda c=config: lnt.partition_params(largest, c), 1)
        patterns[name] = {"leaves": count, "microseconds a leaf": seconds / count * 1e6}
        print(f"{name:34s} {seconds * 1e3:8.1f} {seconds / count * 1e6:8.1f}")
    llama = make_tree(LAYERS_405B)
    seconds = time_best(lambda: lnt.partition_params(llama, CONFIG), 10 * options.rounds)
    count = len(jax.tree.leaves(llama))
    print(f"Llama-3.1-405B, {count:,} leaves: {seconds * 1e3:.1f} ms (limit {LIMIT_405B_MS:.0f})")
    figures = {
        "growth": growth,
        "patterns": patterns,
        "limits": {
            "growth a leaf over jax.tree.map's": {"figure": worst, "limit": LIMIT_RATIO},
            "Llama-3.1-405B, ms": {"figure": seconds * 1e3, "limit": LIMIT_405B_MS},
        },
        "settings": vars(options),
    }
    print(f"written to {write_results('partition', figures)}")


if __name__ == "__main__":
    main()
