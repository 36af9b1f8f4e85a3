"""Norms and qwix's LoRA in one run, in Flax NNX and in Linen: two rates, two files.

Run: python examples/norms_and_lora.py
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import qwix
from flax import linen, nnx
from safetensors.numpy import load_file, save_file

import lntune_jax as lnt

NORMS = lnt.LNTuningConfig()
FACTORS = r".*_lora_[ab]"  # as qwix names them
BOTH = NORMS.replace(modules_to_save=FACTORS)
LORA = qwix.LoraProvider(module_path="up|down", rank=4, alpha=8.0)


class NnxClassifier(nnx.Module):
    """A residual block over vectors of 32 numbers, and a head of two classes."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.norm_in = nnx.LayerNorm(32, rngs=rngs)
        self.up = nnx.Linear(32, 64, rngs=rngs)
        self.down = nnx.Linear(64, 32, rngs=rngs)
        self.norm_out = nnx.LayerNorm(32, rngs=rngs)
        self.head = nnx.Linear(32, 2, rngs=rngs)

    def __call__(self, x):
        """Logits of shape (batch, 2) for inputs of shape (batch, 32)."""
        x = x + self.down(nnx.gelu(self.up(self.norm_in(x))))
        return self.head(self.norm_out(x))


class LinenClassifier(linen.Module):
    """The same in Linen."""

    @linen.compact
    def __call__(self, x):
        """Logits of shape (batch, 2) for inputs of shape (batch, 32)."""
        hidden = linen.gelu(linen.Dense(64, name="up")(linen.LayerNorm(name="norm_in")(x)))
        x = linen.LayerNorm(name="norm_out")(x + linen.Dense(32, name="down")(hidden))
        return linen.Dense(2, name="head")(x)


def make_nnx(seed):
    """Parameters whose LoRA is fresh, and the function that computes with them."""
    x = jnp.ones((1, 32))
    model = qwix.apply_lora_to_model(NnxClassifier(), LORA, x, rngs=nnx.Rngs(seed))
    graphdef, params = nnx.split(model)
    return params, lambda params, x: nnx.merge(graphdef, params)(x)


def make_linen(seed):
    base = LinenClassifier().init(jax.random.key(0), jnp.ones((1, 32)))["params"]  # pretrained
    model = qwix.apply_lora_to_model(LinenClassifier(), LORA)
    fresh = model.init(jax.random.key(seed), jnp.ones((1, 32)))["params"]
    params = {name: {**fresh[name], **base[name]} for name in base}
    return params, lambda params, x: model.apply({"params": params}, x)


def make_batch(seed, size=64):
    x = jax.random.normal(jax.random.key(seed), (size, 32))
    return x, (x[:, 0] * x[:, 1] > 0).astype(jnp.int32)


def train(params, apply):
    """One loop and one optimizer for both kinds of leaves."""
    trainable, frozen = lnt.partition_params(params, BOTH)
    tx = lnt.adamw(BOTH, learning_rate=2e-2, head_learning_rate=1e-2)  # norms; LoRA

    def loss_fn(params, batch):
        logits = apply(params, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    step = lnt.make_train_step(loss_fn, tx, BOTH)
    state = lnt.TrainState.create(trainable, tx)
    for index in range(300):
        state, metrics = step(state, frozen, make_batch(index))
        if index % 100 == 0 or index == 299:
            print(f"step {index:3d}  loss {metrics['loss']:.3f}")
    return state.trainable, frozen


def save(folder, trainable, base):
    """Two files: an adapter of the norms, and the factors by path."""
    factors = {path: np.asarray(leaf) for path, leaf in trainable.items() if "_lora_" in path}
    norms = {path: leaf for path, leaf in trainable.items() if path not in factors}
    lnt.save_adapter(folder / "norms", norms, NORMS, base=base)
    save_file(factors, folder / "lora.safetensors")
    lnt.export_peft(folder / "norms_for_peft", norms, NORMS)
    print(f"norms {len(norms)} leaves, LoRA {len(factors)} leaves")


def restore(folder, params):
    """Both files onto a base whose LoRA is fresh."""
    params = lnt.restore_adapter(folder / "norms", params)
    trainable, frozen = lnt.partition_params(params, BOTH)
    return lnt.merge_params({**trainable, **load_file(folder / "lora.safetensors")}, frozen)


def same_bits(tree, other):
    return all(map(np.array_equal, jax.tree.leaves(tree), jax.tree.leaves(other)))


def main():
    for name, make in (("Flax NNX", make_nnx), ("Flax Linen", make_linen)):
        params, apply = make(seed=1)
        print(f"{name}: {lnt.report_params(params, BOTH)}")
        trainable, frozen = train(params, apply)
        tuned = lnt.merge_params(trainable, frozen)
        kept = [new is old for new, old in zip(*map(jax.tree.leaves, (tuned, params)), strict=True)]
        print(f"{sum(kept)} of {len(kept)} arrays are still the base's own")
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder), trainable, params)
            restored = restore(Path(folder), make(seed=2)[0])
        print(f"restored onto a fresh base: identical {same_bits(restored, tuned)}")
        x, y = make_batch(1000, 512)
        print(f"accuracy {jnp.mean(apply(restored, x).argmax(-1) == y):.2f}")


if __name__ == "__main__":
    main()
