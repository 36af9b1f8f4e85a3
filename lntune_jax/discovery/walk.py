"""A traced function, gone through equation by equation, into every function that it calls.

Loops are gone through until what one turn hands to the next is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend import core
from jax.extend.core import primitives

from .axes import count
from .facts import (
    Constant,
    Notes,
    Other,
    Parameter,
    View,
    depends,
    list_leaves,
    lose,
    new_value,
)
from .rules import COMPUTED, RULES, compute, drop, fit, join_branches

# Kernels in another language than JAX's: a norm may be in one, and cannot be seen.
_KERNELS = ("pallas", "callback", "ffi", "custom_call", "triton", "mosaic")
_OWN = {getattr(primitives, name).name for name in dir(primitives) if name.endswith("_p")}
_OWN |= {"ragged_dot_general", "scaled_dot", "scaled_matmul", "scaled_matmul_wrapper"}
_OWN |= {"random_wrap", "random_unwrap", "random_clone", "reduce_scatter", "symmetric_product"}
_SILENT = frozenset({"debug_callback", "debug_print"})


def walk(jaxpr: Any, ins: Sequence[View], notes: Notes, consts: Sequence[View] = ()) -> list[View]:
    """What is known of the results of a jaxpr, given what is known of its operands.

    Args:
        jaxpr: open or closed.
        ins: one view for each operand.
        notes: takes what is found on the way.
        consts: views of the constants of an open jaxpr, where it has any.
    """
    if hasattr(jaxpr, "consts"):  # a closed one; in JAX 0.12 all are
        consts = [_read_constant(value) for value in jaxpr.consts]
        jaxpr = jaxpr.jaxpr
    known: dict[Any, View] = dict(zip(jaxpr.constvars, consts, strict=True))
    for var, view in zip(jaxpr.invars, ins, strict=True):
        known[var] = fit(view, _get_shape(var))
    for eqn in jaxpr.eqns:
        operands = [_read(var, known) for var in eqn.invars]
        known.update(zip(eqn.outvars, _apply(eqn, operands, notes), strict=True))
    return [_read(var, known) for var in jaxpr.outvars]


def _apply(eqn: Any, ins: list[View], notes: Notes) -> Sequence[View]:
    """The results of one equation."""
    name = eqn.primitive.name
    shapes = [_get_shape(var) for var in eqn.outvars]
    found: Sequence[View] | None = None
    is_kernel = any(word in name for word in _KERNELS)
    inner = None if is_kernel else _find_jaxpr(eqn)
    if name in _SILENT:
        return [new_value(Constant(), shape) for shape in shapes]
    if name in _LOOPS:
        found = _LOOPS[name](eqn, ins, notes)
    elif inner is not None:
        outs = walk(inner, ins, notes)
        found = [fit(view, shape) for view, shape in zip(outs, shapes, strict=True)]
    elif name in RULES:
        found = RULES[name](ins, eqn)
    elif name in COMPUTED:
        one = compute(name, eqn, ins, notes)
        found = None if one is None else [one]
    elif is_kernel or name not in _OWN:
        leaves = frozenset[int]().union(*(list_leaves(view.fact) for view in ins))
        notes.opaque.extend([(name, leaves)] if leaves else [])
    return lose(name, ins, shapes, notes) if found is None else found


def _scan(eqn: Any, ins: list[View], notes: Notes) -> list[View]:
    if "num_consts" in eqn.params:
        consts, carried = eqn.params["num_consts"], eqn.params["num_carry"]
    else:  # JAX 0.12
        consts, carried, _ = map(len, eqn.params["ft_in"].unpack())
    fixed, carry = ins[:consts], ins[consts : consts + carried]
    slices = [_enter(view) for view in ins[consts + carried :]]
    body = eqn.params["jaxpr"]
    outs, carry = _settle(body, fixed, carry, slices, notes)
    shapes = [_get_shape(var) for var in eqn.outvars[carried:]]
    pairs = zip(outs[carried:], shapes, strict=True)
    return carry + [new_value(Other(depends(view.fact)), shape) for view, shape in pairs]


def _while(eqn: Any, ins: list[View], notes: Notes) -> list[View]:
    before, inside = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    carry = ins[before + inside :]
    fixed = ins[before : before + inside]
    _, carry = _settle(eqn.params["body_jaxpr"], fixed, carry, [], notes)
    walk(eqn.params["cond_jaxpr"], [*ins[:before], *carry], notes)
    return carry


def _settle(
    body: Any, fixed: list[View], carry: list[View], slices: list[View], notes: Notes
) -> tuple[list[View], list[View]]:
    """The results of a loop's body in any turn, and what is handed from turn to turn."""
    carry, lost = list(carry), set[int]()
    while True:
        draft = Notes()
        outs = walk(body, [*fixed, *carry, *slices], draft)
        changed = [
            i
            for i, (old, new) in enumerate(zip(carry, outs, strict=False))
            if i not in lost and (old.fact is not new.fact or old.dims != new.dims)
        ]
        if not changed:
            notes.extend(draft)
            return outs, carry
        for i in changed:
            lost.add(i)
            notes.uses.extend((leaf, "loop") for leaf in list_leaves(carry[i].fact))
            is_needed = depends(carry[i].fact) or depends(outs[i].fact)
            carry[i] = new_value(Other(is_needed), _get_shape(body.jaxpr.invars[len(fixed) + i]))


def _cond(eqn: Any, ins: list[View], notes: Notes) -> list[View]:
    results = [walk(branch, ins[1:], notes) for branch in eqn.params["branches"]]
    joined = []
    for var, views in zip(eqn.outvars, zip(*results, strict=True), strict=True):
        is_needed = any(depends(view.fact) for view in views)
        joined.append(join_branches(views) or new_value(Other(is_needed), _get_shape(var)))
    return joined


def _enter(view: View) -> View:
    """What one turn of a loop gets of an array that is gone through."""
    if isinstance(view.fact, Parameter | Constant):
        return drop(view)
    return new_value(Other(depends(view.fact)), list(map(count, view.dims[1:])))


def _find_jaxpr(eqn: Any) -> Any:
    """The function that an equation calls with its own operands, as jit, remat and others do."""
    for value in eqn.params.values():
        jaxpr = getattr(value, "jaxpr", value)
        if isinstance(jaxpr, core.Jaxpr) and len(jaxpr.invars) == len(eqn.invars):
            return value
    return None


def _read(var: Any, known: dict[Any, View]) -> View:
    return _read_constant(var.val) if isinstance(var, core.Literal) else known[var]


def _read_constant(value: Any) -> View:
    is_number = isinstance(value, int | float | np.generic | np.ndarray) and not np.ndim(value)
    known = float(value) if is_number and np.isrealobj(value) else None
    return new_value(Constant(known), np.shape(value))


def _get_shape(var: Any) -> tuple[int, ...]:
    return tuple(getattr(var.aval, "shape", ()))


_LOOPS = {"scan": _scan, "while": _while, "cond": _cond}
