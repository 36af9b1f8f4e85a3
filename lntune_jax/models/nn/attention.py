"""Attention: to every position that the mask leaves, or to the ones before.

Written out in two products and a softmax, which is faster on a CPU than JAX's own function, and
knows dropout on the probabilities. On a TPU and on NVIDIA's GPUs a kernel computes it without
holding the scores of all pairs of positions: splash (`splash.py`) and cuDNN's.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive

from ..inputs import sees, sees_segment
from .layers import dropout
from .primitives import FLASH_ATTENTION
from .sharding import are_rows_divided
from .splash import LANES, attend_splash

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array, Bool, Float, Int


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


class Masking(NamedTuple):
    """Which positions a position attends to in a layer, and the program that computes it.

    Attributes:
        kernel: from `pick_kernel`.
        mask: true where a position attends to a slot, the order of positions and the window
            included; `None` where these two, and the segments, decide.
        segments: for a kernel that takes no mask, a number for each position, which attends to
            others of the same number only; `None` for one.
        windows: how many positions are attended to, its own included; `None` for all before. Of
            scanned layers all windows that there are.
        which: of scanned layers with several windows, the index of this one's.
    """

    kernel: str = "xla"
    mask: Bool[Array, "_ 1 length slots"] | None = None
    segments: Int[Array, "batch length"] | None = None
    windows: tuple[int | None, ...] = (None,)
    which: Int[Array, ""] | None = None


def pick_kernel(
    asked: str, settings: Any, x: Float[Array, "batch length width"], *, dropping: bool
) -> str:
    """Give the program for attention without a cache: "xla", "splash", "cudnn" or `BY_SHAPES`.

    Args:
        asked: one of these, or "auto" for the one of the platform that is traced for: that of
            the mesh which `x` lies on, and off a mesh that of JAX's default device.
        settings: of the decoder.
        x: its hidden states.
        dropping: whether probabilities are dropped.
    """
    if asked != "auto":
        return asked
    # Of rows that a mesh does not divide, as of one row under `vmap`, a kernel would take all on
    # each device.
    repeated = not are_rows_divided(jax.typeof(x).sharding.mesh, x.shape[0])
    if dropping or repeated or x.shape[1] < LANES:
        return "xla"
    kernel = find_kernel(_find_platform(x), settings, x.dtype)
    return "xla" if kernel == "cudnn" and not _takes_cudnn(settings, x) else kernel


def find_kernel(platform: str, settings: Any, dtype: Any) -> str:
    """Give the program for attention that a platform has.

    Args:
        platform: as JAX calls it.
        settings: of the decoder.
        dtype: of its states.
    """
    if platform == "tpu":
        return "splash"
    size = settings.head_dim
    fits = dtype == jnp.bfloat16 and size % 8 == 0 and size <= LANES
    is_gpu = platform in ("gpu", "cuda")
    return "cudnn" if is_gpu and fits and settings.attention_cap is None else "xla"


def _find_platform(x: Any) -> str:
    device = getattr(jax.typeof(x).sharding.mesh, "abstract_device", None)
    if device is None:
        device = jax.config.jax_default_device
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


def _takes_cudnn(settings: Any, x: Any) -> bool:
    """Whether JAX's function for cuDNN takes heads of these shapes, with a mask, to train on."""
    rows, length, _ = x.shape
    counts = (settings.num_attention_heads, *(settings.num_key_value_heads,) * 2)
    heads = [jax.ShapeDtypeStruct((rows, length, n, settings.head_dim), x.dtype) for n in counts]
    mask = jax.ShapeDtypeStruct((rows, 1, length, length), "bool")

    def attend(query: Any, key: Any, value: Any, mask: Any) -> Any:
        return _attend_cudnn(query, key, value, mask=mask, window=None, scale=1.0)

    try:
        jax.eval_shape(lambda *given: jax.vjp(attend, *given[:3], given[3])[0], *heads, mask)
    except (NotImplementedError, RuntimeError, ValueError):
        return False  # no cuDNN, or an old one; or an odd length
    return True


def attend_causally(
    query: Float[Array, "batch length heads size"],
    key: Float[Array, "batch slots shared size"],
    value: Float[Array, "batch slots shared size"],
    masking: Masking,
    *,
    scale: Any,
    cap: float | None,
    rate: float,
    dropout_rng: Any,
) -> Float[Array, "batch length heads size"]:
    """Mix the values of a position and the ones before it.

    Args:
        query: what each position looks for.
        key: what each position offers, each of its heads to a group of the query's.
        value: what each position passes on.
        masking: which positions each attends to, and the program that computes it.
        scale: what the products are multiplied by.
        cap: the bound that the scores approach through tanh, or `None`.
        rate: the share of probabilities dropped when there is a key for it.
        dropout_rng: a JAX random key, or `None` for no dropout.
    """
    if masking.kernel == BY_SHAPES:
        return _attend_by_shapes(query, key, value)
    marks = () if masking.segments is None else (masking.segments,)

    def attend(window: int | None) -> Callable[..., Any]:
        def attend_plainly(query: Any, key: Any, value: Any, *marks: Any) -> Any:
            mask = masking.mask
            if mask is None:
                columns, slots = (jnp.arange(x.shape[1])[None] for x in (query, key))
                mask = sees(columns, slots, window)
                mask = mask & sees_segment(*marks) if marks else mask
            given = (mask, rate, dropout_rng)
            return attend_explicitly(query, key, value, *given, scale=scale, cap=cap)

        if masking.kernel == "splash":
            own = partial(attend_splash, window=window, scale=scale, cap=cap)
            platform = "tpu"
        elif masking.kernel == "cudnn" and (dropout_rng is None or rate == 0):
            own = partial(_attend_cudnn, mask=masking.mask, window=window, scale=scale)
            platform = "cuda"
        else:
            return attend_plainly
        # Lowered for another platform after all, it is the same in plain operations. These are
        # computed again in the backward pass: what they stored would be stored on each platform.
        plainly: Any = jax.checkpoint(attend_plainly)
        branches: Any = {platform: own, "default": plainly}
        return partial(jax.lax.platform_dependent, **branches)

    each = [attend(window) for window in masking.windows]
    if masking.which is None:
        return each[0](query, key, value, *marks)
    return jax.lax.switch(masking.which, each, query, key, value, *marks)


def _attend_cudnn(
    query: Any, key: Any, value: Any, *, mask: Any, window: int | None, scale: Any
) -> Any:
    near = None if mask is not None or window is None else (window - 1, 0)
    if isinstance(scale, jax.Array):  # of a loop over layers, which the kernel does not take
        query, scale = (query.astype(jnp.float32) * scale).astype(query.dtype), 1.0
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
            implementation="cudnn",
        )


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
