"""A run that stops half way and goes on from an Orbax CheckpointManager of your own.

Run: python examples/orbax_manager.py
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from flax import linen as nn

import lntune_jax as lnt

CONFIG = lnt.LNTuningConfig(modules_to_save=["head"])


class Classifier(nn.Module):
    """A residual block over vectors of 32 numbers, and a head of two classes."""

    @nn.compact
    def __call__(self, x):
        """Logits of shape (batch, 2) for inputs of shape (batch, 32)."""
        x = x + nn.Dense(32)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))
        return nn.Dense(2, name="head")(nn.LayerNorm()(x))


def make_batch(seed, size=64):
    x = jax.random.normal(jax.random.key(seed), (size, 32))
    return x, (x[:, 0] + x[:, 1] > 0).astype(jnp.int32)


def run(folder, steps):
    """Trains to step `steps`, from the latest checkpoint in `folder` if there is one."""
    model = Classifier()
    params = model.init(jax.random.key(0), jnp.ones((1, 32)))  # stands for a pretrained model

    def loss_fn(params, batch):
        logits = model.apply(params, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    trainable, frozen = lnt.partition_params(params, CONFIG)
    tx = optax.adam(1e-2)
    step = lnt.make_train_step(loss_fn, tx, CONFIG)
    state = lnt.TrainState.create(trainable, tx)
    options = ocp.CheckpointManagerOptions(max_to_keep=2)  # saves while training goes on
    with ocp.CheckpointManager(folder, options=options) as manager:
        if manager.latest_step() is not None:
            items = ocp.args.Composite(state=ocp.args.StandardRestore(state))
            state = manager.restore(manager.latest_step(), args=items).state
            print(f"going on from step {int(state.step)}")
        while int(state.step) < steps:
            state, metrics = step(state, frozen, make_batch(int(state.step)))
            if int(state.step) % 25 == 0:
                items = ocp.args.Composite(state=ocp.args.StandardSave(state))
                manager.save(int(state.step), args=items)
                print(f"step {int(state.step):3d}  loss {metrics['loss']:.3f}")
        manager.wait_until_finished()
    return state


def main():
    with tempfile.TemporaryDirectory() as folder:
        whole = run(Path(folder).absolute() / "whole", 100)
        run(Path(folder).absolute() / "parts", 60)  # stops between two checkpoints
        parts = run(Path(folder).absolute() / "parts", 100)
        files = [file for file in Path(folder).rglob("*/100/**/*") if file.is_file()]
        size = sum(file.stat().st_size for file in files) / 2
    same = jax.tree.map(lambda a, b: bool((a == b).all()), whole, parts)
    print(f"stopped and gone on: identical {all(jax.tree.leaves(same))}")
    print(f"a checkpoint of state and optimizer: {size:,.0f} bytes")


if __name__ == "__main__":
    main()
