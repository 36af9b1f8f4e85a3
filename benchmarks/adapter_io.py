"""What do saving and restoring an adapter cost, beside the bytes themselves?

Against the leaves' raw bytes in one file with fsync, safetensors (flushed too), Orbax alone (one
fsync, no checksums, no reading back) and a full Orbax checkpoint of a base; median milliseconds of
runs in turns, and the median ratio to Orbax's in the same turn. Bytes on disk as a ratio to the raw
bytes, for scales near 1 as trained ones are, and for random bits, which nothing can compress; the
limit is 1.05 and 16 KB.
Then a full Orbax checkpoint of a base of 105 MB, and Orbax's options.
"""

import argparse
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from _results import write_results
from _timing import median_ratio, time_in_turns
from safetensors.numpy import load_file, save_file

import lntune_jax as lnt
from tests.support.adapters import make_base

CONFIG = lnt.LNTuningConfig()
# Leaves and the width of each.
SHAPES = {
    "39 KB, 26 leaves (MiniLM)": (26, 384),
    "1 MB, 65 leaves (Llama-2-7B)": (65, 4096),
    "4 MB, 1,000 leaves": (1000, 1024),
    "10 MB, 10 leaves": (10, 262_144),
    "10 MB, 160 leaves": (160, 16_384),
    "100 MB, 100 leaves": (100, 262_144),
}
BASE_MATRICES, BASE_WIDTH = 25, 1024  # 105 MB
OPTIONS = {
    "ocdbt, zarr2 (Orbax's default, ours)": {},
    "ocdbt, zarr3": {"use_zarr3": True},
    "ocdbt, zarr2, one data file": {"one_file": True},
    "ocdbt, zarr2, not compressed": {"use_compression": False},
    "zarr2, a directory for each leaf": {"use_ocdbt": False},
}


def count_bytes(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def count_raw(arrays: dict) -> int:
    return sum(array.nbytes for array in arrays.values())


def flush(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def open_orbax(*, one_file: bool = False, **options):
    handler = ocp.PyTreeCheckpointHandler(**options)
    size = {"ocdbt_target_data_file_size": 2**30} if one_file else {}

    def save(path: Path, tree: dict) -> None:
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(path, args=ocp.args.PyTreeSave(tree, **size))

    def load(path: Path, tree: dict) -> dict:
        wanted = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        with ocp.Checkpointer(handler) as checkpointer:
            return checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=wanted))

    return save, load


def make_ways(params: dict) -> dict[str, tuple[Callable, Callable]]:
    """For each way a function that saves to a path and one that loads from it."""
    arrays = lnt.partition_params(params, CONFIG).trainable

    def save_raw(path: Path) -> None:
        path.write_bytes(b"".join(array.tobytes() for array in arrays.values()))
        flush(path)

    def save_tensors(path: Path) -> None:
        save_file(arrays, path)
        flush(path)

    save_orbax, load_orbax = open_orbax()

    def save_flushed(path: Path) -> None:
        save_orbax(path, arrays)
        flush(max(path.rglob("*"), key=lambda file: file.stat().st_size))

    return {
        "raw bytes": (save_raw, lambda path: np.fromfile(path, np.float32)),
        "safetensors": (save_tensors, load_file),
        "Orbax alone": (
            save_flushed,
            lambda path: load_orbax(path, arrays),
        ),
        "ours": (
            lambda path: lnt.save_adapter(path, arrays, CONFIG, base=params),
            lnt.load_adapter,
        ),
        "ours, restore_adapter": (
            lambda path: lnt.save_adapter(path, arrays, CONFIG, base=params),
            lambda path: lnt.restore_adapter(path, params),
        ),
    }


def measure_ways(ways: dict[str, tuple[Callable, Callable]], folder: Path, rounds: int) -> dict:
    """Median milliseconds to save and to load, and the bytes on disk."""
    numbers = iter(range(10**6))
    latest: dict[str, Path] = {}

    def save(name: str) -> None:
        path = folder / f"{next(numbers)}"
        ways[name][0](path)
        if name in latest:
            shutil.rmtree(latest[name]) if latest[name].is_dir() else latest[name].unlink()
        latest[name] = path

    saves = time_in_turns({name: lambda n=name: save(n) for name in ways}, rounds)
    loads = time_in_turns({name: lambda n=name: ways[n][1](latest[n]) for name in ways}, rounds)
    rows = {
        name: {
            "save ms": statistics.median(saves[name]) * 1e3,
            "load ms": statistics.median(loads[name]) * 1e3,
            "bytes": count_bytes(latest[name]),
        }
        for name in ways
    }
    for name in ways.keys() & {"ours", "ours, restore_adapter"}:
        rows[name] |= {
            "save, to Orbax": median_ratio(saves, name, "Orbax alone"),
            "load, to Orbax": median_ratio(loads, name, "Orbax alone"),
        }
    return rows


def compare_sizes(shapes: dict, folder: Path, rounds: int) -> dict:
    rows = {}
    for number, (shape, (leaves, width)) in enumerate(shapes.items()):
        params = make_base(leaves, width)
        raw = 4 * leaves * width
        limit = (1.05 * raw + 16_384) / raw
        (folder / str(number)).mkdir()
        found = measure_ways(make_ways(params), folder / str(number), rounds)
        noise = make_base(leaves, width, is_random=True)
        own = lnt.partition_params(noise, CONFIG).trainable
        path = lnt.save_adapter(folder / f"{number}-random", own, CONFIG, base=noise)
        random = {"ours": count_bytes(path) / raw}
        shutil.rmtree(folder / str(number))
        shutil.rmtree(path)
        for way, row in found.items():
            row["to raw"] = row.pop("bytes") / raw
            rows[f"{shape}: {way}"] = row
            line = f"{shape:30s} {way:22s} {row['save ms']:8.1f} {row['load ms']:8.1f}"
            ends = f" {row['to raw']:7.3f}"
            if "load, to Orbax" in row:
                ends += f" [{row['save, to Orbax']:.2f} {row['load, to Orbax']:.2f}]"
            if way in random:
                row |= {"random bits, to raw": random[way], "limit, to raw": limit}
                ends += f" {random[way]:7.3f} {limit:7.3f}"
            print(line + ends)
    return rows


def compare_options(folder: Path, rounds: int) -> dict:
    rows = {}
    for shape in list(SHAPES)[:3]:
        arrays = lnt.partition_params(make_base(*SHAPES[shape]), CONFIG).trainable
        opened = {name: open_orbax(**options) for name, options in OPTIONS.items()}
        ways = {
            name: (
                lambda path, save=save, arrays=arrays: save(path, arrays),
                lambda path, load=load, arrays=arrays: load(path, arrays),
            )
            for name, (save, load) in opened.items()
        }
        (folder / "options").mkdir()
        for name, row in measure_ways(ways, folder / "options", rounds).items():
            row["to raw"] = row.pop("bytes") / count_raw(arrays)
            rows[f"{shape}: {name}"] = row
            print(
                f"{shape:30s} {name:37s} {row['save ms']:8.1f} {row['load ms']:8.1f} "
                f"{row['to raw']:7.3f}"
            )
        shutil.rmtree(folder / "options")
    return rows


def measure_full(folder: Path, rounds: int) -> dict[str, float]:
    """A checkpoint of the whole base, as one would save after full fine-tuning."""
    draw = np.random.default_rng(0)
    base = {
        str(index): draw.normal(0, 0.02, (BASE_WIDTH, BASE_WIDTH)).astype(np.float32)
        for index in range(BASE_MATRICES)
    }
    save, load = open_orbax()
    ways = {
        "full": (lambda path: save(path, base), lambda path: load(path, base)),
    }
    row = measure_ways(ways, folder, rounds)["full"]
    row["to raw"] = row.pop("bytes") / count_raw(base)
    name = "105 MB base"
    print(f"{name:30s} {'full Orbax checkpoint':22s} {row['save ms']:8.1f} {row['load ms']:8.1f}")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="how many of the shapes")
    options = parser.parse_args()
    shapes = dict(list(SHAPES.items())[: options.shapes])
    head = ("adapter", "way", "save ms", "load ms", "to raw", "random", "limit")
    print("{:30s} {:22s} {:>8s} {:>8s} {:>7s} {:>7s} {:>7s}".format(*head))
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name).resolve()
        figures = {
            "saving": compare_sizes(shapes, folder, options.rounds),
            "full checkpoint": {"105 MB base": measure_full(folder, options.rounds)},
            "options": compare_options(folder, options.rounds),
            "settings": vars(options),
        }
    print(f"written to {write_results('adapter_io', figures)}")


if __name__ == "__main__":
    main()
