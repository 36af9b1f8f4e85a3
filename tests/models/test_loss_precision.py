"""The loss's gradient where products are made of few bits, as accelerators do in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lntune_jax.models.loss import token_losses

TOKENS, WIDTH, WORDS = 64, 64, 1000


@pytest.mark.parametrize(("bits", "limit"), [(23, 1e-5), (10, 4e-3), (7, 2e-2)])
def test_confident_tokens_keep_their_gradient(bits, limit, monkeypatch):
    """No difference of two rows that are nearly one: it would be their rounding."""
    random = np.random.default_rng(0)
    weights = (random.normal(size=(WORDS, WIDTH)) * 0.3).astype(np.float32)
    wanted = random.integers(0, WORDS, TOKENS)
    states = (random.normal(size=(TOKENS, WIDTH)) * 0.5 + 3.5 * weights[wanted]).astype(np.float32)
    product = jax.lax.dot_general

    def multiply(left, right, *arguments, **options):
        left, right = (jax.lax.reduce_precision(x, 8, bits) for x in (left, right))
        return product(left, right, *arguments, **options)

    def loss(states):
        labels = jnp.asarray(wanted, jnp.int32)
        found = token_losses(states, jnp.asarray(weights), labels, axis=0, cap=None, chunk=256)
        return found.sum()

    monkeypatch.setattr(jax.lax, "dot_general", multiply)
    found, value = jax.grad(loss)(jnp.asarray(states)), loss(jnp.asarray(states))
    logits = states.astype(np.float64) @ weights.T.astype(np.float64)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    assert value / TOKENS < 0.01
    shares[np.arange(TOKENS), wanted] -= 1
    expected = shares @ weights
    assert np.linalg.norm(found - expected) < limit * np.linalg.norm(expected)
