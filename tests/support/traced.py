"""Norms as people write them, each between two dense layers, in trees whose names say nothing."""

import jax
import jax.numpy as jnp
from jax import lax

WIDTH = 8


def shape(*axes, dtype="float32"):
    return jax.ShapeDtypeStruct(axes, jnp.dtype(dtype))


def make_params(*norm_leaves, width=WIDTH, dtype="float32"):
    """The leaves of the norm, beside kernels and biases of the same width."""
    vector, matrix = shape(width, dtype=dtype), shape(width, width, dtype=dtype)
    others = {"k": matrix, "l": vector, "m": matrix, "n": vector}
    return others | dict.fromkeys(norm_leaves, vector)


def between(norm):
    """`norm(params, x)` after one dense layer and before another."""

    def apply(params, x):
        y = norm(params, x @ params["k"] + params["l"])
        return jnp.tanh(y @ params["m"] + params["n"])

    return apply


def mean(x):
    return jnp.mean(x, -1, keepdims=True)


def deviation(x):
    return jnp.sqrt(mean(jnp.square(x - mean(x))) + 1e-6)


def two_passes(p, x):
    return (x - mean(x)) * lax.rsqrt(mean(jnp.square(x - mean(x))) + 1e-6) * p["a"] + p["b"]


def fast_variance(p, x):
    scale = lax.rsqrt(jnp.maximum(0.0, mean(x * x) - mean(x) ** 2) + 1e-6) * p["a"]
    return (x - mean(x)) * scale + p["b"]


def divided(p, x):
    return p["b"] + p["a"] * ((x - mean(x)) / deviation(x))


def by_variance(p, x):
    return (
        p["a"] * (x - x.mean(-1, keepdims=True)) / (x.var(-1, keepdims=True) + 1e-6) ** 0.5 + p["b"]
    )


def by_std(p, x):
    return (x - mean(x)) / (x.std(-1, keepdims=True) + 1e-6) * p["a"] + p["b"]


def standardized(p, x):
    return jax.nn.standardize(x) * p["a"] + p["b"]


def one_shift(p, x):
    """As Keras does: the mean comes off together with the bias."""
    average, squares = mean(x), mean(jnp.square(x))
    inverse = lax.rsqrt(squares - jnp.square(average) + 1e-6) * p["a"]
    return x * inverse + (p["b"] - average * inverse)


def one_shift_negative(p, x):
    average = mean(x)
    inverse = lax.rsqrt(mean(jnp.square(x - average)) + 1e-6) * p["a"]
    return x * inverse + (-average * inverse + p["b"])


def scale_first(p, x):
    """As Haiku does."""
    inverse = p["a"] * lax.rsqrt(jnp.var(x, -1, keepdims=True) + 1e-6)
    return inverse * (x - mean(x)) + p["b"]


def in_float32(p, x):
    exact = x.astype(jnp.float32)
    centred = exact - mean(exact)
    normal = centred * lax.rsqrt(mean(centred * centred) + 1e-6)
    return normal.astype(x.dtype) * p["a"] + p["b"]


def along_the_first_axis(p, x):
    y = x.T
    centred = y - y.mean(0)
    y = centred / jnp.sqrt(jnp.mean(centred**2, axis=0) + 1e-6)
    return (y * p["a"][:, None] + p["b"][:, None]).T


def by_einsum(p, x):
    """As MaxText does: a product without a sum."""
    y = (x - mean(x)) * lax.rsqrt(mean(lax.square(x - mean(x))) + 1e-6)
    return jnp.einsum("bk,k->bk", y, p["a"]) + p["b"]


LAYER_NORMS = (
    two_passes, fast_variance, divided, by_variance, by_std, standardized, one_shift,
    one_shift_negative, scale_first, in_float32, along_the_first_axis, by_einsum,
)  # fmt: skip


def plain(p, x):
    return x * lax.rsqrt(mean(x**2) + 1e-6) * p["a"]


def t5(p, x):
    variance = jnp.power(x.astype("float32"), 2).mean(axis=-1, keepdims=True)
    exact = x.astype("float32") / jnp.sqrt(variance + 1e-6)
    return p["a"] * exact.astype(p["a"].dtype)


def gemma(p, x):
    exact = x.astype(jnp.float32)
    normal = exact * lax.rsqrt(mean(jnp.square(exact)) + 1e-6)
    return (normal * (1.0 + p["a"].astype(jnp.float32))).astype(x.dtype)


def reciprocal(p, x):
    return jnp.asarray(x * jnp.reciprocal(jnp.sqrt(mean(jnp.square(x)) + 1e-6))) * (p["a"] + 1)


def haiku(p, x):
    return x * p["a"] * lax.rsqrt(jnp.broadcast_to(mean(jnp.square(x)), x.shape) + 1e-6)


def power(p, x):
    return x * (mean(x * x) + 1e-6) ** -0.5 * p["a"]


def one_over(p, x):
    return p["a"] * (x * (1.0 / jnp.sqrt(jnp.mean(x**2, -1) + 1e-6))[..., None])


def by_dot(p, x):
    return x * lax.rsqrt(jnp.einsum("bd,bd->b", x, x)[:, None] / WIDTH + 1e-6) * p["a"]


def by_length(p, x):
    """As x-transformers does: an l2 normalisation, times the root of the width."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12) * WIDTH**0.5 * p["a"]


def zero_mean(p, x):
    """As Flax does: a mean that is zero."""
    average = jnp.zeros_like(mean(x))
    return (x - average) * (lax.rsqrt(mean(lax.square(x)) + 1e-6) * p["a"].reshape(1, WIDTH))


def masked(p, x):
    mask = jnp.arange(x.shape[0])[:, None] < 1
    squares = jnp.mean(x**2, -1, keepdims=True, where=mask)
    return x * lax.rsqrt(squares + 1e-6) * p["a"]


RMS_NORMS = (
    plain, t5, gemma, reciprocal, haiku, power, one_over, by_dot, by_length, zero_mean, masked,
)  # fmt: skip
