"""LayerNorm tuning in your own loop: a Flax Linen model, the gradient of the norms alone.

Run: python examples/linen_loop.py
"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import lntune_jax as lnt


class Classifier(nn.Module):
    """Two residual blocks over vectors of 32 numbers, and a head of two classes."""

    @nn.compact
    def __call__(self, x):
        """Logits of shape (batch, 2) for inputs of shape (batch, 32)."""
        for _ in range(2):
            hidden = nn.Dense(64)(nn.LayerNorm()(x))
            x = x + nn.Dense(32)(nn.gelu(hidden))
        return nn.Dense(2, name="classifier")(nn.LayerNorm(name="ln_f")(x))


def make_batch(seed, size=64):
    x = jax.random.normal(jax.random.key(seed), (size, 32))
    return x, (x[:, 0] + x[:, 1] > 0).astype(jnp.int32)


def main():
    model = Classifier()
    params = model.init(jax.random.key(0), jnp.ones((1, 32)))  # stands for a pretrained model

    config = lnt.LNTuningConfig(modules_to_save=["classifier"])
    trainable, frozen = lnt.partition_params(params, config)
    print(lnt.report_params(params, config))

    tx = optax.adam(1e-2)
    opt_state = tx.init(trainable)  # for the trainable leaves only

    def loss_fn(params, batch):
        logits = model.apply(params, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    @jax.jit
    def step(trainable, opt_state, frozen, batch):
        loss, grads = lnt.value_and_grad(loss_fn)(trainable, frozen, batch)
        updates, opt_state = tx.update(grads, opt_state, trainable)
        return optax.apply_updates(trainable, updates), opt_state, loss

    for index in range(200):
        trainable, opt_state, loss = step(trainable, opt_state, frozen, make_batch(index))
        if index % 50 == 0 or index == 199:
            print(f"step {index:3d}  loss {loss:.3f}")

    tuned = lnt.merge_params(trainable, frozen)  # the tree that model.apply takes
    x, y = make_batch(1000, 512)
    print(f"accuracy {jnp.mean(model.apply(tuned, x).argmax(-1) == y):.2f}")


if __name__ == "__main__":
    main()
