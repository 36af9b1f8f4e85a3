"""How much a traced program holds at once, from its shapes alone: no weights, no compilation.

The equations are gone through in order, as XLA runs them. Matrix products, reductions, look-ups
and loops read what is in memory and write to memory. Elementwise work does not: it is computed
inside its reader, unless a product or a reduction reads it, or several readers would each have to
repeat something dear or to read more than one array for it; its result takes the place of an
operand of the same size that nobody reads after it. A product of stacks of matrices first copies
an operand whose axes are in another order than the product's.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from jax.extend import core

from ..nn.primitives import CALLS, DEAR, FUSED, LOOPS, PRODUCT, SCAN, VIEWS


class _Equation(NamedTuple):
    """One operation: what it reads and writes, and what it needs besides while it runs."""

    name: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    inside: int


class _Program(NamedTuple):
    """A program without calls: values are numbers, `sizes` their bytes."""

    equations: list[_Equation]
    sizes: list[int]
    results: list[int]


def peak_bytes(closed: Any, shards: int = 1) -> int:
    """The most bytes that a program holds at once, beside its arguments.

    Args:
        closed: what `jax.make_jaxpr` gives, or a jaxpr inside it.
        shards: over how many devices the results are spread: of each only a part counts.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lntune_jax.models.estimating.liveness import peak_bytes
        >>> square = jax.ShapeDtypeStruct((8, 8), "float32")
        >>> peak_bytes(jax.make_jaxpr(lambda x: jnp.exp(x @ x) @ x)(square))
        512
    """
    program = _flatten(closed)
    for result in set(program.results):
        program.sizes[result] //= shards
    return _walk(program, _sources(program))


def _flatten(closed: Any) -> _Program:
    """Put the bodies of calls in their places, and give every value a number."""
    sizes: list[int] = []
    equations: list[_Equation] = []

    def number(aval: Any) -> int:
        sizes.append(_bytes(aval))
        return len(sizes) - 1

    def visit(jaxpr: Any, names: dict[Any, int]) -> list[int]:
        def read(variable: Any) -> int:
            return number(None) if isinstance(variable, core.Literal) else names[variable]

        for equation in jaxpr.eqns:
            reads = [read(variable) for variable in equation.invars]
            body = _body(equation)
            if body is not None:
                inner = {variable: number(variable.aval) for variable in body.constvars}
                inner |= dict(zip(body.invars, reads, strict=True))
                names |= dict(zip(equation.outvars, visit(body, inner), strict=True))
                continue
            writes = [number(variable.aval) for variable in equation.outvars]
            names |= dict(zip(equation.outvars, writes, strict=True))
            name = equation.primitive.name
            equations.append(_Equation(name, tuple(reads), tuple(writes), _inside(equation)))
        return [read(variable) for variable in jaxpr.outvars]

    jaxpr = getattr(closed, "jaxpr", closed)
    given = (*jaxpr.constvars, *jaxpr.invars)
    results = visit(jaxpr, {variable: number(variable.aval) for variable in given})
    return _Program(equations, sizes, results)


def _body(equation: Any) -> Any | None:
    """The jaxpr of a call, or of a loop of one turn."""
    name = equation.primitive.name
    if name not in CALLS and not (name == SCAN and equation.params["length"] == 1):
        return None
    bodies = (equation.params.get(key) for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"))
    found = next(body for body in bodies if body is not None)
    return getattr(found, "jaxpr", found)


def _inside(equation: Any) -> int:
    """The peak of a loop's body, or the operands that a product copies."""
    if equation.primitive.name == PRODUCT:
        contracted, batch = equation.params["dimension_numbers"]
        return sum(
            _bytes(operand.aval)
            for operand, inner, outer in zip(equation.invars, contracted, batch, strict=True)
            if outer and not _in_order(operand.aval.shape, outer, inner)
        )
    if equation.primitive.name not in LOOPS:
        return 0
    return max(peak_bytes(body) for body in core.jaxprs_in_params(equation.params))


def _in_order(shape: tuple[int, ...], outer: Any, inner: Any) -> bool:
    free = [axis for axis in range(len(shape)) if axis not in outer and axis not in inner]
    order = [axis for axis in (*outer, *free, *inner) if shape[axis] > 1]
    return order == sorted(order)


def _bytes(aval: Any) -> int:
    if aval is None or not hasattr(aval, "dtype"):
        return 0
    # Random keys have a dtype of their own, of a few bytes.
    return math.prod(aval.shape) * getattr(aval.dtype, "itemsize", 8)


def _sources(program: _Program) -> list[frozenset[int]]:
    """For every value, the written values that it is computed from; a written one has itself."""
    readers: list[list[str]] = [[] for _ in program.sizes]
    for equation in program.equations:
        for value in equation.reads:
            readers[value].append(equation.name)
    sources: list[frozenset[int]] = [frozenset()] * len(program.sizes)
    wanted = set(program.results)
    for equation in program.equations:
        origin = frozenset[int]().union(*(sources[value] for value in equation.reads))
        # Scalars come with the program.
        arrays = sum(program.sizes[source] > 8 for source in origin)
        for value in equation.writes:
            written = value in wanted or _is_written(equation.name, arrays, readers[value])
            sources[value] = frozenset((value,)) if written else origin
    return sources


def _is_written(name: str, arrays: int, readers: list[str]) -> bool:
    if name not in FUSED:
        return True
    if name in VIEWS or not readers:
        return False
    if any(reader not in FUSED for reader in readers):
        return True
    return len(readers) > 1 and (name in DEAR or arrays > 1)


def _walk(program: _Program, sources: list[frozenset[int]]) -> int:
    """Go through the equations with what is written and still to be read."""
    last: dict[int, int] = {}
    for place, equation in enumerate(program.equations):
        if any(sources[value] == {value} for value in equation.writes):
            read = frozenset[int]().union(*(sources[value] for value in equation.reads))
            last |= dict.fromkeys(read, place)
    for value in program.results:
        last |= dict.fromkeys(sources[value], len(program.equations))
    ending: list[list[int]] = [[] for _ in range(len(program.equations) + 1)]
    for value, place in last.items():
        ending[place].append(program.sizes[value])
    held = peak = 0
    for equation, ended in zip(program.equations, ending, strict=False):
        written = (value for value in equation.writes if value in last)
        new = [program.sizes[value] for value in written if sources[value] == {value}]
        peak = max(peak, held + sum(new) - _reused(equation, new, ended) + equation.inside)
        held += sum(new) - sum(ended)
    return peak


def _reused(equation: _Equation, new: list[int], ended: list[int]) -> int:
    """What elementwise work writes where an array of that size lay that ends with it."""
    return sum(new) if equation.name in FUSED and set(new) <= set(ended) else 0
