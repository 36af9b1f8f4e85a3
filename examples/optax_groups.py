"""Optax in the trainable half: a rate for each group, a schedule, accumulation, clipping.

Run: python examples/optax_groups.py
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

    groups = {
        "scale": optax.adam(optax.warmup_cosine_decay_schedule(0.0, 2e-2, 10, 150)),
        "bias": optax.adam(1e-2),
        "head": optax.contrib.muon(2e-2),
    }
    by_group = optax.multi_transform(groups, lambda tree: lnt.label_groups(tree, config))
    tx = optax.chain(optax.clip_by_global_norm(1.0), by_group)
    tx = optax.MultiSteps(tx, every_k_schedule=2).gradient_transformation()

    def loss_fn(params, batch):
        logits = model.apply(params, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    step = lnt.make_train_step(loss_fn, tx, config)
    state = lnt.TrainState.create(trainable, tx)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state.opt_state))
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    print(f"model {whole:,} bytes, state of the optimizer {held:,} bytes")
    for index in range(300):
        state, metrics = step(state, frozen, make_batch(index))
        if index % 100 == 0 or index == 299:
            print(f"step {index:3d}  loss {metrics['loss']:.3f}")
    print(f"programs compiled: {step.compilations()}")
    tuned = lnt.merge_params(state.trainable, frozen)
    x, y = make_batch(1000, 512)
    print(f"accuracy {jnp.mean(model.apply(tuned, x).argmax(-1) == y):.2f}")


if __name__ == "__main__":
    main()
