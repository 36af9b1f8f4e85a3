"""LayerNorm tuning over a base whose kernels qwix keeps in 4 bits.

Run: python examples/qwix_base.py
"""

import tempfile

import jax
import jax.numpy as jnp
import optax
import qwix
from flax import nnx

import lntune_jax as lnt


class Classifier(nnx.Module):
    """A residual block over vectors of 32 numbers, and a head of two classes."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.before = nnx.LayerNorm(32, rngs=rngs)
        self.up = nnx.Linear(32, 128, rngs=rngs)
        self.down = nnx.Linear(128, 32, rngs=rngs)
        self.after = nnx.LayerNorm(32, rngs=rngs)
        self.head = nnx.Linear(32, 2, rngs=rngs)

    def __call__(self, x):
        """Logits of shape (batch, 2) for inputs of shape (batch, 32)."""
        x = x + self.down(nnx.gelu(self.up(self.before(x))))
        return self.head(self.after(x))


def make_batch(seed, size=64):
    x = jax.random.normal(jax.random.key(seed), (size, 32))
    return x, (x[:, 0] + x[:, 1] > 0).astype(jnp.int32)


def main():
    # "up" and "down" in 4 bits; the head stays as it is, and trains.
    rules = [qwix.QuantizationRule(module_path="up|down", weight_qtype="int4")]
    provider = qwix.PtqProvider(rules)
    model = qwix.quantize_model(Classifier(), provider, jnp.ones((1, 32)))

    config = lnt.LNTuningConfig(modules_to_save=["head"])
    norms = lnt.norm_modules(model)
    graphdef, params = nnx.split(model)
    trainable, frozen = lnt.partition_params(params, config, norms=norms)
    print(lnt.report_params(params, config, norms=norms))
    print(f"kernels: {params['up']['kernel']['array']['qvalue'].dtype}")

    def loss_fn(params, batch):
        logits = nnx.merge(graphdef, params)(batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    tx = lnt.adamw(config, 1e-2)
    step = lnt.make_train_step(loss_fn, tx, config)
    state = lnt.TrainState.create(trainable, tx)
    for index in range(150):
        state, metrics = step(state, frozen, make_batch(index))
        if index % 50 == 0 or index == 149:
            print(f"step {index:3d}  loss {metrics['loss']:.3f}")

    with tempfile.TemporaryDirectory() as folder:
        path = lnt.save_adapter(
            f"{folder}/adapter", state.trainable, config, base=params, norms=norms
        )
        tuned = nnx.merge(graphdef, lnt.restore_adapter(path, params))
    x, y = make_batch(1000, 512)
    print(f"accuracy {jnp.mean(tuned(x).argmax(-1) == y):.2f}")


if __name__ == "__main__":
    main()
