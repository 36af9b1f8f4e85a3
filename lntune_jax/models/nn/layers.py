"""The kinds of layer that hold weights, activations, dropout, and the mean over tokens.

The layers are Flax's own, so that tools which look for `nnx.LayerNorm` find them; the norms do
their arithmetic in float32, the embedding never reads a wrong row, and a kernel may be quantised.
Dropout takes explicit keys: no key means that nothing is dropped. A key is split at every level of
the model, and `None` splits into `None`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lntune_jax.errors import ModelError

from .quantized import QuantizedKernel, multiply

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WideWeights:
    """A kernel or a table of words of a bfloat16 model, its numbers in float32.

    A CPU multiplies in float32. It would convert weights of bfloat16 anew for each product, which
    takes ten times as long as the product of one token with them.

    Attributes:
        values: float32; each is a number of bfloat16.
    """

    values: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the weights."""
        return self.values.shape


def dense(
    inputs: int, outputs: int, dtype: Any, rngs: nnx.Rngs, *, bias: bool = True
) -> nnx.Linear:
    """A linear layer that keeps its weights and computes in `dtype`."""
    return Dense(inputs, outputs, use_bias=bias, dtype=dtype, param_dtype=dtype, rngs=rngs)


class Dense(nnx.Linear):
    """A linear layer whose kernel may be quantised."""

    def __call__(self, inputs: Any, out_sharding: Any = None) -> Any:
        """Multiply by the kernel and add the bias."""
        kernel: Any = self.kernel.get_value()
        if isinstance(kernel, WideWeights):
            inputs, numbers = _operands(inputs, kernel, self.dtype)
            product = jnp.matmul(inputs, numbers).astype(self.dtype)
        elif isinstance(kernel, QuantizedKernel):
            product = multiply(inputs.astype(self.dtype), kernel)
        else:
            return super().__call__(inputs, out_sharding)
        if self.bias is None:
            return product
        return product + jnp.asarray(self.bias[...]).astype(product.dtype)


class LayerNorm(nnx.LayerNorm):
    """Layer normalisation whose statistics, scale and bias are all computed in float32.

    The gradient of a scale is a sum over every token; with products rounded to bfloat16 it
    would be off by up to a percent.
    """

    def __init__(
        self, width: int, *, epsilon: float, dtype: Any, rngs: nnx.Rngs, bias: bool = True
    ):
        """Make a norm over a last axis of `width` entries."""
        kept: dict[str, Any] = {"dtype": dtype, "param_dtype": dtype, "rngs": rngs}
        super().__init__(width, epsilon=epsilon, use_bias=bias, **kept)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Array, "... width"]
    ) -> Float[Array, "... width"]:
        """Normalise the last axis, and return the type of number that came in."""
        assert self.scale is not None
        exact = x.astype(jnp.float32)
        centred = exact - exact.mean(axis=-1, keepdims=True)
        # In two passes: the difference of two means of squares would cancel.
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + self.epsilon)
        scaled = normal * _per_row(self.scale[...], x).astype(jnp.float32)
        if self.bias is not None:
            scaled = scaled + _per_row(self.bias[...], x).astype(jnp.float32)
        return scaled.astype(x.dtype)


class RMSNorm(nnx.RMSNorm):
    """Division by the root of the mean square, and a scale, all computed in float32."""

    def __init__(self, width: int, *, epsilon: float, offset: float, dtype: Any, rngs: nnx.Rngs):
        """Make a norm over a last axis of `width` entries, whose scale is stored less `offset`."""
        super().__init__(width, epsilon=epsilon, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.offset = offset

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Array, "... width"]
    ) -> Float[Array, "... width"]:
        """Normalise the last axis, and return the type of number that came in."""
        assert self.scale is not None
        exact = x.astype(jnp.float32)
        square = jnp.square(exact).mean(axis=-1, keepdims=True)
        scale = _per_row(self.scale[...], x).astype(jnp.float32) + self.offset
        return (exact * jax.lax.rsqrt(square + self.epsilon) * scale).astype(x.dtype)


class Embed(nnx.Embed):
    """A table of vectors in which an index outside it gives NaN.

    Flax's own wraps negative indices and ignores the index where there is one row only.
    """

    def __init__(self, rows: int, width: int, *, dtype: Any, rngs: nnx.Rngs):
        """Make a table of `rows` vectors of `width` entries."""
        super().__init__(rows, width, dtype=dtype, param_dtype=dtype, rngs=rngs)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: Int[Array, "*axes"]
    ) -> Float[Array, "... width"]:
        """Look up the vector of every index."""
        table = _numbers(self.embedding.get_value())
        found = table.at[inputs].get(
            mode="fill",
            fill_value=jnp.nan,
            wrap_negative_indices=False,
            out_sharding=_rows_like(inputs),
        )
        return found.astype(self.dtype)

    def attend(self, query: Any, out_sharding: Any = None) -> Any:
        """Multiply by every row of the table, for a head that is tied to it.

        With one token in each of several rows, as in decoding, the table is the left operand: in
        that place a CPU's library reads it as it lies, and need not pack it anew for each token.
        """
        weights = self.embedding.get_value()
        one_each = query.ndim == 3 and query.shape[1] == 1 and query.shape[0] > 1
        if out_sharding or not (one_each or isinstance(weights, WideWeights)):
            return super().attend(query, out_sharding)
        query, table = _operands(query, weights, self.dtype)
        if not one_each:
            return jnp.matmul(query, table.T).astype(self.dtype)
        scores = jnp.einsum("vw,rlw->vrl", table, query)
        return scores.transpose(1, 2, 0).astype(self.dtype)


def _numbers(weights: Any) -> Array:
    return weights.values if isinstance(weights, WideWeights) else jnp.asarray(weights)


def _operands(x: Any, weights: Any, dtype: Any) -> tuple[Array, Array]:
    """Give activations and weights in the type in which they are multiplied."""
    wide = jnp.float32 if isinstance(weights, WideWeights) else dtype
    return x.astype(dtype).astype(wide), _numbers(weights).astype(wide)


def _per_row(parameter: Any, x: Float[Array, "batch *axes width"]) -> Array:
    """A norm's parameter as it is, or, with a batch axis, one for each row of `x`."""
    parameter = jnp.asarray(parameter)
    if parameter.ndim == 1:
        return parameter
    if parameter.shape[0] != x.shape[0]:
        raise ModelError(
            f"params has norm parameters for {parameter.shape[0]} rows, and the batch has "
            f"{x.shape[0]}: pass take_rows one id for each row of the batch"
        )
    return parameter.reshape(parameter.shape[0], *[1] * (x.ndim - 2), parameter.shape[1])


def _rows_like(inputs: Int[Array, "*axes"]) -> Any:
    """On a mesh with explicit axes a look-up must say how its result is laid out: as the ids."""
    sharding = jax.typeof(inputs).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec, None))


def split_key(key: Any, count: int) -> list[Any]:
    """Give `count` keys that differ, or as many `None` for no key."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def dropout(
    x: Float[Array, "*axes"], rate: float, key: Any, drawn: tuple[int, ...] | None = None
) -> Float[Array, "*axes"]:
    """Zero each entry with probability `rate` and scale the others up to keep the mean.

    Args:
        x: what is dropped from.
        rate: the probability.
        key: a JAX random key, or `None` for no dropout.
        drawn: a larger shape, whose first entries along each axis `x` is: the same are dropped
            as if all were there.
    """
    if key is None or rate == 0:
        return x
    if rate == 1:
        return jnp.zeros_like(x)
    keep = jax.random.bernoulli(key, 1 - rate, drawn or x.shape)
    if drawn is not None:
        keep = keep[tuple(slice(size) for size in x.shape)]
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


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


def mean_pool(
    last_hidden_state: Float[Array, "batch length hidden"], attention_mask: Any = None
) -> Float[Array, "batch hidden"]:
    """Average the hidden states over the tokens that count, as sentence-transformers does.

    Args:
        last_hidden_state: (batch, length, hidden), floating point.
        attention_mask: (batch, length), nonzero where a token counts; `None` for everywhere.

    Returns:
        (batch, hidden) in the dtype of the hidden states, added up in float32. A row without
        any token gives zeros.

    Example:
        >>> import jax.numpy as jnp
        >>> from lntune_jax.models import mean_pool
        >>> mean_pool(jnp.array([[[1.0], [3.0], [100.0]]]), jnp.array([[1, 1, 0]]))
        Array([[2.]], dtype=float32)
    """
    exact = last_hidden_state.astype(jnp.float32)
    if attention_mask is None:
        return exact.mean(axis=-2).astype(last_hidden_state.dtype)
    weights = jnp.asarray(attention_mask).astype(jnp.bool_).astype(jnp.float32)[..., None]
    # A padded position may hold anything, NaN too: select, rather than multiply by zero.
    total = jnp.where(weights > 0, exact, jnp.zeros_like(exact)).sum(axis=-2)
    mean = total / jnp.maximum(weights.sum(axis=-2), 1e-9)
    return mean.astype(last_hidden_state.dtype)
