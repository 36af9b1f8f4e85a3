"""One token out of each row of logits: the best, or one drawn from the likeliest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lntune_jax.errors import ModelError
from lntune_jax.messages import Argument

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


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
        raise ModelError(
            Argument("temperature"), f" is {temperature!r}; expected a number of at least 0"
        )
    if top_k is not None and (not isinstance(top_k, int | np.integer) or top_k < 1):
        raise ModelError(
            Argument("top_k"), f" is {top_k!r}; expected an integer of at least 1, or None"
        )
    if top_p is not None and (not _is_number(top_p) or not 0 < top_p <= 1):
        raise ModelError(
            Argument("top_p"), f" is {top_p!r}; expected a number above 0 and at most 1, or None"
        )
    # What a float32 cannot hold is as good as zero, and not to be divided by.
    tiny = float(np.finfo(np.float32).tiny)
    if temperature < tiny:
        return None
    if key is None:
        raise ModelError(
            Argument("temperature"),
            f" is {temperature!r}, but there is no key to draw tokens "
            "with; pass key=jax.random.key(0), or ",
            Argument("temperature", 0),
            " for the likeliest token each time",
        )
    return Sampling(
        jnp.float32(temperature),
        jnp.int32(vocabulary if top_k is None else min(int(top_k), vocabulary)),
        jnp.float32(1 if top_p is None else max(top_p, tiny)),
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
    # NaN counts as the highest, so that a row with one has it here.
    best = jnp.argmax(exact, axis=-1, keepdims=True).astype(jnp.int32)
    highest = jnp.take_along_axis(exact, best, axis=-1)
    tokens = best[:, 0] if sampling is None else _draw(exact - highest, sampling, key)
    return jnp.where(jnp.isnan(highest[:, 0]), -1, tokens)


def _draw(
    logits: Float[Array, "batch vocabulary"], sampling: Sampling, key: Any
) -> Int[Array, " batch"]:
    """Draw by logits of which the best is 0, so that no temperature makes two of them infinite."""
    scaled = logits / sampling.temperature
    fewer = (sampling.top_k < logits.shape[1]) | (sampling.top_p < 1)
    left = jax.lax.cond(fewer, cut, lambda scores, _: scores, scaled, sampling)
    rows = jnp.arange(logits.shape[0], dtype=jnp.uint32)
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
    return jax.vmap(jax.random.categorical)(keys, left).astype(jnp.int32)


def cut(
    scores: Float[Array, "batch vocabulary"], sampling: Sampling
) -> Float[Array, "batch vocabulary"]:
    """Leave the likeliest tokens, and minus infinity for the others."""
    places = _sortable(scores)
    ones = jnp.ones(scores.shape, jnp.int32)
    scores = jnp.where(_likeliest(places, ones, sampling.top_k), scores, -jnp.inf)
    shares = jax.nn.softmax(scores, axis=-1)
    # Sums of shares round: at 1 the last ones must not be lost.
    kept = _likeliest(places, shares, sampling.top_p) | (sampling.top_p >= 1)
    return jnp.where(kept, scores, -jnp.inf)


def _sortable(scores: Float[Array, "batch vocabulary"]) -> Int[Array, "batch vocabulary"]:
    """Integers in the order of the scores: of floats below zero all bits but the sign turn."""
    bits = jax.lax.bitcast_convert_type(jnp.where(scores == 0, 0, scores), jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.iinfo(jnp.int32).max, bits)


def _likeliest(
    places: Int[Array, "batch vocabulary"], weights: Any, limit: Any
) -> Bool[Array, "batch vocabulary"]:
    """Mark the fewest highest places whose weights together reach a limit; of equal ones the first.

    The lowest of them is found bit by bit, in 32 sums, for which nothing is sorted: on a CPU that
    takes a fifth to a tenth of a sort's time.
    """

    def narrow(turn: Any, lowest: Any) -> Any:
        higher = lowest + jax.lax.shift_left(jnp.int32(1), jnp.int32(31) - turn)
        reached = jnp.where(places >= higher, weights, 0).sum(axis=-1, keepdims=True)
        return jnp.where(reached >= limit, higher, lowest)

    start = jnp.full((places.shape[0], 1), jnp.iinfo(jnp.int32).min, jnp.int32)
    lowest = jax.lax.fori_loop(0, 32, narrow, start)
    above, equal = places > lowest, jnp.where(places == lowest, weights, 0)
    before = jnp.where(above, weights, 0).sum(axis=-1, keepdims=True)
    before = before + jnp.cumsum(equal, axis=-1) - equal
    return above | ((places == lowest) & (before < limit))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.floating | np.integer) and value == value
