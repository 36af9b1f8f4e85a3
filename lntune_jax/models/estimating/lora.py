"""What LoRA would compute, for comparison: a loss with a low-rank term beside chosen products.

The loss is traced, and run again with `x @ a @ b` added to every `x @ kernel` whose kernel has
factors. Nothing of the model has to know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.extend import core

from ..nn.primitives import OWN_GRADIENT, PRODUCT, REMAT, SCAN

if TYPE_CHECKING:
    from collections.abc import Callable


# What PEFT's LoRA adapts by default, in all the architectures here; for Phi-3 it has no default.
TARGETS = ("q_proj", "v_proj", "qkv_proj", "c_attn", "query", "value")

Factors = tuple[Any, Any]


def lora_shapes(leaves: dict[tuple[str, ...], Any], rank: int) -> dict[tuple[str, ...], Factors]:
    """Give the two float32 factors of each kernel that LoRA adapts; those of stacked layers too."""
    return {
        path: (
            jax.ShapeDtypeStruct((*leaf.shape[:-1], rank), "float32"),
            jax.ShapeDtypeStruct((*leaf.shape[:-2], rank, leaf.shape[-1]), "float32"),
        )
        for path, leaf in leaves.items()
        if _is_adapted(path)
    }


def _is_adapted(path: tuple[str, ...]) -> bool:
    module = path[:-1] if path[-1] == "kernel" else path[:-3]  # of kernel.array.qvalue
    is_kernel = path[len(module) :] in (("kernel",), ("kernel", "array", "qvalue"))
    return is_kernel and module[-1] in TARGETS


def add_lora(loss: Callable[..., Any], leaves: dict[tuple[str, ...], Any], *batch: Any) -> Any:
    """Give `f(factors, leaves, *batch)`, the loss with the low-rank terms.

    Args:
        loss: of a flat dict of leaves and the arrays of a batch: the tokens, perhaps labels.
        leaves: the shapes of the leaves.
        batch: the shapes of its arrays.
    """
    closed = jax.make_jaxpr(loss)(leaves, *batch)

    def adapted(factors: dict[tuple[str, ...], Factors], leaves: Any, *batch: Any) -> Any:
        marks = [*(factors.get(path) for path in sorted(leaves)), *(None for _ in batch)]
        values = [*(leaves[path] for path in sorted(leaves)), *batch]
        (result,) = run_with_factors(closed.jaxpr, closed.consts, values, marks)
        return result

    return adapted


def run_with_factors(
    jaxpr: Any, consts: Any, values: list[Any], marks: list[Factors | None]
) -> list[Any]:
    """Evaluate a jaxpr; `marks` has the factors of the values that are adapted kernels."""
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *values), strict=True))
    marked = dict(zip(jaxpr.invars, marks, strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else known[variable]

    def factors_of(variable: Any) -> Factors | None:
        return None if isinstance(variable, core.Literal) else marked.get(variable)

    for equation in jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        found = [factors_of(variable) for variable in equation.invars]
        if equation.primitive.name in ("jit", REMAT) and any(found):
            outputs = _call(equation, inputs, found)
        elif equation.primitive.name == SCAN and any(found):
            outputs = _scan(equation, inputs, found)
        else:
            params = equation.primitive.get_bind_params(equation.params)
            outputs = equation.primitive.bind(*inputs, **params)
            outputs = outputs if equation.primitive.multiple_results else [outputs]
        # The product with a quantised kernel is one call, which has a gradient of its own.
        if equation.primitive.name in (PRODUCT, OWN_GRADIENT) and found[1] is not None:
            outputs = [outputs[0] + _low_rank(inputs[0], found[1])]
        known |= dict(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _call(equation: Any, inputs: list[Any], found: list[Factors | None]) -> list[Any]:
    inner, consts = _open(equation.params["jaxpr"])

    def run(inputs: list[Any], found: list[Factors | None]) -> list[Any]:
        return run_with_factors(inner, consts, inputs, found)

    if equation.primitive.name == REMAT:
        kept = equation.params
        run = jax.checkpoint(run, policy=kept["policy"], prevent_cse=kept["prevent_cse"])
    return run(inputs, found)


def _open(body: Any) -> tuple[Any, list[Any]]:
    """The jaxpr of an equation's body, and its constants."""
    return (body.jaxpr, list(body.consts)) if hasattr(body, "jaxpr") else (body, [])


def _scan(equation: Any, inputs: list[Any], found: list[Factors | None]) -> list[Any]:
    """A loop over stacked layers, each turn with its own layer's factors."""
    params = equation.params
    inner, consts = _open(params["jaxpr"])
    if "num_consts" in params:
        fixed, carried = params["num_consts"], params["num_carry"]
    else:  # from jax 0.12 on
        fixed, carried = (len(part) for part in params["ft_in"].unpack()[:2])
    first = fixed + carried  # of what a turn has its own part of

    def turn(carry: list[Any], own: tuple[list[Any], list[Factors | None]]) -> Any:
        marks = [*found[:fixed], *(None for _ in carry), *own[1]]
        values = [*inputs[:fixed], *carry, *own[0]]
        outputs = run_with_factors(inner, consts, values, marks)
        return outputs[:carried], outputs[carried:]

    carry, stacked = jax.lax.scan(
        turn,
        inputs[fixed:first],
        (inputs[first:], found[first:]),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *stacked]


def _low_rank(x: Any, factors: Factors) -> Any:
    down, up = (jnp.asarray(factor).astype(x.dtype) for factor in factors)
    return (x @ down) @ up
