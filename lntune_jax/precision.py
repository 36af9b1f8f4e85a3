"""Float32 for leaves of lower precision: widened, or kept exact beside the rounded leaf.

`keep_masters` serves a whole-tree loop, where the leaves themselves stay in bfloat16.

A step of 1e-4 on a bfloat16 weight near 1 rounds to nothing, however often it is taken. The state
here holds the difference between the exact value and the rounded leaf (compensated summation,
Kahan 1965), which costs what a float32 copy would, and stays right when somebody else changes the
leaf between two steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .errors import ConfigError, TreeError


def widen(value: Any, dtype: str | None) -> Any:
    """Casts a leaf of lower precision to `dtype`; any other leaf is returned as it is.

    Raises:
        ConfigError: `dtype` is "float64" and JAX has it turned off.

    Example:
        >>> widen(jnp.ones(2, "bfloat16"), "float32").dtype.name
        'float32'
    """
    if dtype == "float64" and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        raise ConfigError(
            "param_dtype='float64' needs jax.config.update('jax_enable_x64', True); or set "
            "param_dtype='float32'"
        )
    if dtype is None or not _is_narrow(value, dtype):
        return value
    if isinstance(value, jax.ShapeDtypeStruct):
        return value.update(dtype=np.dtype(dtype))
    return value.astype(dtype)


class MastersState(NamedTuple):
    """What rounding took away, and the inner optimizer's state.

    Attributes:
        residuals: a tree like the parameters; `optax.MaskedNode()` where a leaf is not narrow.
        inner: the inner optimizer's state.
    """

    residuals: Any
    inner: Any


def keep_masters(
    tx: optax.GradientTransformation, dtype: str | None
) -> optax.GradientTransformationExtraArgs:
    """Lets `tx` see and update narrow floating-point leaves in `dtype`; others pass untouched.

    The updates are in the leaf's own dtype, so that `optax.apply_updates` lands on the rounded
    exact value.

    Args:
        tx: any optimizer.
        dtype: "float32" or "float64"; None returns `tx` as it is.

    Raises:
        TreeError: on `update`, `params` is missing although a leaf is narrow.
    """
    inner = optax.with_extra_args_support(tx)
    if dtype is None:
        return inner

    def init(params: Any) -> MastersState:
        # Like the parameters, so that `optax.tree_map_params` finds them.
        residuals = jax.tree.map(
            lambda leaf: (
                jnp.zeros_like(leaf, dtype=dtype) if _is_narrow(leaf, dtype) else optax.MaskedNode()
            ),
            params,
        )
        return MastersState(residuals, inner.init(_widen_all(params, dtype)))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        if not jax.tree.leaves(state.residuals):
            updates, inner_state = inner.update(updates, state.inner, params, **extra)
            return updates, MastersState(state.residuals, inner_state)
        if params is None:
            raise TreeError(
                "some trainable leaves have lower precision than param_dtype, so the update needs "
                "them: call tx.update(grads, state, params)"
            )
        leaves, treedef = jax.tree.flatten(params)
        exact = [
            leaf if isinstance(residual, optax.MaskedNode) else leaf.astype(dtype) + residual
            for leaf, residual in zip(leaves, treedef.flatten_up_to(state.residuals), strict=True)
        ]
        wide, inner_state = inner.update(
            _widen_all(updates, dtype), state.inner, treedef.unflatten(exact), **extra
        )
        steps, residuals = [], []
        for leaf, value, step in zip(leaves, exact, treedef.flatten_up_to(wide), strict=True):
            if not _is_narrow(leaf, dtype):
                steps.append(step)
                residuals.append(optax.MaskedNode())
                continue
            new, start = value + step, leaf.astype(dtype)
            rounded_step = _round(_round(new, leaf.dtype) - start, leaf.dtype)
            landed = _round(start + rounded_step, leaf.dtype)  # what apply_updates will make of it
            steps.append(rounded_step.astype(leaf.dtype))
            residuals.append(new - landed)
        return treedef.unflatten(steps), MastersState(treedef.unflatten(residuals), inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _round(value: Any, dtype: Any) -> Any:
    """Rounds to the values that `dtype` has, keeping the value's own dtype.

    A cast there and back may be dropped by XLA (its option `xla_allow_excess_precision` is on by
    default), and the residual would be lost with it.
    """
    if dtype == jnp.bfloat16:
        return jax.lax.reduce_precision(value, exponent_bits=8, mantissa_bits=7)
    return jax.lax.optimization_barrier(value.astype(dtype)).astype(value.dtype)


def _is_narrow(leaf: Any, dtype: str) -> bool:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return False
    return jnp.dtype(leaf.dtype).itemsize < np.dtype(dtype).itemsize


def _widen_all(tree: Any, dtype: str) -> Any:
    return jax.tree.map(lambda leaf: widen(leaf, dtype), tree)
