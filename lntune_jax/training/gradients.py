"""The gradient of the trainable half: of one batch, or of several microbatches one after the other.

No gradient of a frozen leaf is ever asked for, so JAX computes none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..arguments import check_flag
from ..errors import ArgumentError, TreeError
from ..partition import merge_params
from ..paths import flatten, join
from ..precision import widen


class WeightedLoss(NamedTuple):
    """A loss as a sum and its weight, which a `loss_fn` may return in place of their quotient.

    Over microbatches or rows of uneven weight (masked tokens) the sums are added and divided by the
    sum of the weights, which is the loss of the whole batch. A mean has lost its weight.

    Attributes:
        total: the sum of the losses, a floating-point scalar.
        weight: what to divide it by, such as the number of tokens; a scalar, taken as a constant.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> trainable, frozen = lnt.partition_params({"ln": {"scale": jnp.ones(2)}},
        ...                                          lnt.LNTuningConfig())
        >>> def loss_fn(params, mask):
        ...     return lnt.training.WeightedLoss((params["ln"]["scale"] * mask).sum(), mask.sum())
        >>> loss, _ = lnt.value_and_grad(loss_fn)(trainable, frozen, jnp.array([0.0, 3.0]))
        >>> loss.item()
        1.0
    """

    total: Any
    weight: Any


def value_and_grad(loss_fn: Callable[..., Any], has_aux: bool = False) -> Callable[..., Any]:
    """Like `jax.value_and_grad`, for the trainable half only.

    Args:
        loss_fn: `loss_fn(params, *args)` on the merged tree; returns a scalar loss or a
            `WeightedLoss`, or with `has_aux` a pair of this and anything else.
        has_aux: whether `loss_fn` returns more than the loss.

    Returns:
        `f(trainable, frozen, *args)`, which gives `(loss, gradients)` or
        `((loss, aux), gradients)`; the gradients have the keys of `trainable`.

    Raises:
        ArgumentError: `loss_fn` is no function or `has_aux` no bool; when called, `loss_fn`
            returned no scalar.

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
    loss = make_loss(loss_fn, has_aux)

    def differentiable(*args: Any, **kwargs: Any) -> Any:
        value, (_, aux) = loss(*args, **kwargs)
        return (value, aux) if has_aux else value

    return jax.value_and_grad(differentiable, has_aux=has_aux)


def make_loss(
    loss_fn: Callable[..., Any], has_aux: bool, *, is_part: bool = False
) -> Callable[..., Any]:
    """The loss of the two halves: `f(trainable, frozen, *args) -> (loss, (weight, aux))`.

    The weight is None where `loss_fn` gives a plain loss, and aux where it gives none. A loss
    without any weight is NaN; of a microbatch, where others have one, it is 0.
    """
    if not callable(loss_fn):
        raise ArgumentError(
            f"loss_fn must be a function loss_fn(params, *batch), not {type(loss_fn).__name__}"
        )
    check_flag("has_aux", has_aux)

    def loss(trainable: Any, frozen: Any, *args: Any, **kwargs: Any) -> Any:
        result = loss_fn(merge_params(trainable, frozen), *args, **kwargs)
        if has_aux != (isinstance(result, tuple) and not isinstance(result, WeightedLoss)):
            raise ArgumentError(
                "has_aux=True needs a loss_fn that returns (loss, aux)"
                if has_aux
                else "loss_fn returned a tuple: pass has_aux=True for (loss, aux)"
            )
        if has_aux and len(result) != 2:
            raise ArgumentError(
                f"with has_aux=True loss_fn must return (loss, aux), not {len(result)} values"
            )
        value, aux = result if has_aux else (result, None)
        if not isinstance(value, WeightedLoss):
            _check_scalar("loss_fn must return a floating-point scalar", value)
            return value, (None, aux)
        _check_scalar("total of a WeightedLoss must be a floating-point scalar", value.total)
        if jnp.shape(value.weight) != ():
            raise ArgumentError(
                f"weight of a WeightedLoss has the shape {jnp.shape(value.weight)}; expected a "
                "scalar: take the sum over the batch"
            )
        total = jnp.asarray(value.total)
        weight = jax.lax.stop_gradient(jnp.asarray(value.weight).astype(total.dtype))
        divisor = jnp.where(weight == 0, 1, weight) if is_part else weight
        return total / divisor, (weight, aux)

    return loss


class Objective(NamedTuple):
    """The loss of one batch as functions of the trainable leaves.

    Attributes:
        value: `value(trainable)` is the loss.
        value_and_grad: `value_and_grad(trainable)` is `((loss, aux), gradients)`.
    """

    value: Callable[..., Any]
    value_and_grad: Callable[..., Any]


def make_objective(
    loss: Callable[..., Any], frozen: Any, batch: Any, key: jax.Array | None, parts: int
) -> Objective:
    """The loss of a batch, taken as a whole or in microbatches.

    Args:
        loss: what `make_loss` gave; with `is_part` where there are several parts.
        frozen: the frozen half.
        batch: the further arguments of the loss.
        key: handed to the loss as `rng=`, to each microbatch a key of its own; None for no key.
        parts: how many microbatches.

    Raises:
        TreeError: a leaf's first axis cannot be cut into so many equal parts.
    """
    differentiate = jax.value_and_grad(loss, has_aux=True)

    def take_loss(trainable: Any, batch: Any, key: Any) -> Any:
        value, (weight, aux) = loss(trainable, frozen, *batch, **_as_option(key))
        return value, weight, aux

    def take_gradient(trainable: Any, batch: Any, key: Any) -> Any:
        result = differentiate(trainable, frozen, *batch, **_as_option(key))
        (value, (weight, aux)), grads = result
        return (value, grads), weight, aux

    def take(what: Callable[..., Any], trainable: Any) -> Any:
        if parts == 1:
            values, _, aux = what(trainable, batch, key)
            return values, aux
        return _average(lambda *part: what(trainable, *part), batch, key, parts)

    def value(trainable: Any, **_: Any) -> Any:
        return take(take_loss, trainable)[0]

    def value_and_grad(trainable: Any) -> Any:
        (value, grads), aux = take(take_gradient, trainable)
        return (value, aux), grads

    return Objective(value, value_and_grad)


def _average(take: Callable[..., Any], batch: Any, key: Any, parts: int) -> Any:
    """Means of what `take(batch, key) -> (values, weight, aux)` gives, by weight; and stacked aux.

    The sums are in float32 at least.
    """
    _check_parts(batch, parts)
    batches = jax.tree.map(lambda leaf: _cut(leaf, parts), batch)

    def take_part(index: Any, batch: Any) -> Any:
        own = None if key is None else jax.random.fold_in(key, index)
        values, weight, aux = take(batch, own)
        if weight is None:
            return values, jnp.ones((), jnp.float32), aux
        return values, widen(weight, "float32"), aux

    def body(totals: Any, item: Any) -> Any:
        values, weight, aux = take_part(*item)
        weighted = jax.tree.map(lambda leaf: _scale(widen(leaf, "float32"), weight), values)
        return jax.tree.map(jnp.add, totals, (weighted, weight)), aux

    first = (jnp.zeros((), jnp.int32), jax.tree.map(lambda leaf: leaf[0], batches))
    values, weight, _ = jax.eval_shape(take_part, *first)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, widen(leaf, "float32").dtype), (values, weight)
    )
    indices = jnp.arange(parts, dtype=jnp.int32)
    (totals, weights), aux = jax.lax.scan(body, zeros, (indices, batches))
    means = jax.tree.map(
        lambda total, like: (total / weights.astype(total.dtype)).astype(like.dtype), totals, values
    )
    return means, aux


def _scale(value: Any, weight: Any) -> Any:
    return value * weight.astype(value.dtype)


def _check_parts(batch: Any, parts: int) -> None:
    for leaf in flatten(batch)[0]:
        shape = jnp.shape(leaf.value)
        if not shape or shape[0] % parts:
            raise TreeError(
                f"the batch leaf {join(leaf.path)!r} of shape {shape} cannot be cut into "
                f"accumulate={parts} equal parts along its first axis"
            )


def _cut(leaf: Any, parts: int) -> Any:
    """Microbatches along a new first axis: row r is in microbatch r modulo `parts`.

    So each takes its share of the rows of every device, where the batch is divided over devices.
    """
    shape = jnp.shape(leaf)
    return jnp.swapaxes(jnp.reshape(leaf, (shape[0] // parts, parts, *shape[1:])), 0, 1)


def _as_option(key: Any) -> dict[str, Any]:
    return {} if key is None else {"rng": key}


def _check_scalar(what: str, value: Any) -> None:
    dtype = getattr(value, "dtype", None)
    if isinstance(value, float) or (
        dtype is not None and jnp.issubdtype(dtype, jnp.floating) and np.shape(value) == ()
    ):
        return
    found = f"{type(value).__name__}" if dtype is None else f"{dtype} of shape {jnp.shape(value)}"
    raise ArgumentError(f"{what}, not {found}: take the mean over the batch, or a WeightedLoss")
