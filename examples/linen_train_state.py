"""LayerNorm tuning with flax.training's TrainState: the whole tree stays, the optimizer changes.

Run: python examples/linen_train_state.py
"""

import tempfile

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

import lntune_jax as lnt


class Layer(nn.Module):
    """A residual block over vectors of 32 numbers."""

    @nn.compact
    def __call__(self, x, _):
        hidden = nn.Dense(64)(nn.LayerNorm()(x))
        return x + nn.Dense(32)(nn.gelu(hidden)), None


class Classifier(nn.Module):
    """Three blocks, scanned and rematerialised, and a head of two classes."""

    @nn.compact
    def __call__(self, x):
        """Logits of shape (batch, 2) for inputs of shape (batch, 32)."""
        layers = nn.scan(
            nn.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        x, _ = layers(name="layers")(x, None)
        return nn.Dense(2, name="classifier")(nn.LayerNorm(name="ln_f")(x))


def make_batch(seed, size=64):
    x = jax.random.normal(jax.random.key(seed), (size, 32))
    return x, (x[:, 0] + x[:, 1] > 0).astype(jnp.int32)


@jax.jit
def step(state, batch):
    def loss_fn(params):
        logits = state.apply_fn({"params": params}, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


def main():
    model = Classifier()
    params = model.init(jax.random.key(0), jnp.ones((1, 32)))["params"]  # a pretrained model's

    config = lnt.LNTuningConfig(modules_to_save=["classifier"])
    print(lnt.report_params(params, config))
    tx = lnt.make_optimizer(optax.adam(1e-2), config)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    held = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
    print(f"numbers in the optimizer's state: {held}")
    for index in range(150):
        state, loss = step(state, make_batch(index))
        if index % 50 == 0 or index == 149:
            print(f"step {index:3d}  loss {loss:.3f}")

    with tempfile.TemporaryDirectory() as folder:
        trainable, _ = lnt.partition_params(state.params, config)
        path = lnt.save_adapter(f"{folder}/adapter", trainable, config, base=params)
        restored = lnt.restore_adapter(path, params)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), restored, state.params)
    print(f"restored onto the base: identical {all(jax.tree.leaves(same))}")
    x, y = make_batch(1000, 512)
    print(f"accuracy {jnp.mean(model.apply({'params': restored}, x).argmax(-1) == y):.2f}")


if __name__ == "__main__":
    main()
