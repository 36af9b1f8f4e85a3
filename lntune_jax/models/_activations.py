"""Activation functions under the names that `hidden_act` uses for them.

Two families go by "gelu": the exact one through the error function, and approximations through
tanh or the sigmoid; every name here means the function that PyTorch's transformers runs for it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array, Float


def _quick_gelu(x: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    return x * jax.nn.sigmoid(1.702 * x)


def _exact_gelu(x: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    """As PyTorch computes it; through erfc, as in `jax.nn.gelu`, it takes thrice as long.

    In float32 whatever the dtype: one plus erf has no bits left in bfloat16 where x is negative.
    """
    wide = x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


def _clipped_gelu(x: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    return jnp.clip(_exact_gelu(x), -10, 10)


_tanh_gelu = partial(jax.nn.gelu, approximate=True)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": _exact_gelu,
    "gelu_10": _clipped_gelu,
    "gelu_accurate": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_new": _tanh_gelu,
    "gelu_python": _exact_gelu,
    "gelu_python_tanh": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "hardswish": jax.nn.hard_swish,
    "leaky_relu": partial(jax.nn.leaky_relu, negative_slope=0.01),
    "linear": lambda x: x,
    "mish": jax.nn.mish,
    "quick_gelu": _quick_gelu,
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}
