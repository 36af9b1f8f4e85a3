"""The loss in chunks: what it holds by the compiler's account, and what it gives at every place."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from lntune_jax.models.loss import token_losses
from lntune_jax.models.nn.output import LogitRule

TOKENS, HIDDEN, CHUNK = 512, 16, 2048
# The last chunk fits, or reaches back into the one before.
ROWS = [4 * CHUNK, 4 * CHUNK - 1]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("differentiated", [(0,), (0, 1)], ids=["frozen", "weights that train"])
def test_one_chunk_of_logits_is_held_not_two(rows, differentiated):
    def loss(states, weights, wanted):
        return token_losses(states, weights, wanted, rule=LogitRule(axis=0), chunk=CHUNK).mean()

    shapes = [
        jax.ShapeDtypeStruct((TOKENS, HIDDEN), "float32"),
        jax.ShapeDtypeStruct((rows, HIDDEN), "float32"),
        jax.ShapeDtypeStruct((TOKENS,), "int32"),
    ]
    compiled = jax.jit(jax.grad(loss, differentiated)).lower(*shapes).compile()
    held = compiled.memory_analysis().temp_size_in_bytes
    assert 4 * TOKENS * CHUNK <= held < 1.25 * 4 * TOKENS * CHUNK


@pytest.mark.parametrize("rows", [96, 91])
def test_every_place_of_the_wanted_entry(rows):
    """The first and the last of each chunk, and where the last reaches back."""
    states = jax.random.normal(jax.random.key(0), (rows, 8))
    weights = jax.random.normal(jax.random.key(1), (rows, 8))
    slopes = jax.random.normal(jax.random.key(2), (rows,))
    wanted = jnp.arange(rows, dtype="int32")

    def plain(states, weights):
        return -jnp.diag(jax.nn.log_softmax(states @ weights.T))

    chunked = partial(token_losses, wanted=wanted, rule=LogitRule(axis=0), chunk=32)
    found, pull = jax.vjp(chunked, states, weights)
    expected, pull_plain = jax.vjp(plain, states, weights)
    assert jnp.allclose(found, expected, rtol=1e-5, atol=1e-5)
    of_both, of_plain = pull(slopes), pull_plain(slopes)
    (of_states,) = jax.vjp(lambda states: chunked(states, weights), states)[1](slopes)
    for one, other in zip((*of_both, of_states), (*of_plain, of_plain[0]), strict=True):
        assert jnp.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_entries_outside_of_the_vocabulary():
    """NaN for them alone, and no gradient, however low the logits are."""
    states = jnp.full((4, 8), -40.0)
    weights = jnp.full((64, 8), 10.0)
    wanted = jnp.asarray([-100, 0, 63, 64], "int32")

    def loss(states, weights):
        losses = token_losses(states, weights, wanted, rule=LogitRule(axis=0), chunk=32)
        return jnp.where(jnp.isnan(losses), 0, losses).sum(), losses

    for differentiated in (0, (0, 1)):
        gradients, losses = jax.grad(loss, differentiated, has_aux=True)(states, weights)
        assert jnp.isnan(losses).tolist() == [True, False, False, True]
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
