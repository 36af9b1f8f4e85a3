"""A traced function, gone through equation by equation, into every function that it calls.

Equal expressions are one value: a sum that is written twice is the same sum. Loops are gone through
until what one turn hands to the next is known.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import core
from jax.extend.core import primitives

from .axes import broadcast, count, name_axes, repeats, stretch
from .facts import (
    Constant,
    Normalised,
    Notes,
    Other,
    Parameter,
    Shift,
    View,
    Weighted,
    depends,
    drop,
    fit,
    join_branches,
    list_leaves,
    new_value,
)
from .rules import RULES, rule
from .trail import follow, lose, read_trail, shift, unite_trails

# Kernels in another language than JAX's: a norm may be in one, and cannot be seen.
_KERNELS = ("pallas", "callback", "ffi", "custom_call", "triton", "mosaic")
_OWN = {getattr(primitives, name).name for name in dir(primitives) if name.endswith("_p")}
_OWN |= {"ragged_dot_general", "scaled_dot", "scaled_matmul", "scaled_matmul_wrapper"}
_OWN |= {"random_wrap", "random_unwrap", "random_clone", "reduce_scatter", "symmetric_product"}
_COMMUTATIVE = frozenset({"add", "add_any", "mul", "max", "min"})
_STATISTICAL = frozenset({"reduce_sum", "square", "integer_pow", "dot_general"})
_LARGEST = 1 << 20  # entries of a constant that are looked at


def walk(jaxpr: Any, ins: Sequence[View], notes: Notes, consts: Sequence[View] = ()) -> list[View]:
    """What is known of the results of a jaxpr, given what is known of its operands.

    Args:
        jaxpr: open or closed.
        ins: one view for each operand.
        notes: takes what is found on the way.
        consts: views of the constants of an open jaxpr, where it has any.
    """
    if hasattr(jaxpr, "consts"):  # a closed one; in JAX 0.12 all are
        consts = [_read_constant(value, notes) for value in jaxpr.consts]
        jaxpr = jaxpr.jaxpr
    known: dict[Any, View] = dict(zip(jaxpr.constvars, consts, strict=True))
    for var, view in zip(jaxpr.invars, ins, strict=True):
        known[var] = fit(view, _get_shape(var))
    for eqn in jaxpr.eqns:
        operands = [_read(var, known, notes) for var in eqn.invars]
        known.update(zip(eqn.outvars, _apply(eqn, operands, notes), strict=True))
    return [_read(var, known, notes) for var in jaxpr.outvars]


def find_needed(jaxpr: Any, results: Iterable[int] | None = None) -> set[int]:
    """The operands of a jaxpr on which some of its results depend, or any of them."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    outs = jaxpr.outvars if results is None else [jaxpr.outvars[i] for i in results]
    needed = {var for var in outs if not isinstance(var, core.Literal)}
    for eqn in reversed(jaxpr.eqns):
        wanted = [i for i, var in enumerate(eqn.outvars) if var in needed]
        if not wanted:
            continue
        inner = None if eqn.primitive.name in RULES else _find_jaxpr(eqn)
        places = range(len(eqn.invars)) if inner is None else find_needed(inner, wanted)
        needed |= {v for i in places if not isinstance(v := eqn.invars[i], core.Literal)}
    return {i for i, var in enumerate(jaxpr.invars) if var in needed}


def _apply(eqn: Any, ins: list[View], notes: Notes) -> Sequence[View]:
    """The results of one equation."""
    name = eqn.primitive.name
    is_kernel = any(word in name for word in _KERNELS)
    if name in ("debug_callback", "debug_print"):
        return [new_value(Constant(), _get_shape(var)) for var in eqn.outvars]
    inner = None if is_kernel or name in RULES else _find_jaxpr(eqn)
    if inner is not None:
        outs = walk(inner, ins, notes)
        return [fit(view, _get_shape(var)) for view, var in zip(outs, eqn.outvars, strict=True)]
    is_new = eqn.effects or name in _LOOPS or name == "rng_uniform"
    key = None if is_new else _number(eqn, ins)
    found = None if key is None else notes.values.get(key)
    if found is None:
        found = _follow_rule(eqn, ins, notes, is_kernel)
        if key is not None:
            notes.values[key] = found
    return found


def _follow_rule(eqn: Any, ins: list[View], notes: Notes, is_kernel: bool) -> Sequence[View]:
    name = eqn.primitive.name
    if name in RULES:
        found = RULES[name](_reveal(ins, notes), eqn, notes)
        results = [found] if isinstance(found, View) else found or lose(eqn, ins, notes)
    else:
        is_opaque = is_kernel or name not in _OWN
        leaves = frozenset[int]().union(*(list_leaves(view.fact) for view in ins))
        if is_opaque and leaves:
            notes.opaque.append((name, leaves))
        results = lose(eqn, ins, notes, is_opaque and any(depends(v.fact) for v in ins))
    if not any(isinstance(view.fact, Weighted | Normalised) for view in results):
        notes.spend(ins)
    if name not in _LOOPS and ins and all(isinstance(view.fact, Constant) for view in ins):
        _shadow(eqn, ins, results, notes)
    return results


def _number(eqn: Any, ins: list[View]) -> Hashable | None:
    """A key that equal expressions share: the primitive, its operands and its parameters."""
    name = eqn.primitive.name
    operands: Hashable = tuple(ins)
    if name in _COMMUTATIVE:
        shape = _get_shape(eqn.outvars[0])
        operands = frozenset(View(view.fact, stretch(view.dims, shape)) for view in ins)
    key = (name, operands, tuple(eqn.params.values()), tuple(map(_get_shape, eqn.outvars)))
    try:
        hash(key)
    except TypeError:  # a parameter that cannot be compared
        return None
    return key


# Constants. A norm of them has a scale and a bias like any other, as of a decoder's first queries.


def _shadow(eqn: Any, ins: list[View], results: Sequence[View], notes: Notes) -> None:
    """Notes what constants would be if the one whose statistics are taken were no constant."""
    name = eqn.primitive.name
    if name in _STATISTICAL or (name == "mul" and ins[0] == ins[1]):
        shapes = [[*map(count, view.dims)] for view in ins]
        for view, shape in zip(ins, shapes, strict=True):
            if any(size > 1 for size in shape):
                notes.values.setdefault(("shadow", view), new_value(Other(False), shape))
    arrays = [notes.values.get(("shadow", view), view) for view in ins]
    if arrays == ins or name not in RULES:
        return
    found = RULES[name](arrays, eqn, notes)
    views = [found] if isinstance(found, View) else found or []
    for own, new in zip(results, views, strict=False):
        notes.values["shadow", own] = new


def _reveal(ins: list[View], notes: Notes) -> list[View]:
    """The operands, with a constant that was normalised as such beside a parameter."""
    if not any(isinstance(view.fact, Parameter) for view in ins):
        return ins
    shadows = [notes.values.get(("shadow", view), view) for view in ins]
    return [
        new if isinstance(new.fact, Normalised) else view
        for new, view in zip(shadows, ins, strict=True)
    ]


# Control flow.


@rule("scan")
def _scan(ins: Sequence[View], eqn: Any, notes: Notes) -> list[View]:
    if "num_consts" in eqn.params:
        consts, carried = eqn.params["num_consts"], eqn.params["num_carry"]
    else:  # JAX 0.12
        consts, carried, _ = map(len, eqn.params["ft_in"].unpack())
    fixed, carry = list(ins[:consts]), list(ins[consts : consts + carried])
    body = eqn.params["jaxpr"]
    slices = [_enter(body, view, notes) for view in ins[consts + carried :]]
    outs, carry = _settle(body, fixed, carry, slices, notes)
    arrays = [view for view in ins[consts + carried :] if depends(view.fact)]
    lead = arrays[0].dims[0] if arrays else None
    pairs = zip(outs[carried:], eqn.outvars[carried:], strict=True)
    return carry + [_leave(view, lead, _get_shape(var)) for view, var in pairs]


@rule("while")
def _while(ins: Sequence[View], eqn: Any, notes: Notes) -> list[View]:
    before, inside = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    fixed, carry = list(ins[before : before + inside]), list(ins[before + inside :])
    _, carry = _settle(eqn.params["body_jaxpr"], fixed, carry, [], notes)
    walk(eqn.params["cond_jaxpr"], [*ins[:before], *carry], notes)
    return carry


def _settle(
    body: Any, fixed: list[View], carry: list[View], slices: list[View], notes: Notes
) -> tuple[list[View], list[View]]:
    """The results of a loop's body in any turn, and what is handed from turn to turn."""
    carry, lost = list(carry), set[int]()
    while True:
        draft = notes.draft()
        outs = walk(body, [*fixed, *carry, *slices], draft)
        changed = False
        for i, (old, new) in enumerate(zip(carry, outs, strict=False)):
            if old == new or (i in lost and _holds(old, new)):
                continue
            changed = True
            lost.add(i)
            notes.uses.extend((leaf, "loop") for leaf in list_leaves(old.fact))
            carry[i] = _join([old, new], _get_shape(body.jaxpr.invars[len(fixed) + i]))
        if not changed:
            notes.extend(draft)
            last = [shift(v, new_value(None, [*map(count, v.dims)]).dims) for v in carry]
            return outs, [last[i] if i in lost else view for i, view in enumerate(carry)]


def _holds(old: View, new: View) -> bool:
    """Whether what is known of an array in one turn of a loop holds in the next one too."""
    return _describe(_join([old, new], [*map(count, old.dims)])) == _describe(old)


def _describe(view: View) -> Hashable:
    return depends(view.fact), read_trail(view)


def _join(views: Sequence[View], shape: Sequence[int]) -> View:
    """An array that is one of several, of which no more is known."""
    is_needed = any(depends(view.fact) for view in views)
    trail = unite_trails([read_trail(view) for view in views])._replace(table=frozenset())
    trail = trail._replace(weights=frozenset()) if is_needed else trail
    return follow(trail, new_value(None, shape).dims, is_needed)


@rule("cond")
def _cond(ins: Sequence[View], eqn: Any, notes: Notes) -> list[View]:
    results = [walk(branch, ins[1:], notes) for branch in eqn.params["branches"]]
    return [
        join_branches(views) or _join(views, _get_shape(var))
        for var, views in zip(eqn.outvars, zip(*results, strict=True), strict=True)
    ]


_LOOPS = frozenset({"scan", "while", "cond"})


def _enter(body: Any, view: View, notes: Notes) -> View:
    """What one turn of a loop gets of an array that is gone through."""
    key = ("entry", id(body), view)
    if key not in notes.values:
        is_known = isinstance(view.fact, Parameter | Constant)
        notes.values[key] = drop(view) if is_known else shift(view, view.dims[1:], -1)
    return notes.values[key]


def _leave(view: View, lead: Any, shape: tuple[int, ...]) -> View:
    """The array that the turns of a loop make together, each of them one entry."""
    axes = name_axes(object(), shape)
    dims = (lead or axes[0], *view.dims)
    is_one = isinstance(view.fact, Parameter | Constant | Weighted | Shift)
    if is_one or getattr(view.fact, "scale", None) is not None or repeats(dims):
        return shift(view, axes, 1)
    return View(view.fact, dims)


def _find_jaxpr(eqn: Any) -> Any:
    """The function that an equation calls with its own operands, as jit, remat and others do."""
    for value in eqn.params.values():
        jaxpr = getattr(value, "jaxpr", value)
        if isinstance(jaxpr, core.Jaxpr) and len(jaxpr.invars) == len(eqn.invars):
            return value
    return None


def _read(var: Any, known: dict[Any, View], notes: Notes) -> View:
    return _read_constant(var.val, notes) if isinstance(var, core.Literal) else known[var]


def _read_constant(value: Any, notes: Notes) -> View:
    """A constant, and its value where all its entries are the same."""
    shape = tuple(np.shape(value))
    number = _find_number(value)
    key = ("constant", id(value) if number is None else number, shape)
    if key not in notes.values:
        dims = new_value(None, shape).dims if number is None else tuple(map(broadcast, shape))
        notes.values[key] = View(Constant(number), dims)
        notes.values["kept", key] = value  # so that its id stays its own
    return notes.values[key]


def _find_number(value: Any) -> float | None:
    """The one real number that fills an array."""
    dtype = value.dtype if hasattr(value, "dtype") else np.result_type(value)
    is_real = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    if not is_real or not 0 < np.size(value) <= _LARGEST or isinstance(value, Tracer):
        return None
    array = np.asarray(value)
    return float(array.flat[0]) if (array == array.flat[0]).all() else None


def _get_shape(var: Any) -> tuple[int, ...]:
    return tuple(getattr(var.aval, "shape", ()))
