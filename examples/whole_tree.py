"""LayerNorm tuning in a loop that keeps the whole parameter tree, through `make_optimizer`.

Run: python examples/whole_tree.py
"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

import lntune_jax as lnt


class Regressor(nn.Module):
    """A norm between two dense layers, in bfloat16 as large models are kept."""

    @nn.compact
    def __call__(self, x):
        """Shape (batch, 16) to (batch,)."""
        x = nn.Dense(64, param_dtype=jnp.bfloat16)(x)
        x = nn.LayerNorm(param_dtype=jnp.bfloat16)(nn.gelu(x))
        return nn.Dense(1, param_dtype=jnp.bfloat16)(x)[:, 0]


def main():
    model = Regressor()
    params = model.init(jax.random.key(0), jnp.ones((1, 16)))["params"]
    config = lnt.LNTuningConfig()

    # Clipping stands inside: around make_optimizer it would see the frozen leaves' gradients.
    inner = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    tx = lnt.make_optimizer(inner, config)
    state = TrainState.create(
        apply_fn=lambda p, x: model.apply({"params": p}, x), params=params, tx=tx
    )

    @jax.jit
    def step(state, x, y):
        def loss_fn(params):
            return jnp.mean((state.apply_fn(params, x) - y) ** 2)

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads=grads), loss

    x = jax.random.normal(jax.random.key(1), (256, 16))
    for index in range(200):
        state, loss = step(state, x, x.sum(-1))
        if index in (0, 199):
            print(f"step {index:3d}  loss {loss:.3f}")

    for path, old, new in zip(
        ("Dense_0", "Dense_1", "LayerNorm_0"), *map(_by_module, (params, state.params)), strict=True
    ):
        moved = sum(int((a != b).sum()) for a, b in zip(old, new, strict=True))
        print(f"{path:12s} {moved:4d} of {sum(a.size for a in old):4d} entries moved")


def _by_module(tree):
    return [jax.tree.leaves(tree[name]) for name in ("Dense_0", "Dense_1", "LayerNorm_0")]


if __name__ == "__main__":
    main()
