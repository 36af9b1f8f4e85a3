"""LayerNorm tuning of Google DeepMind's gemma with kauldron's `partial_updates`.

Run: python examples/packages/gemma_partial_updates.py
"""

import dataclasses
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
from gemma import gm
from kauldron import optim

import lntune_jax as lnt


def make_model():
    """A tiny Gemma 3; yours is `gm.nn.Gemma3_1B()`."""
    model = gm.nn.Gemma3_1B()
    sizes = {"num_embed": 64, "embed_dim": 32, "hidden_dim": 48, "num_heads": 4}
    sizes |= {"num_kv_heads": 2, "head_dim": 8, "sliding_window_size": 8}
    layers = tuple(model.config.attention_types)[4:6]
    config = dataclasses.replace(model.config, attention_types=layers, **sizes)
    return dataclasses.replace(model, config=config, dtype=jnp.float32)


def main():
    model = make_model()
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 16, (4, 12)), jnp.int32)

    def load_params():  # yours: gm.ckpts.load_params(...)
        return model.init(jax.random.key(0), tokens)["params"]

    config = lnt.LNTuningConfig()

    def select_norms(params):
        return jax.tree.map("trainable".__eq__, lnt.label_params(params, config))

    tx = optim.partial_updates(optax.adam(1e-2), mask=select_norms)  # kd.train.Trainer takes it
    base = params = load_params()
    opt_state = tx.init(params)
    trainable = lnt.partition_params(params, config).trainable
    print(f"trains {len(trainable)} of {len(jax.tree.leaves(params))} leaves")

    def loss_fn(params, tokens):
        logits = model.apply({"params": params}, tokens).logits[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    @jax.jit
    def step(params, opt_state, tokens):
        loss, grads = jax.value_and_grad(loss_fn)(params, tokens)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    for index in range(50):
        params, opt_state, loss = step(params, opt_state, tokens)
        if index in (0, 49):
            print(f"step {index:3d}  loss {loss:.3f}")

    trainable = lnt.partition_params(params, config).trainable
    with tempfile.TemporaryDirectory() as folder:
        lnt.save_adapter(f"{folder}/adapter", trainable, config, base=base)
        restored = lnt.restore_adapter(f"{folder}/adapter", load_params())
    run = jax.jit(lambda params: model.apply({"params": params}, tokens).logits)
    print(f"restored onto the base: identical {np.array_equal(run(restored), run(params))}")


if __name__ == "__main__":
    main()
