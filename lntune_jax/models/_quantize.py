"""Kernels of a model's layers turned into few bits by qwix, one at a time.

Norms, biases, embeddings and heads stay as they are: they are small, or decide what comes out.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from lntune_jax.errors import ModelError

from ._quantized import BITS, STORED, QuantizedKernel, count_bytes

if TYPE_CHECKING:
    Path = tuple[str, ...]

KINDS = tuple(BITS)
# What the architectures call their lists of layers.
_LAYERS = frozenset({"layers", "layer", "h"})
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
            f"quantize={name!r} and scan_layers=True do not go together yet: leave one of them out"
        )
    try:
        import qwix  # noqa: F401
    except ImportError:
        raise ModelError(
            f"quantize={name!r} needs the package qwix: pip install 'lntune-jax[quant]'"
        ) from None
    return name


def is_quantized(path: Path) -> bool:
    """Whether a leaf of the float model is a kernel of a layer."""
    return path[-1] == "kernel" and not _LAYERS.isdisjoint(path)


def quantize_kernel(array: Any, kind: str) -> QuantizedKernel:
    """Quantise a kernel by the largest absolute value of each run of inputs of each output.

    Args:
        array: (..., inputs, outputs), float32.
        kind: one of `KINDS`.
    """
    return _quantize(array, kind)


def quantized_shapes(leaves: dict[Path, Any], kind: str | None) -> dict[Path, Any]:
    """The leaves of the quantised model, by path, from those of the float model."""
    if kind is None:
        return leaves
    found: dict[Path, Any] = {}
    for path, leaf in leaves.items():
        if not is_quantized(path):
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
