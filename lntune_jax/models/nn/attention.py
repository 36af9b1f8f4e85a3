"""Attention: to every position that the mask leaves, or to the ones before.

Written out in two products and a softmax, which is faster on a CPU than JAX's own function, and
knows dropout on the probabilities and a soft cap on the scores; "cudnn" goes through JAX's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive

from ..inputs import sees
from .layers import dropout
from .primitives import FLASH_ATTENTION

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


def attend(
    query: Float[Array, "batch places heads size"],
    key: Float[Array, "batch length heads size"],
    value: Float[Array, "batch length heads size"],
    mask: Bool[Array, "batch length"] | None,
    rate: float,
    dropout_rng: Any,
) -> Float[Array, "batch places heads size"]:
    """Mix the values, by the softmax of the scaled products of queries and keys.

    Args:
        query: what each position looks for, or the first ones only.
        key: what each position offers.
        value: what each position passes on.
        mask: true where a position may be attended to; `None` for everywhere.
        rate: the share of probabilities dropped when there is a key for it.
        dropout_rng: a JAX random key, or `None` for no dropout.
    """
    spread = None if mask is None else mask[:, None, None, :]
    batch, length, heads, _ = key.shape
    drawn = (batch, heads, length, length)
    return attend_explicitly(query, key, value, spread, rate, dropout_rng, drawn=drawn)


def attend_causally(
    query: Float[Array, "batch length heads size"],
    key: Float[Array, "batch slots shared size"],
    value: Float[Array, "batch slots shared size"],
    mask: Bool[Array, "_ 1 length slots"] | None,
    *,
    window: int | None,
    scale: Any,
    cap: float | None,
    implementation: Any,
    rate: float,
    dropout_rng: Any,
) -> Float[Array, "batch length heads size"]:
    """Mix the values of a position and the ones before it.

    Args:
        query: what each position looks for.
        key: what each position offers, each of its heads to a group of the query's.
        value: what each position passes on.
        mask: true where a query sees a key, the order of positions and the window included;
            `None` where only these two decide.
        window: how many positions a query sees, its own included; `None` for all before.
        scale: what the products are multiplied by.
        cap: the bound that the scores approach through tanh, or `None`.
        implementation: "xla" or "cudnn"; `BY_SHAPES` where a program is only traced.
        rate: the share of probabilities dropped when there is a key for it.
        dropout_rng: a JAX random key, or `None` for no dropout.
    """
    if implementation == BY_SHAPES:
        return _attend_by_shapes(query, key, value)
    if implementation == "cudnn" and (dropout_rng is None or rate == 0):
        near = None if mask is not None or window is None else (window - 1, 0)
        # JAX's function promotes inside; the caller's strict mode is not meant for it.
        with jax.numpy_dtype_promotion("standard"):
            return jax.nn.dot_product_attention(
                query,
                key,
                value,
                mask=mask,
                scale=scale,
                is_causal=mask is None,
                local_window_size=near,
                implementation=implementation,
            )
    if mask is None:
        mask = sees(jnp.arange(query.shape[1])[None], jnp.arange(key.shape[1])[None], window)
    return attend_explicitly(query, key, value, mask, rate, dropout_rng, scale=scale, cap=cap)


# What a program with cuDNN's attention holds can be traced without a device: JAX's own function
# looks for cuDNN as soon as it is called. Nothing can run these two.
BY_SHAPES = "cudnn, by its shapes"
_FORWARD = Primitive(f"{FLASH_ATTENTION}_by_shapes")
_FORWARD.multiple_results = True
_BACKWARD = Primitive("dot_product_attention_bwd_by_shapes")
_BACKWARD.multiple_results = True


@_FORWARD.def_abstract_eval
def _forward_shapes(query: Any, key: Any, value: Any) -> list[Any]:
    """The result, and for each row of scores one number that the backward pass needs."""
    del key, value
    batch, length, heads, _ = query.shape
    return [query.update(), query.update(shape=(batch, heads, length), dtype=jnp.dtype("float32"))]


@_BACKWARD.def_abstract_eval
def _backward_shapes(query: Any, key: Any, value: Any, *_: Any) -> list[Any]:
    return [query.update(), key.update(), value.update()]


@jax.custom_vjp
def _attend_by_shapes(query: Any, key: Any, value: Any) -> Any:
    return _FORWARD.bind(query, key, value)[0]


def _attend_forward(query: Any, key: Any, value: Any) -> tuple[Any, tuple[Any, ...]]:
    mixed, sums = _FORWARD.bind(query, key, value)
    return mixed, (query, key, value, mixed, sums)


def _attend_backward(kept: tuple[Any, ...], gradient: Any) -> tuple[Any, ...]:
    return tuple(_BACKWARD.bind(*kept, gradient))


_attend_by_shapes.defvjp(_attend_forward, _attend_backward)


def attend_explicitly(
    query: Float[Array, "batch length heads size"],
    key: Float[Array, "batch slots shared size"],
    value: Float[Array, "batch slots shared size"],
    mask: Bool[Array, "_ 1 _ slots"] | None,
    rate: float,
    dropout_rng: Any,
    *,
    scale: Any = None,
    cap: float | None = None,
    drawn: tuple[int, ...] | None = None,
) -> Float[Array, "batch length heads size"]:
    """Mix the values in two products, with the softmax in float32 and dropout on its result.

    The query heads that share a key head come one after the other in its rows, so that both
    products are plain batches of matrices. With an axis for the group, as in JAX's own function,
    XLA on a CPU takes up to twice as long.
    """
    batch, length, heads, size = query.shape
    shared = key.shape[2]
    groups = heads // shared
    grouped = query.reshape(batch, length, shared, groups, size).transpose(0, 2, 3, 1, 4)
    grouped = grouped.reshape(batch, shared, groups * length, size)
    key, value = (x.transpose(0, 2, 1, 3) for x in (key, value))
    # Said in full: in the backward pass a float32 gradient would else meet bfloat16 keys.
    exact = jax.lax.DotAlgorithmPreset.BF16_BF16_F32 if query.dtype == jnp.bfloat16 else None
    scores = jnp.einsum(
        "bhqd,bhkd->bhqk", grouped, key, precision=exact, preferred_element_type=jnp.float32
    )
    scores = scores / size**0.5 if scale is None else scores * scale
    if cap is not None:
        scores = jnp.tanh(scores / cap) * cap
    if mask is not None:
        # The lowest finite number: a row with nothing to attend to stays free of NaN.
        repeats = groups if mask.shape[2] > 1 else 1
        scores = jnp.where(jnp.tile(mask, (1, 1, repeats, 1)), scores, jnp.finfo(scores.dtype).min)
    probabilities = dropout(jax.nn.softmax(scores, axis=-1), rate, dropout_rng, drawn)
    mixed = jnp.einsum("bhqk,bhkd->bhqd", probabilities.astype(value.dtype), value)
    mixed = mixed.reshape(batch, shared, groups, length, size).transpose(0, 3, 1, 2, 4)
    return mixed.reshape(batch, length, heads, size)
