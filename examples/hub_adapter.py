"""An adapter of kilobytes on the Hugging Face hub, and back from it by its id.

Needs a token that may write (HF_TOKEN, or `hf auth login`).
Run: python examples/hub_adapter.py OWNER/NAME
"""

import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

import lntune_jax as lnt


def make_base():
    key = jax.random.key(0)
    return {
        "embed": {"embedding": jax.random.normal(key, (1000, 256))},
        "ln_f": {"scale": jnp.ones(256), "bias": jnp.zeros(256)},
    }


def main(repo_id):
    base = make_base()
    config = lnt.LNTuningConfig()
    trainable, frozen = lnt.partition_params(base, config)
    trained = {path: leaf + 0.1 for path, leaf in trainable.items()}  # stands for training

    with tempfile.TemporaryDirectory() as folder:
        path = lnt.save_adapter(f"{folder}/adapter", trained, config, base=base)
        commit = lnt.hub.push_adapter(path, repo_id, private=True)
    print(f"pushed: {repo_id} at {commit[:8]}")

    restored = lnt.hub.from_pretrained(repo_id, make_base(), revision=commit)
    merged = lnt.merge_params(trained, frozen)
    same = all(map(np.array_equal, jax.tree.leaves(restored), jax.tree.leaves(merged)))
    print(f"fetched and restored onto a fresh base: identical {same}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
