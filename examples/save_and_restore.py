"""Saving an adapter of kilobytes, and putting it back onto the base exactly.

Run: python examples/save_and_restore.py
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import lntune_jax as lnt


def make_base(seed, dtype=jnp.float32):
    key = jax.random.key(seed)
    return {
        "embed": {"embedding": jax.random.normal(key, (1000, 256)).astype(dtype)},
        "ln_f": {"scale": jnp.ones(256, dtype), "bias": jnp.zeros(256, dtype)},
    }


def main():
    base = make_base(0)
    config = lnt.LNTuningConfig()
    trainable, frozen = lnt.partition_params(base, config)
    trained = {path: leaf + 0.1 for path, leaf in trainable.items()}  # stands for training

    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "adapter"
        lnt.save_adapter(directory, trained, config, base=base)
        size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
        base_size = sum(leaf.nbytes for leaf in jax.tree.leaves(base))
        print(f"base {base_size:,} bytes, adapter {size:,} bytes")

        restored = lnt.restore_adapter(directory, make_base(0))
        merged = lnt.merge_params(trained, frozen)
        same = all(map(np.array_equal, jax.tree.leaves(restored), jax.tree.leaves(merged)))
        print(f"restored onto a fresh base: identical {same}")

        half = lnt.restore_adapter(directory, make_base(0, jnp.bfloat16))
        print(f"restored onto a bfloat16 base: {half['ln_f']['scale'].dtype}")

        try:
            lnt.restore_adapter(directory, make_base(1))
        except lnt.LNTuningError as error:
            print(f"another base: {error}")


if __name__ == "__main__":
    main()
