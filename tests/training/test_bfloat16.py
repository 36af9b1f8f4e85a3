"""Ordinary bfloat16 models train on a CPU: the caller's program is compiled as it is."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lntune_jax as lnt


@pytest.fixture(autouse=True)
def _promotion():
    with jax.numpy_dtype_promotion("standard"):  # Flax computes its norms in float32
        yield


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        types = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
        return x + nn.MultiHeadDotProductAttention(4, **types)(nn.LayerNorm(**types)(x))


def test_an_attention_model():
    """Fault 12: products that had been rewritten were not implemented by XLA."""
    x = jnp.ones((2, 8, 16), jnp.bfloat16)
    params = Attention().init(jax.random.key(0), x)
    trainable, frozen = lnt.partition_params(params, lnt.LNTuningConfig())
    tx = optax.sgd(0.1)

    def loss_fn(params, x):
        return jnp.square(Attention().apply(params, x).astype("float32") - 1.5).mean()

    step = lnt.make_train_step(loss_fn, tx)
    _, metrics = step(lnt.TrainState.create(trainable, tx), frozen, x)
    assert np.isfinite(metrics["loss"])
    assert not metrics["zero_gradient"]


@pytest.mark.parametrize(
    "subscripts",
    ["bqhd,bkhd->bhqk", "bhqk,bkhd->bqhd", "bqd,bkd->qk", "abc,cd->dba", "ab,ab->a"],
)
def test_products_of_several_forms(subscripts):
    left, right = subscripts.split("->")[0].split(",")
    sizes = dict(zip("abcdhkq", (2, 3, 4, 5, 2, 6, 3), strict=True))
    x, w = (jnp.ones([sizes[axis] for axis in each], jnp.bfloat16) for each in (left, right))
    trainable, frozen = lnt.partition_params(
        {"ln": {"scale": jnp.ones(x.shape[-1], jnp.bfloat16)}, "w": w},
        lnt.LNTuningConfig(),
        norms=["ln"],
    )
    tx = optax.sgd(0.1)

    def loss_fn(params, x):
        return jnp.einsum(subscripts, x * params["ln"]["scale"], params["w"]).sum()

    step = lnt.make_train_step(loss_fn, tx)
    _, metrics = step(lnt.TrainState.create(trainable, tx), frozen, x)
    assert np.isfinite(metrics["loss"].astype("float32"))
