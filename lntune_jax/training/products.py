"""Products of bfloat16 on a CPU: multiplied as they are, in place of widened to float32 first.

XLA's library for a CPU multiplies bfloat16 and adds up in float32, by instructions of the
processor where it has them. Up to jax 0.11.1 it gives float32 only, so XLA widens both operands of
a product whose result is bfloat16, a frozen kernel too and at every step. Here such a product is
asked for in float32 and its result rounded. That is done to what JAX has traced, so that a model's
code, the residuals of its backward pass and any policy of `jax.checkpoint` are what they were.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.extend.core import primitives

from .._primitive_names import CALLS, LOOPS
from .compiling import widens_bfloat16

# Not Pallas, whose bodies are kernels.
_ENTERED = CALLS | LOOPS | {"shard_map"}


def accumulate_in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function whose matrix products of bfloat16 run as such on a CPU with jax 0.10.

    For a `jax.jit` of your own, around the whole of it: a step with its gradients, or a forward
    pass. XLA of jax 0.10 and of 0.11 up to 0.11.1 widens bfloat16 to float32 on a CPU, weights too
    and each time, where a product's result is bfloat16. The new function asks for results in
    float32 and rounds them: the same sums and the same types, up to twice as fast where the
    processor multiplies bfloat16. `make_train_step` does so by itself. Figures:
    docs/benchmarks/cpu.md.

    Args:
        function: any function of arrays that `jax.jit` takes, of any shapes. Products of two
            bfloat16 arrays with a bfloat16 result are replaced; those with a `precision` of their
            own are not.

    Returns:
        A function of the same arguments, with results of the same shapes and dtypes, which takes
        up to half as long again to trace. Where the default backend is no CPU, and with a newer
        jax, it does nothing but call `function`. It raises what `function` raises.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> product = jax.jit(lnt.accumulate_in_float32(lambda x, kernel: x @ kernel))
        >>> result = product(jnp.ones((16, 8), "bfloat16"), jnp.ones((8, 32), "bfloat16"))
        >>> result.dtype.name, float(result[0, 0])
        ('bfloat16', 8.0)
    """

    @functools.wraps(function)
    def accumulating(*args: Any, **kwargs: Any) -> Any:
        if not widens_bfloat16(jax.default_backend()):
            return function(*args, **kwargs)
        return replace_products(function)(*args, **kwargs)

    return accumulating


def replace_products(function: Callable[..., Any]) -> Callable[..., Any]:
    """`accumulate_in_float32` wherever it runs."""

    @functools.wraps(function)
    def replaced(*args: Any, **kwargs: Any) -> Any:
        traced, shapes = jax.make_jaxpr(function, return_shape=True)(*args, **kwargs)
        results = core.jaxpr_as_fun(_replace(traced, {}))(*jax.tree.leaves((args, kwargs)))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return replaced


def _replace(jaxpr: Any, done: dict[Any, Any]) -> Any:
    """The same program, open or closed, with other products; a body called twice stays one."""
    if jaxpr not in done:
        if isinstance(jaxpr, core.Jaxpr):
            done[jaxpr] = jaxpr.replace(eqns=_replace_equations(jaxpr.eqns, done))
        else:
            done[jaxpr] = jaxpr.replace(jaxpr=_replace(jaxpr.jaxpr, done))
    return done[jaxpr]


def _replace_equations(equations: Sequence[Any], done: dict[Any, Any]) -> list[Any]:
    replaced: list[Any] = []
    transposes: dict[Any, Any] = {}
    for equation in equations:
        if _is_rounded_product(equation):
            replaced += _split(_fold(equation, transposes))
            continue
        if equation.primitive is primitives.transpose_p:
            transposes[equation.outvars[0]] = equation
        elif equation.primitive.name in _ENTERED:
            params = {name: _visit(value, done) for name, value in equation.params.items()}
            equation = equation.replace(params=params)
        replaced.append(equation)
    return replaced


def _visit(value: Any, done: dict[Any, Any]) -> Any:
    """A parameter of a call: a body, several, or anything else."""
    if hasattr(value, "eqns"):  # open or closed; jax 0.12 has one type for both
        return _replace(value, done)
    if isinstance(value, tuple) and any(hasattr(item, "eqns") for item in value):
        return tuple(_visit(item, done) for item in value)
    return value


def _is_rounded_product(equation: Any) -> bool:
    if equation.primitive is not primitives.dot_general_p:
        return False
    variables = (*equation.invars, *equation.outvars)
    return equation.params["precision"] is None and all(
        variable.aval.dtype == jnp.bfloat16 for variable in variables
    )


def _fold(equation: Any, transposes: dict[Any, Any]) -> Any:
    """The product of what its operands are transposes of, where that is the same numbers.

    XLA does so too, but after it has looked for products that its library takes.
    """
    operands, dimensions = [], []
    numbers = zip(*equation.params["dimension_numbers"], strict=True)
    for operand, (contracted, batch) in zip(equation.invars, numbers, strict=True):
        transpose = transposes.get(operand) if isinstance(operand, core.Var) else None
        if transpose is not None:
            order = transpose.params["permutation"]
            free = [order[axis] for axis in range(len(order)) if axis not in (*contracted, *batch)]
            if free == sorted(free) and all(order[axis] == axis for axis in batch):
                (operand,) = transpose.invars
                contracted = tuple(order[axis] for axis in contracted)
        operands.append(operand)
        dimensions.append((contracted, batch))
    params = equation.params | {"dimension_numbers": tuple(zip(*dimensions, strict=True))}
    return equation.replace(invars=operands, params=params)


def _split(equation: Any) -> tuple[Any, Any]:
    """The product in float32, and its rounding."""
    (result,) = equation.outvars
    exact = core.Var(result.aval.update(dtype=jnp.dtype("float32"), weak_type=False))
    params = equation.params | {"preferred_element_type": jnp.dtype("float32")}
    rounding = {"new_dtype": result.aval.dtype, "weak_type": False, "sharding": None}
    return equation.replace(outvars=[exact], params=params), equation.replace(
        primitive=primitives.convert_element_type_p,
        invars=[exact],
        outvars=[result],
        params=rounding,
    )
