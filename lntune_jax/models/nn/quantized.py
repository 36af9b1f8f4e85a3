"""Kernels of few bits: how they are kept and multiplied, and how qwix makes them, one at a time.

Norms, biases, embeddings and heads stay as they are: they are small, or decide what comes out.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from lntune_jax.errors import ModelError
from lntune_jax.messages import Argument, need_package

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    Path = tuple[str, ...]


# The dtype in which each kind keeps its values; NF4's are places in a table.
STORED = {"int8": "int8", "int4": "int4", "nf4": "uint4", "fp8": "float8_e4m3fn"}

BITS = {"int8": 8, "int4": 4, "nf4": 4, "fp8": 8}

# Appendix E of QLoRA (arXiv 2305.14314).
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QuantizedKernel:
    """A kernel in few bits.

    Attributes:
        qvalue: the values, of one of the dtypes in `STORED`.
        scale: float32; along the inputs one for each run of as many of them as it takes.
    """

    qvalue: Any
    scale: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The kernel's own."""
        return self.qvalue.shape


def count_bytes(leaf: Any) -> int:
    """The bytes that a leaf takes on a device, where two values of four bits share one."""
    dtype = jnp.dtype(leaf.dtype)
    is_integer = jnp.issubdtype(dtype, jnp.integer)
    bits = jnp.iinfo(dtype).bits if is_integer else 8 * dtype.itemsize
    return -(-math.prod(leaf.shape) * bits // 8)


def read_kernel(found: Any) -> Any:
    """Give the kernel that lies at a place of `params`: an array as it is, or the quantised one."""
    if isinstance(found, Mapping) and isinstance(found.get("array"), Mapping):
        parts = found["array"]
        if {"qvalue", "scale"} <= parts.keys():
            return QuantizedKernel(parts["qvalue"], parts["scale"])
    return found


@jax.custom_vjp
def multiply(x: Float[Array, "... inputs"], kernel: QuantizedKernel) -> Float[Array, "... outputs"]:
    """Give the product of activations and kernel, as if the kernel were in their dtype.

    The backward pass makes the kernel anew from its few bits, rather than to find a copy stored;
    the kernel itself gets no gradient.
    """
    return _product(x, kernel)


def _forward(x: Any, kernel: QuantizedKernel) -> tuple[Any, Any]:
    # Nothing of `x` but its type, which says how the gradient is laid out over a mesh. And not by
    # `multiply`: a policy of `jax.checkpoint` that keeps products must see one here.
    return _product(x, kernel), (kernel, _Type(jax.typeof(x)))


def _backward(residual: Any, gradient: Any) -> tuple[Any, None]:
    kernel, kind = residual
    numbers = dequantize(_after(gradient, kernel), gradient.dtype)
    (result,) = jax.linear_transpose(lambda x: _contract(x, numbers), kind.type)(gradient)
    return result, None


multiply.defvjp(_forward, _backward)


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Type:
    """The type of an array, where a tree of arrays is expected."""

    type: Any


def _product(x: Any, kernel: QuantizedKernel) -> Any:
    return _contract(x, dequantize(_after(x, kernel), x.dtype))


def _contract(x: Any, numbers: Any) -> Any:
    return jax.lax.dot_general(x, numbers, (((x.ndim - 1,), (0,)), ((), ())))


def _after(x: Any, kernel: QuantizedKernel) -> QuantizedKernel:
    """The same kernel, for which XLA must wait until there is `x`.

    Otherwise it may make the numbers of all kernels first, or of one kernel once for both passes,
    and hold them all. The CPU's compiler takes barriers out; there a choice between two equal
    scales (they are positive) does what a barrier does elsewhere.
    """
    qvalue, scale, x = jax.lax.optimization_barrier((kernel.qvalue, kernel.scale, x))
    # On a mesh with explicit axes no single element can be taken.
    if x.size and AxisType.Explicit not in jax.typeof(x).sharding.mesh.axis_types:
        scale = jax.lax.platform_dependent(scale, x, cpu=_wait, default=lambda scale, _: scale)
    return QuantizedKernel(qvalue, scale)


def _wait(scale: Any, x: Any) -> Any:
    return _choose(scale, x[(0,) * x.ndim])


@jax.custom_batching.custom_vmap
def _choose(scale: Any, witness: Any) -> Any:
    return jnp.where(witness > 0, scale, jnp.abs(scale))


@_choose.def_vmap
def _choose_in_batch(size: int, batched: Any, scale: Any, witness: Any) -> tuple[Any, bool]:
    """One choice for the whole batch: the kernel is not to be made once for each of its rows."""
    del size
    first = witness[0] if batched[1] else witness
    return _choose(scale, first), batched[0]


def dequantize(kernel: QuantizedKernel, dtype: Any) -> Float[Array, "inputs outputs"]:
    """Give the kernel's numbers, computed in float32 and rounded once to `dtype`."""
    values, scale = _numbers(kernel.qvalue), kernel.scale
    (*outer, inputs, outputs), runs = values.shape, scale.shape[-2]
    if runs > 1:
        values = values.reshape(*outer, runs, inputs // runs, outputs)
        values = (values * scale[..., None, :]).reshape(*outer, inputs, outputs)
    else:
        values = values * scale
    return values.astype(dtype)


def _numbers(qvalue: Any) -> Any:
    if qvalue.dtype != jnp.uint4:
        return qvalue.astype(jnp.float32)
    # By choices between two, which are elementwise: a look-up is not, so that XLA would not
    # compute it inside its reader, nor leave it in parts on a mesh.
    places = qvalue.astype(jnp.int32)
    numbers: list[Any] = list(NF4)
    for bit in range(4):
        is_set = (places >> bit) & 1 == 1
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        numbers = [jnp.where(is_set, high, low) for low, high in pairs]
    return numbers[0].astype(jnp.float32)


KINDS = tuple(BITS)

# How many inputs of a kernel share a scale in the kinds of four bits: the first that divides
# them, QLoRA's, or else all.
_RUNS = (64, 32, 16)


def check_kind(quantize: Any, *, scan_layers: bool = False) -> str | None:
    """Check what a user asked for.

    Raises:
        ModelError: it is none of `KINDS`, or would quantise activations; the layers are scanned;
            or qwix is missing.
    """
    if quantize is None:
        return None
    name = quantize if isinstance(quantize, str) else None
    if name is None and getattr(quantize, "act_qtype", None) is None:
        raise ModelError(f"quantize is {quantize!r}; expected a name: {_listed()}")
    if name is None or _has_activations(name):
        raise ModelError(
            f"quantize is {quantize!r}, which quantises activations too: what is rounded has no "
            "gradient, so that the norms before a product would get a gradient of zero, or that of "
            "the largest activations alone, and training would fail without a word. Pass a kind "
            f"that is for weights only: {_listed()}"
        )
    if name not in KINDS:
        raise ModelError(f"quantize is {name!r}; supported: None, {_listed()}")
    if scan_layers:
        raise ModelError(
            Argument("quantize", name),
            " and ",
            Argument("scan_layers", True),
            " do not go together yet: leave one of them out",
        )
    need_package("qwix", "quant", f"quantize={name!r}", ModelError)
    return name


def is_quantized(path: Path, layers: str) -> bool:
    """Whether a leaf of the float model is a kernel in the list of layers, which has this name."""
    return path[-1] == "kernel" and layers in path


def quantize_kernel(array: Any, kind: str) -> QuantizedKernel:
    """Quantise a kernel by the largest absolute value of each run of inputs of each output.

    Args:
        array: (..., inputs, outputs), float32.
        kind: one of `KINDS`.
    """
    return _quantize(array, kind)


def quantized_shapes(leaves: dict[Path, Any], kind: str | None, layers: str) -> dict[Path, Any]:
    """The leaves of the quantised model, by path, from those of the float model.

    `layers` is what the architecture calls its list of layers.
    """
    if kind is None:
        return leaves
    found: dict[Path, Any] = {}
    for path, leaf in leaves.items():
        if not is_quantized(path, layers):
            found[path] = leaf
            continue
        exact = jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
        parts = jax.eval_shape(functools.partial(_quantize, kind=kind), exact)
        found |= place_parts(path, parts)
    return found


def count_both(params: Any, dtype: str) -> tuple[int, int]:
    """The bytes of a model's params, and those that they would have with kernels in `dtype`."""
    kept = whole = 0
    for keys, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        names = tuple(key.key for key in keys)
        kept += count_bytes(leaf)
        if names[-2:] == ("array", "qvalue"):
            whole += leaf.size * jnp.dtype(dtype).itemsize
        elif names[-2:] != ("array", "scale"):
            whole += count_bytes(leaf)
    return kept, whole


def place_parts(path: Path, kernel: Any) -> dict[Path, Any]:
    """The leaves that a quantised kernel has in the place of one."""
    return {
        (*path, "array", "qvalue"): kernel.qvalue,
        (*path, "array", "scale"): kernel.scale,
    }


def _listed() -> str:
    return ", ".join(map(repr, KINDS))


def _has_activations(name: str) -> bool:
    """Whether a name is one such as w8a8; in w4a16 the activations are left as they are."""
    bits = re.search(r"a(\d+)", name.lower())
    return bits is not None and int(bits[1]) < 16


@functools.partial(jax.jit, static_argnames="kind")
def _quantize(array: Any, kind: str) -> QuantizedKernel:
    import qwix

    inputs, last = array.shape[-2], array.ndim - 1
    runs = _RUNS if BITS[kind] == 4 else ()
    size = next((size for size in runs if inputs % size == 0), inputs)
    with jax.numpy_dtype_promotion("standard"):
        found = qwix.quantize(
            array,
            "nf4" if kind == "nf4" else STORED[kind],
            channelwise_axes=(*range(last - 1), last),
            tiled_axes={last - 1: size} if size < inputs else {},
        )
    return QuantizedKernel(found.qvalue, found.scale)
