"""LayerNorm tuning of a Flax NNX model, with the library's ready training step.

Run: python examples/nnx_loop.py
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import lntune_jax as lnt


class Block(nnx.Module):
    """A residual block with a norm whose name says nothing, and dropout."""

    def __init__(self, rngs):
        self.first = nnx.RMSNorm(32, rngs=rngs)
        self.up = nnx.Linear(32, 64, rngs=rngs)
        self.down = nnx.Linear(64, 32, rngs=rngs)
        self.dropout = nnx.Dropout(0.1)

    def __call__(self, x, rngs):
        """Shape (batch, 32) to (batch, 32)."""
        hidden = self.down(nnx.gelu(self.up(self.first(x))))
        return x + self.dropout(hidden, rngs=rngs)


class Classifier(nnx.Module):
    """Two blocks and a head of two classes."""

    def __init__(self, rngs):
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])
        self.head = nnx.Linear(32, 2, rngs=rngs)

    def __call__(self, x, rngs):
        """Logits of shape (batch, 2) for inputs of shape (batch, 32)."""
        for block in self.blocks:
            x = block(x, rngs)
        return self.head(x)


def make_batch(seed, size=64):
    x = jax.random.normal(jax.random.key(seed), (size, 32))
    return x, (x[:, 0] + x[:, 1] > 0).astype(jnp.int32)


def main():
    model = Classifier(nnx.Rngs(0))  # stands for a pretrained model
    graphdef, params = nnx.split(model)

    config = lnt.LNTuningConfig(modules_to_save=["head"])
    norms = lnt.norm_modules(model)  # by type, whatever their names: blocks.0.first, ...
    trainable, frozen = lnt.partition_params(params, config, norms=norms)
    print(lnt.report_params(params, config, norms=norms))

    def loss_fn(params, batch, rng):
        logits = nnx.merge(graphdef, params)(batch[0], nnx.Rngs(dropout=rng))
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    tx = lnt.adamw(config, 1e-2, clip_norm=1.0)
    step = lnt.make_train_step(loss_fn, tx, config, accumulate=2)
    state = lnt.TrainState.create(trainable, tx, rng=jax.random.key(1))
    for index in range(100):
        state, metrics = step(state, frozen, make_batch(index))
        if index % 25 == 0 or index == 99:
            print(f"step {index:3d}  loss {metrics['loss']:.3f}")
    print(f"programs compiled: {step.compilations()}")

    nnx.update(model, lnt.merge_params(state.trainable, frozen))  # back into the module
    model.eval()
    x, y = make_batch(1000, 512)
    print(f"accuracy {jnp.mean(model(x, None).argmax(-1) == y):.2f}")


if __name__ == "__main__":
    main()
