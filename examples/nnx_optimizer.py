"""LayerNorm tuning in a loop of Flax NNX's own style: one filter, and nothing else changes.

Run: python examples/nnx_optimizer.py
"""

import tempfile

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import lntune_jax as lnt


class Classifier(nnx.Module):
    """A residual block and a head of two classes; one norm's name says nothing."""

    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.first = nnx.LayerNorm(32, rngs=rngs)
        self.up = nnx.Linear(32, 64, rngs=rngs)
        self.down = nnx.Linear(64, 32, rngs=rngs)
        self.last = nnx.RMSNorm(32, rngs=rngs)
        self.head = nnx.Linear(32, 2, rngs=rngs)

    def __call__(self, x):
        """Logits of shape (batch, 2) for inputs of shape (batch, 32)."""
        x = x + self.down(nnx.gelu(self.up(self.first(x))))
        return self.head(self.last(x))


def make_batch(seed, size=64):
    x = jax.random.normal(jax.random.key(seed), (size, 32))
    return x, (x[:, 0] + x[:, 1] > 0).astype(jnp.int32)


@nnx.jit
def step(model, optimizer, batch):
    graphdef, trainable, rest = nnx.split(model, optimizer.wrt, ...)

    def loss_fn(trainable):
        logits = nnx.merge(graphdef, trainable, rest, copy=True)(batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    loss, grads = jax.value_and_grad(loss_fn)(trainable)
    optimizer.update(model, grads)
    return loss


def main():
    model = Classifier()  # stands for a pretrained model
    config = lnt.LNTuningConfig(modules_to_save=["head"])
    print(lnt.report_params(model, config))

    optimizer = lnt.integrations.nnx.make_optimizer(model, optax.adam(1e-2), config)
    for index in range(150):
        loss = step(model, optimizer, make_batch(index))
        if index % 50 == 0 or index == 149:
            print(f"step {index:3d}  loss {loss:.3f}")

    with tempfile.TemporaryDirectory() as folder:
        trainable, _ = lnt.partition_params(model, config)
        path = lnt.save_adapter(f"{folder}/adapter", trainable, config, base=model)
        restored = lnt.restore_adapter(path, Classifier())
    x, y = make_batch(1000, 512)
    print(f"restored: the same logits {bool((restored(x) == model(x)).all())}")
    print(f"accuracy {jnp.mean(restored(x).argmax(-1) == y):.2f}")


if __name__ == "__main__":
    main()
