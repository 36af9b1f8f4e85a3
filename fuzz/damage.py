"""Damages the files of an adapter's arrays at random, and counts what TensorStore lets by.

    python fuzz/damage.py [cases]

Each case flips a bit, draws up to eight bytes anew or cuts one file short, and reads the arrays.
Counts go to `damage.json` beside this script: `refused` by TensorStore, `other` values (which the
SHA-256 of a leaf tells), and `same` values.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lntune_jax.errors import AdapterError
from lntune_jax.storage.leaves import hash_array, read_arrays, write_arrays


def damage(data: bytes, rng: random.Random) -> bytes:
    """One kind of damage, drawn."""
    changed = bytearray(data)
    kind = rng.randrange(3)
    if kind == 0:
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        for _ in range(rng.randrange(1, 9)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    else:
        del changed[rng.randrange(len(changed)) :]
    return bytes(changed)


def main() -> None:
    """Counts what comes of so many cases."""
    cases = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    rng, draws = random.Random(0), np.random.default_rng(0)
    arrays = {f"layer_{i}.scale": draws.normal(size=4096).astype("f4") for i in range(6)}
    directory = Path(tempfile.mkdtemp()) / "arrays"
    write_arrays(directory, arrays)
    files = [file for file in sorted(directory.rglob("*")) if file.is_file()]
    hashes = {path: hash_array(array) for path, array in arrays.items()}
    counts, slowest = {"refused": 0, "other": 0, "same": 0}, 0.0
    for case in range(cases):
        file = files[case % len(files)]
        data = file.read_bytes()
        file.write_bytes(damage(data, rng))
        start = time.perf_counter()
        try:
            found = read_arrays(directory, arrays)
        except AdapterError:
            counts["refused"] += 1
        else:
            is_same = all(hash_array(found[path]) == hashes[path] for path in arrays)
            counts["same" if is_same else "other"] += 1
        slowest = max(slowest, time.perf_counter() - start)
        file.write_bytes(data)
    result = {"cases": cases, **counts, "slowest_seconds": round(slowest, 2)}
    Path(__file__).with_name("damage.json").write_text(json.dumps(result, indent=1) + "\n")
    print(result)


if __name__ == "__main__":
    main()
