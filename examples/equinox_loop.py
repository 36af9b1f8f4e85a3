"""LayerNorm tuning of an Equinox module, functions in it and all.

Run: python examples/equinox_loop.py
"""

import tempfile

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import lntune_jax as lnt


class Classifier(eqx.Module):
    """A residual block over vectors of 32 numbers, and a head of two classes."""

    before: eqx.nn.LayerNorm
    mlp: eqx.nn.MLP  # holds its activation, a function
    after: eqx.nn.RMSNorm
    head: eqx.nn.Linear

    def __init__(self, seed=0):
        keys = jax.random.split(jax.random.key(seed))
        self.before, self.after = eqx.nn.LayerNorm(32), eqx.nn.RMSNorm(32)
        self.mlp = eqx.nn.MLP(32, 32, 64, 1, activation=jax.nn.gelu, key=keys[0])
        self.head = eqx.nn.Linear(32, 2, key=keys[1])

    def __call__(self, x):
        """Logits of shape (2,) for one input of shape (32,)."""
        return self.head(self.after(x + self.mlp(self.before(x))))


def make_batch(seed, size=64):
    x = jax.random.normal(jax.random.key(seed), (size, 32))
    return x, (x[:, 0] + x[:, 1] > 0).astype(jnp.int32)


def loss_fn(model, batch):
    logits = jax.vmap(model)(batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


def main():
    model = Classifier()  # stands for a pretrained model
    config = lnt.LNTuningConfig(modules_to_save=["head"])
    trainable, frozen = lnt.partition_params(model, config)
    print(lnt.report_params(model, config))

    tx = optax.adam(1e-2)
    opt_state = tx.init(trainable)

    @eqx.filter_jit
    def step(trainable, opt_state, frozen, batch):
        loss, grads = lnt.value_and_grad(loss_fn)(trainable, frozen, batch)
        updates, opt_state = tx.update(grads, opt_state, trainable)
        return eqx.apply_updates(trainable, updates), opt_state, loss

    for index in range(150):
        trainable, opt_state, loss = step(trainable, opt_state, frozen, make_batch(index))
        if index % 50 == 0 or index == 149:
            print(f"step {index:3d}  loss {loss:.3f}")

    with tempfile.TemporaryDirectory() as folder:
        path = lnt.save_adapter(f"{folder}/adapter", trainable, config, base=model)
        restored = lnt.restore_adapter(path, Classifier())
    x, y = make_batch(1000, 512)
    predicted = jax.vmap(restored)(x)
    same = (predicted == jax.vmap(lnt.merge_params(trainable, frozen))(x)).all()
    print(f"restored: the same logits {bool(same)}")
    print(f"accuracy {jnp.mean(predicted.argmax(-1) == y):.2f}")


if __name__ == "__main__":
    main()
