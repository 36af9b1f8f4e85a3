"""Attention and GELU as the models compute them are JAX's own, gradients too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lntune_jax.models.nn.attention import Masking, attend, attend_causally
from lntune_jax.models.nn.layers import ACTIVATIONS


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_to_what_a_mask_leaves_is_jaxs(dtype):
    query, key, value = _heads(dtype, 3)
    mask = jnp.asarray([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    found = attend(query, key, value, mask, 0.1, None)
    with jax.numpy_dtype_promotion("standard"):
        expected = jax.nn.dot_product_attention(query, key, value, mask=mask[:, None, None])
    _check_heads(found, expected)


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_grouped_attention_to_the_positions_before_is_jaxs(dtype, window):
    def ours(query, key, value):
        options = {"scale": 0.3, "cap": None, "rate": 0.0, "dropout_rng": None}
        return attend_causally(query, key, value, Masking(windows=(window,)), **options)

    def theirs(query, key, value):
        near = None if window is None else (window - 1, 0)
        return jax.nn.dot_product_attention(
            query, key, value, scale=0.3, is_causal=True, local_window_size=near
        )

    heads = _heads(dtype, 6)
    # JAX's product of bfloat16 into float32 promotes on the way back.
    with jax.numpy_dtype_promotion("standard"):
        results = [jax.vjp(function, *heads) for function in (ours, theirs)]
        gradients = [back(heads[0]) for _, back in results]
    _check_heads(results[0][0], results[1][0])
    for found, expected in zip(*gradients, strict=True):
        _check_heads(found, expected)


def test_exact_gelu_of_bfloat16_is_rounded_once():
    x = jnp.asarray(np.linspace(-6, 6, 999), "bfloat16")
    expected = jax.nn.gelu(x.astype("float32"), approximate=False).astype("bfloat16")
    found = ACTIVATIONS["gelu"](x)
    assert found.dtype == "bfloat16"
    np.testing.assert_allclose(
        found.astype("float32"), expected.astype("float32"), rtol=2**-7, atol=2e-6
    )


def _heads(dtype, queries):
    """Six or three heads that look, and three that are looked at."""
    keys, counts = jax.random.split(jax.random.key(0), 3), (queries, 3, 3)
    return [
        jax.random.normal(key, (2, 5, count, 8)).astype(dtype)
        for key, count in zip(keys, counts, strict=True)
    ]


def _check_heads(found, expected):
    assert found.dtype == expected.dtype
    tolerance = 3e-6 if found.dtype == "float32" else 4e-2
    np.testing.assert_allclose(found.astype("float32"), expected.astype("float32"), atol=tolerance)
