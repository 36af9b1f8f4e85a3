"""A saved leaf and its place in a tree: compared, cast, checked to be finite, and put there.

Adapters, banks, PEFT files and checkpoints ask the same questions of a leaf; each is answered here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..errors import AdapterError, LNTuningError
from ..paths import get_shape


def compare_leaf(path: str, leaf: Any, expected: Any, where: str = "") -> list[str]:
    """What keeps a leaf from being like another one: nothing, or one sentence for a message.

    The shapes must be equal, and the dtypes of one kind: floating, or complex.

    Args:
        path: the leaf's.
        leaf: what was found there, of any type.
        expected: an array or `jax.ShapeDtypeStruct` of the shape and kind that it must have.
        where: in which argument it was found, for the message.

    Example:
        >>> compare_leaf("ln.scale", np.ones(3), np.ones(2), "params")
        ["'ln.scale' has shape (3,) in params, expected (2,)"]
        >>> compare_leaf("ln.scale", np.ones(2, np.float16), np.ones(2, np.float32))
        []
    """
    inside = f" in {where}" if where else ""
    if isinstance(getattr(leaf, "whole", leaf), Tracer):
        return [f"{path!r} is being traced{inside}: call this outside jax.jit"]
    shape = get_shape(leaf)
    if shape is None:
        return [f"{path!r} is a {type(leaf).__name__}{inside}, not an array"]
    wrong = compare_shapes(path, shape, expected.shape, where)
    if wrong:
        return wrong
    kind, noun = jnp.inexact, "floating"
    if jnp.issubdtype(expected.dtype, jnp.inexact):
        is_real = jnp.issubdtype(expected.dtype, jnp.floating)
        kind, noun = (jnp.floating, "floating") if is_real else (jnp.complexfloating, "complex")
    if not jnp.issubdtype(leaf.dtype, kind):
        return [f"{path!r} has dtype {leaf.dtype}{inside}, expected a {noun} one"]
    return []


def compare_shapes(path: str, shape: Any, expected: Any, where: str = "") -> list[str]:
    """The same for shapes alone.

    Example:
        >>> compare_shapes("ln.scale", (3,), [3])
        []
    """
    if tuple(shape) == tuple(expected):
        return []
    inside = f" in {where}" if where else ""
    return [f"{path!r} has shape {tuple(shape)}{inside}, expected {tuple(expected)}"]


def list_nonfinite(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """The leaves that hold a value that is not finite, and how many, for a message.

    Example:
        >>> list_nonfinite({"ln.scale": np.array([1.0, np.nan]), "ln.bias": np.zeros(2)})
        ["'ln.scale' (1 of 2 values)"]
    """
    found = []
    for path, array in arrays.items():
        with np.errstate(invalid="ignore"):  # a bfloat16 that signals would be reported besides
            count = int(array.size - np.isfinite(array).sum())
        if count:
            found.append(f"{path!r} ({count:,} of {array.size:,} values)")
    return found


def cast_leaf(value: np.ndarray, dtype: Any) -> np.ndarray:
    """The values in another dtype; the same array where it has it already.

    What is too large for the dtype becomes infinite, which `list_nonfinite` finds.

    Example:
        >>> cast_leaf(np.array([1.0, 1e9], np.float32), np.float16)
        array([ 1., inf], dtype=float16)
    """
    with np.errstate(over="ignore"):
        return value.astype(dtype, copy=False)


def place_leaf(
    path: str, value: np.ndarray, like: Any, error: type[LNTuningError] = AdapterError
) -> Any:
    """The values as a leaf of the kind of another, where that one lies.

    Args:
        path: the leaf's, for messages.
        value: the values; they keep their dtype.
        like: the leaf to replace. The sharding or device of a `jax.Array` is taken over, and an
            array that is free to move stays so; of a `jax.ShapeDtypeStruct` its sharding, if it
            has one; for anything else the values stay a numpy array.
        error: what is raised.

    Raises:
        LNTuningError: JAX has the dtype turned off, and would round.

    Example:
        >>> place_leaf("ln.scale", np.ones(2, np.float32), jnp.zeros(2)).devices() == {
        ...     jax.devices()[0]
        ... }
        True
    """
    if isinstance(like, np.generic):
        return value[()]
    if not isinstance(like, jax.Array | jax.ShapeDtypeStruct):
        return value
    check_enabled(path, value, like, error)
    sharding = like.sharding
    if sharding is None or (isinstance(like, jax.Array) and not like.committed):
        return jnp.asarray(value)  # as free to move as the leaf it replaces
    return jax.device_put(value, sharding)


def check_enabled(
    path: str, value: np.ndarray, like: Any, error: type[LNTuningError] = AdapterError
) -> None:
    """Refuses values that would become a JAX array of a dtype that JAX has turned off.

    Raises:
        LNTuningError: JAX would round; the arguments are those of `place_leaf`.

    Example:
        >>> check_enabled("ln.scale", np.ones(2, np.float32), jnp.zeros(2))
    """
    if not isinstance(like, jax.Array | jax.ShapeDtypeStruct):
        return
    if jax.dtypes.canonicalize_dtype(value.dtype) != value.dtype:
        raise error(
            f"the leaf {path!r} is {value.dtype}, which JAX has turned off: call "
            "jax.config.update('jax_enable_x64', True), or let the leaf take the base's dtype "
            "(cast=True)"
        )
