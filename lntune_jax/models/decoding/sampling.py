"""One token out of each row of logits: the best, or one drawn from the likeliest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lntune_jax.errors import ModelError

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


class Sampling(NamedTuple):
    """Arrays, so that other values need no other program.

    Attributes:
        temperature: what the logits are divided by.
        top_k: how many of the likeliest tokens stay; at least the vocabulary for all.
        top_p: the share of probability that the tokens which stay must reach; 1 for all.
    """

    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]


def check_sampling(
    temperature: float, top_k: int | None, top_p: float | None, vocabulary: int, key: Any
) -> Sampling | None:
    """Give the settings as arrays; `None` for the best token each time.

    Raises:
        ModelError: a value is out of its range, or there is no key to draw with.
    """
    if not _is_number(temperature) or not 0 <= temperature < np.inf:
        raise ModelError(f"temperature is {temperature!r}; expected a number of at least 0")
    if top_k is not None and (not isinstance(top_k, int | np.integer) or top_k < 1):
        raise ModelError(f"top_k is {top_k!r}; expected an integer of at least 1, or None")
    if top_p is not None and (not _is_number(top_p) or not 0 < top_p <= 1):
        raise ModelError(f"top_p is {top_p!r}; expected a number above 0 and at most 1, or None")
    # What a float32 cannot hold is as good as zero, and not to be divided by.
    if temperature < np.finfo(np.float32).tiny:
        return None
    if key is None:
        raise ModelError(
            f"temperature is {temperature!r}, but there is no key to draw tokens with; pass "
            "key=jax.random.key(0), or temperature=0 for the likeliest token each time"
        )
    return Sampling(
        jnp.float32(temperature),
        jnp.int32(vocabulary if top_k is None else min(int(top_k), vocabulary)),
        jnp.float32(1 if top_p is None else top_p),
    )


def pick(
    logits: Float[Array, "batch vocabulary"], sampling: Sampling | None, key: Any
) -> Int[Array, " batch"]:
    """Choose a token for each row.

    As in transformers: first the temperature, then the `top_k` likeliest tokens, then of those
    the fewest likeliest whose probabilities together reach `top_p`.

    Args:
        logits: of any floating type.
        sampling: `None` for the highest logit, the first one of several.
        key: a JAX random key; a row draws the same numbers however many rows there are.

    Returns:
        The tokens; -1 where the logits hold NaN.
    """
    exact = logits.astype(jnp.float32)
    best = jnp.argmax(exact, axis=-1).astype(jnp.int32)
    tokens = best if sampling is None else _draw(exact, sampling, key)
    return jnp.where(jnp.isnan(exact).any(axis=-1), -1, tokens)


def _draw(
    logits: Float[Array, "batch vocabulary"], sampling: Sampling, key: Any
) -> Int[Array, " batch"]:
    ranks = jnp.arange(logits.shape[1], dtype=jnp.int32)
    order = jnp.argsort(logits, axis=-1, stable=True, descending=True).astype(jnp.int32)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    # The best one becomes 0, so that no temperature makes two infinities of two logits.
    ranked = (ranked - ranked[:, :1]) / sampling.temperature
    ranked = jnp.where(ranks < sampling.top_k, ranked, -jnp.inf)
    shares = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(shares, axis=-1) - shares
    # Sums of shares round: at 1 the last ones must not be lost.
    reached = (before >= sampling.top_p) & (sampling.top_p < 1) & (ranks > 0)
    ranked = jnp.where(reached, -jnp.inf, ranked)
    rows = jnp.arange(logits.shape[0], dtype=jnp.uint32)
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
    drawn = jax.vmap(jax.random.categorical)(keys, ranked)
    return jnp.take_along_axis(order, drawn[:, None], axis=-1)[:, 0]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.floating | np.integer) and value == value
