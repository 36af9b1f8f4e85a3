"""The kinds of layer that hold weights: dense, embedding, layer norm, RMS norm.

They are Flax's own, so that tools which look for `nnx.LayerNorm` find them; the norms do their
arithmetic in float32, the embedding never reads a wrong row, and a kernel may be quantised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lntune_jax.errors import ModelError

from ._quantized import QuantizedKernel, multiply

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


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
        if not isinstance(kernel, QuantizedKernel):
            return super().__call__(inputs, out_sharding)
        product = multiply(inputs.astype(self.dtype), kernel)
        if self.bias is None:
            return product
        return product + jnp.asarray(self.bias[...]).astype(product.dtype)


class LayerNorm(nnx.LayerNorm):
    """Layer normalisation whose statistics, scale and bias are all computed in float32.

    The gradient of a scale is a sum over every token; with products rounded to bfloat16 it
    would be off by up to a percent.
    """

    def __init__(self, width: int, *, epsilon: float, dtype: Any, rngs: nnx.Rngs):
        """Make a norm over a last axis of `width` entries."""
        super().__init__(width, epsilon=epsilon, dtype=dtype, param_dtype=dtype, rngs=rngs)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Array, "... width"]
    ) -> Float[Array, "... width"]:
        """Normalise the last axis, and return the type of number that came in."""
        assert self.scale is not None
        assert self.bias is not None
        exact = x.astype(jnp.float32)
        centred = exact - exact.mean(axis=-1, keepdims=True)
        # In two passes: the difference of two means of squares would cancel.
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + self.epsilon)
        scale = _per_row(self.scale[...], x).astype(jnp.float32)
        bias = _per_row(self.bias[...], x).astype(jnp.float32)
        return (normal * scale + bias).astype(x.dtype)


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
        table = jnp.asarray(self.embedding[...])
        found = table.at[inputs].get(
            mode="fill",
            fill_value=jnp.nan,
            wrap_negative_indices=False,
            out_sharding=_rows_like(inputs),
        )
        return found.astype(self.dtype)


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
