"""The gradient of the trainable half: of one batch, or of several microbatches one after the other.

No gradient of a frozen leaf is ever asked for, so JAX computes none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..errors import LNTuningError, TreeError
from ..partition import merge_params, widen
from .state import TrainState


def value_and_grad(loss_fn: Callable[..., Any], has_aux: bool = False) -> Callable[..., Any]:
    """Like `jax.value_and_grad`, for the trainable half only.

    Args:
        loss_fn: `loss_fn(params, *args)` on the merged tree; returns a scalar loss, or
            `(loss, aux)` with `has_aux`.
        has_aux: whether `loss_fn` returns more than the loss.

    Returns:
        `f(trainable, frozen, *args)`, which gives `(loss, gradients)` or
        `((loss, aux), gradients)`; the gradients have the keys of `trainable`.

    Raises:
        LNTuningError: when called, `loss_fn` returned no scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"ln": {"scale": jnp.ones(2)}, "w": jnp.full(2, 3.0)}
        >>> trainable, frozen = lnt.partition_params(params, lnt.LNTuningConfig())
        >>> grad = lnt.value_and_grad(lambda p, x: jnp.sum(p["ln"]["scale"] * p["w"] * x))
        >>> loss, gradients = grad(trainable, frozen, 2.0)
        >>> loss.item(), gradients["ln.scale"].tolist()
        (12.0, [6.0, 6.0])
    """

    def merged_loss(trainable: Any, frozen: Any, *args: Any, **kwargs: Any) -> Any:
        result = loss_fn(merge_params(trainable, frozen), *args, **kwargs)
        _check_loss(result, has_aux)
        return result

    return jax.value_and_grad(merged_loss, has_aux=has_aux)


def differentiate(
    gradient: Callable[..., Any],
    has_aux: bool,
    state: TrainState,
    frozen: Any,
    batch: Any,
    key: jax.Array | None,
) -> tuple[tuple[Any, Any], Any]:
    """`((loss, aux), gradients)` of one batch; aux is None where there is none."""
    extra = {} if key is None else {"rng": key}
    result, grads = gradient(state.trainable, frozen, *batch, **extra)
    return (result if has_aux else (result, None)), grads


def accumulate_gradients(
    gradient: Callable[..., Any],
    has_aux: bool,
    state: TrainState,
    frozen: Any,
    batch: Any,
    key: jax.Array | None,
    parts: int,
) -> tuple[tuple[Any, Any], Any]:
    """`differentiate` over `parts` microbatches: means, summed in float32, and stacked aux.

    Raises:
        TreeError: a leaf's first axis cannot be cut into so many equal parts.
    """
    batches = jax.tree.map(lambda leaf: _cut(leaf, parts), batch)

    def take_part(index: Any, batch: Any) -> Any:
        own = None if key is None else jax.random.fold_in(key, index)
        return differentiate(gradient, has_aux, state, frozen, batch, own)

    def body(total: Any, item: Any) -> Any:
        (loss, aux), grads = take_part(*item)
        return jax.tree.map(lambda t, new: t + widen(new, "float32"), total, (loss, grads)), aux

    first = (jnp.zeros((), jnp.int32), jax.tree.map(lambda leaf: leaf[0], batches))
    (loss, _), grads = jax.eval_shape(take_part, *first)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, widen(leaf, "float32").dtype), (loss, grads)
    )
    indices = jnp.arange(parts, dtype=jnp.int32)
    total, aux = jax.lax.scan(body, zeros, (indices, batches))
    mean = jax.tree.map(lambda t, like: (t / parts).astype(like.dtype), total, (loss, grads))
    return (mean[0], aux), mean[1]


def _cut(leaf: Any, parts: int) -> Any:
    shape = jnp.shape(leaf)
    if not shape or shape[0] % parts:
        raise TreeError(
            f"a batch leaf of shape {shape} cannot be cut into accumulate={parts} equal parts "
            "along its first axis"
        )
    return jnp.reshape(leaf, (parts, shape[0] // parts, *shape[1:]))


def _check_loss(result: Any, has_aux: bool) -> None:
    if isinstance(result, tuple) != has_aux:
        raise LNTuningError(
            "loss_fn returned a tuple: pass has_aux=True for (loss, aux)"
            if not has_aux
            else "has_aux=True needs a loss_fn that returns (loss, aux)"
        )
    loss = result[0] if has_aux else result
    dtype = getattr(loss, "dtype", None)
    if isinstance(loss, float) or (
        dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.shape(loss) == ()
    ):
        return
    found = f"{type(loss).__name__}" if dtype is None else f"{dtype} of shape {jnp.shape(loss)}"
    raise LNTuningError(
        f"loss_fn must return a floating-point scalar, not {found}: take the mean over the batch"
    )
