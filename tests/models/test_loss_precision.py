"""The loss's gradient where products are made of few bits, as accelerators do in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lntune_jax.models.loss import token_losses
from lntune_jax.models.nn.output import LogitRule

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
        found = token_losses(
            states, jnp.asarray(weights), labels, rule=LogitRule(axis=0), chunk=256
        )
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


@dataclasses.dataclass(frozen=True)
class Scaled(LogitRule):
    """What a family with a factor on its logits would write, in this one place."""

    factor: float = 3.0

    def finish(self, products):
        return super().finish(products) * self.factor

    def pull(self, slopes, logits):
        return super().pull(slopes * self.factor, logits / self.factor)


@pytest.mark.parametrize("axis", [0, 1])
def test_whatever_a_rule_does_to_products_is_in_loss_and_gradient(axis):
    keys = jax.random.split(jax.random.key(0), 3)
    states = jax.random.normal(keys[0], (12, WIDTH)) * 0.3
    weights = jax.random.normal(keys[1], (WORDS, WIDTH)) * 0.1
    wanted = jax.random.randint(keys[2], (12,), 0, WORDS)
    rule = Scaled(axis=axis, cap=2.0)

    def chunked(states):
        kept = weights.T if axis else weights
        return token_losses(states, kept, wanted, rule=rule, chunk=300).sum()

    def whole(states):
        logits = rule.finish(states @ weights.T)
        return -jax.nn.log_softmax(logits)[jnp.arange(12), wanted].sum()

    found, expected = jax.value_and_grad(chunked)(states), jax.value_and_grad(whole)(states)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-6)
