"""A `torch.autograd.Function` with a backward of its own, in a graph that has only forwards.

Export keeps the operators of a Function's forward and forgets its backward. Here both are traced:
`backward` on a stand-in for the gradient of the result, made by the operator `lntune_jax::grad`.
The operator `lntune_jax::join` then says which results, inputs and gradients go together.

The results and the inputs then pass a `jax.custom_vjp`, whose backward is the Function's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from ...errors import ModelError
from .module import load_torch


def get_operators() -> tuple[Any, Any]:
    """The two operators, which PyTorch knows from the first call on."""
    _make_library()
    operators = load_torch().ops.lntune_jax
    return operators.grad.default, operators.join.default


@functools.cache
def _make_library() -> Any:
    """PyTorch forgets the operators with the library, which the cache therefore keeps."""
    torch = load_torch()
    library = torch.library.Library("lntune_jax", "DEF")
    library.define("grad(Tensor like) -> Tensor")
    library.define(
        "join(Tensor[] results, Tensor[] grads, Tensor[] x, Tensor[] x_grads)-> Tensor[]"
    )
    library.impl("grad", torch.empty_like, "CompositeExplicitAutograd")
    library.impl("join", _make_empty, "CompositeExplicitAutograd")
    return library


def _make_empty(results: Sequence[Any], *_: Any) -> list[Any]:
    return [load_torch().empty_like(x) for x in results]


class Context:
    """What `forward` and `backward` of a Function share, `ctx`."""

    def __init__(self, needs: Sequence[bool]) -> None:
        self.needs_input_grad = tuple(needs)
        self.saved_tensors: tuple[Any, ...] = ()
        self.plain: set[int] = set()

    def save_for_backward(self, *tensors: Any) -> None:
        """As PyTorch's."""
        self.saved_tensors = tensors

    def mark_non_differentiable(self, *tensors: Any) -> None:
        """As PyTorch's."""
        self.plain = {id(tensor) for tensor in tensors}

    def set_materialize_grads(self, value: bool) -> None:
        """As PyTorch's; a gradient is always there."""

    def mark_dirty(self, *_: Any) -> None:
        """Refused: a result that is also an argument has no place of its own in a graph."""
        raise ModelError(
            "forward uses a torch.autograd.Function that writes into its argument (mark_dirty), "
            "which JAX would not see: let it return a new tensor"
        )


def trace(cls: Any, args: Sequence[Any]) -> Any:
    """Puts the forward and the backward of a Function into the graph that is being traced.

    Args:
        cls: the Function.
        args: of its `apply`.
    """
    torch = load_torch()
    grad, join = get_operators()
    needs = [isinstance(x, torch.Tensor) and x.is_floating_point() for x in args]
    context = Context(needs)
    if cls.setup_context is not torch.autograd.Function.setup_context:
        results = cls.forward(*args)
        cls.setup_context(context, tuple(args), results)
    else:
        results = cls.forward(context, *args)
    several = isinstance(results, tuple | list)
    if not torch.is_grad_enabled():
        return results
    flat = list(results) if several else [results]
    # A result that is an argument as it is would have the argument's gradient too.
    flat = [x.clone() if any(x is arg for arg in args) else x for x in flat]
    own = [i for i, x in enumerate(flat) if _is_differentiable(x, context)]
    grads = [grad(flat[i]) for i in own]
    given = iter(grads)
    every = [next(given) if i in own else _make_zeros(torch, value) for i, value in enumerate(flat)]
    with (  # a part without gradient would be a graph of its own
        mock.patch.object(torch.no_grad, "__enter__", _do_nothing),
        mock.patch.object(torch.no_grad, "__exit__", _do_nothing),
    ):
        found = cls.backward(context, *every)
    found = found if isinstance(found, tuple | list) else (found,)
    pairs = [
        (x, g)
        for x, g, need in zip(args, found, needs, strict=False)
        if need and isinstance(g, torch.Tensor)
    ]
    joined = join([flat[i] for i in own], grads, [x for x, _ in pairs], [g for _, g in pairs])
    for place, value in zip(own, joined, strict=True):
        flat[place] = value
    return type(results)(flat) if several else flat[0]


def _is_differentiable(value: Any, context: Context) -> bool:
    is_tensor = isinstance(value, load_torch().Tensor)
    return is_tensor and value.is_floating_point() and id(value) not in context.plain


def _do_nothing(*_: Any) -> None:
    pass


def _make_zeros(torch: Any, value: Any) -> Any:
    return torch.zeros_like(value) if isinstance(value, torch.Tensor) else None


def attach(
    values: Sequence[Any], inputs: Sequence[Any], backward: Callable[[list[Any]], list[Any]]
) -> list[Any]:
    """The values of a Function's results, with the gradient that its backward gives.

    Args:
        values: what `forward` returned.
        inputs: the arrays whose gradients `backward` returns.
        backward: from the gradients of the results to those of the inputs.
    """
    values = [jax.lax.stop_gradient(value) for value in values]
    if not inputs:
        return values
    # What backward reads beside its arguments becomes arguments: it runs in another trace.
    pure, held = jax.closure_convert(lambda *grads: backward(list(grads)), *values)

    @jax.custom_vjp
    def join(values: Any, inputs: Any, held: Any) -> Any:
        return values

    def enter(values: Any, inputs: Any, held: Any) -> Any:
        return values, (values, held)

    def leave(kept: Any, grads: Any) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, kept)
        return zeros[0], pure(*grads, *kept[1]), zeros[1]

    join.defvjp(enter, leave)
    return join(values, list(inputs), held)
