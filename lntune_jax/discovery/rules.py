"""What each primitive does to what is known of its operands: one rule for each.

A rule takes the views of the operands, the equation and the notes. It gives the result's view, a
list of them for several results, or None where the result is no step of a norm. Signs and constant
factors do not matter, and neither does the order of the operands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import jax.numpy as jnp

from .axes import Dims, broadcast, count, is_uniform, list_real, name_axes, reshape, stretch
from .facts import (
    Centred,
    Constant,
    Inverse,
    Magnitude,
    Normalised,
    Notes,
    Other,
    Parameter,
    Root,
    Running,
    Shift,
    Spread,
    Square,
    Sum,
    View,
    Weighted,
    depends,
    fit,
    join_branches,
    take,
    unite,
)
from .norms import STATISTICS, plus, plus_constant, scale, sum_over, times_constant, times_inverse
from .trail import lose, weigh

Result = View | Sequence[View] | None
Rule = Callable[[Sequence[View], Any, Notes], Result]
AnyRule = TypeVar("AnyRule", bound=Rule)
RULES: dict[str, Rule] = {}

# Zeros in place of what does not count are no matter.
_MASKED = (Other, Square, Centred, Normalised)


def rule(*names: str) -> Callable[[AnyRule], AnyRule]:
    """Registers a function as the rule of these primitives.

    Example:
        >>> @rule("no_such_primitive")
        ... def keep_first(ins, eqn, notes):
        ...     return ins[0]
        >>> RULES.pop("no_such_primitive") is keep_first
        True
    """

    def register(function: AnyRule) -> AnyRule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


# Sums, products and powers: the steps of which every norm is made.


@rule("mul")
def multiply(ins: Sequence[View], eqn: Any, notes: Notes) -> View | None:
    """The product of two arrays, in the shape that both broadcast to."""
    one, other = _stretch(ins, eqn)
    if isinstance(one.fact, Constant) and isinstance(other.fact, Constant):
        return _fold(one, other, lambda a, b: a * b)
    if one == other:
        return square([one], eqn, notes)
    for a, b in ((one, other), (other, one)):
        found = times_constant(a, b) or times_inverse(a, b, notes)
        if found is not None:
            return found
    for a, b in ((one, other), (other, one)):
        found = scale(a, b, notes) if isinstance(a.fact, Normalised) else None
        if found is not None:
            return found
        if isinstance(b.fact, Parameter) and not isinstance(a.fact, Constant | Parameter):
            return weigh(a, b, notes)
    return None


@rule("div")
def divide(ins: Sequence[View], eqn: Any, notes: Notes) -> View | None:
    """The quotient of two arrays."""
    one, other = _stretch(ins, eqn)
    fact = other.fact
    is_count = isinstance(fact, Sum | Constant) or (isinstance(fact, Other) and not fact.weights)
    if isinstance(one.fact, Sum | Spread) and is_count:
        return View(replace(one.fact, is_mean=True), one.dims)  # of what is not masked
    if isinstance(fact, Constant):
        if isinstance(one.fact, Constant):
            return _fold(one, other, lambda a, b: a / b if b else None)
        inverse = Constant(1 / fact.value if fact.value else None)
        return times_constant(one, View(inverse, other.dims))
    if isinstance(fact, Root):
        inverse = View(Inverse(fact.of), other.dims)
        if isinstance(one.fact, Constant) and is_uniform(one.dims):
            return inverse
        return times_inverse(one, inverse, notes)
    return None


@rule("add", "add_any")
def add(ins: Sequence[View], eqn: Any, notes: Notes) -> View | None:
    """The sum of two arrays, or their difference where the sign is no matter."""
    one, other = _stretch(ins, eqn)
    if isinstance(one.fact, Constant) and isinstance(other.fact, Constant):
        return _fold(one, other, lambda a, b: a + b)
    for a, b in ((one, other), (other, one)):
        found = plus_constant(a, b) or plus(a, b, notes)
        if found is not None:
            return found
    return None


@rule("sub")
def subtract(ins: Sequence[View], eqn: Any, notes: Notes) -> View | None:
    """The difference of two arrays."""
    one, other = ins
    if isinstance(other.fact, Constant):
        value = other.fact.value
        negative = Constant(None if value is None else -value)
        return add([one, View(negative, other.dims)], eqn, notes)
    if isinstance(one.fact, Constant | Parameter) and isinstance(other.fact, Parameter):
        return None  # not a parameter plus a constant
    if {type(one.fact), type(other.fact)} == {Parameter, Normalised}:
        return None  # a bias is added
    return add(ins, eqn, notes)


@rule("square")
def square(ins: Sequence[View], eqn: Any, notes: Notes) -> View:
    """The square of an array."""
    (view,) = ins
    fact = view.fact
    if isinstance(fact, Constant):
        return _fold(view, view, lambda a, b: a * b)
    if isinstance(fact, Parameter):
        notes.uses.extend((leaf, "square") for leaf in fact.leaves)
    return View(Square(fact.of if isinstance(fact, Magnitude) else fact), view.dims)


@rule("sqrt")
def root(ins: Sequence[View], eqn: Any, notes: Notes) -> View | None:
    """The square root."""
    fact, dims = ins[0]
    if isinstance(fact, Spread):
        return View(Root(fact), dims)
    if isinstance(fact, Parameter) or (isinstance(fact, Other) and fact.is_input):
        if isinstance(fact, Parameter):
            notes.uses.extend((leaf, "sqrt") for leaf in fact.leaves)
        return View(Root(Running(fact)), dims)
    return None


@rule("rsqrt")
def invert_root(ins: Sequence[View], eqn: Any, notes: Notes) -> View | None:
    """One over the square root."""
    found = root(ins, eqn, notes)
    return found and View(Inverse(found.fact.of), found.dims)


@rule("integer_pow", "pow")
def raise_to(ins: Sequence[View], eqn: Any, notes: Notes) -> View | None:
    """An array to a power."""
    power = eqn.params["y"] if "y" in eqn.params else getattr(ins[1].fact, "value", None)
    if power == 2:
        return square(ins[:1], eqn, notes)
    if power == -1:
        own = ins[0].fact
        return View(Inverse(own.of), ins[0].dims) if isinstance(own, Root) else None
    if power in (0.5, -0.5) and not isinstance(ins[0].fact, Constant):
        return (root if power > 0 else invert_root)(ins, eqn, notes)
    return None


@rule("reduce_sum")
def total(ins: Sequence[View], eqn: Any, notes: Notes) -> View:
    """The sum over some dimensions."""
    return sum_over(ins[0], eqn.params["axes"], notes)


@rule("neg")
def negate(ins: Sequence[View], eqn: Any, notes: Notes) -> View | None:
    """The negative, where the sign is no matter."""
    return ins[0] if isinstance(ins[0].fact, Sum | Spread | Shift) else None


@rule("max", "min", "clamp", "abs")
def bound(ins: Sequence[View], eqn: Any, notes: Notes) -> View | None:
    """A statistic or a parameter within bounds, and absolute values."""
    kept = [v for v in ins if isinstance(v.fact, Spread | Root | Inverse)]
    if eqn.primitive.name == "abs":
        is_array = isinstance(ins[0].fact, Other | Centred | Weighted | Normalised)
        return ins[0] if kept else View(Magnitude(ins[0].fact), ins[0].dims) if is_array else None
    kept = kept or [v for v in ins if isinstance(v.fact, Parameter)]
    others = [v for v in ins if not any(v is own for own in kept)]
    is_bounded = len(kept) == 1 and all(is_uniform(v.dims) for v in others)
    if not is_bounded or not isinstance(kept[0].fact, Parameter):
        return kept[0] if is_bounded else None
    is_bounded = all(isinstance(v.fact, Constant) for v in others)
    return View(replace(kept[0].fact), kept[0].dims) if is_bounded else None  # other numbers


@rule("dot_general")
def multiply_matrices(ins: Sequence[View], eqn: Any, notes: Notes) -> View | None:
    """A dot product: elementwise where nothing is summed, of an array with itself, or with ones."""
    summed, batch = numbers = eqn.params["dimension_numbers"]
    if not summed[0]:
        views = [_lay_out(ins, place, numbers) for place in (0, 1)]
        return multiply(views, eqn, notes) or lose(eqn, views, notes)[0]
    for place, view in enumerate(ins):
        if isinstance(view.fact, Constant) and view.fact.value and is_uniform(view.dims):
            over = _sum_last(_lay_out(ins, 1 - place, numbers), len(summed[0]), notes)
            return over if view.fact.value == 1 else times_constant(over, view)
    (one, other), tied = ins, [(*s, *b) for s, b in zip(summed, batch, strict=True)]
    pairs = zip(*tied, strict=True)
    is_square = one.fact is other.fact and all(one.dims[i] == other.dims[k] for i, k in pairs)
    is_free = any(
        list_real(dim)
        for view, own in zip(ins, tied, strict=True)
        for i, dim in enumerate(view.dims)
        if i not in own
    )
    if not is_square or is_free or isinstance(one.fact, Parameter | Constant):
        return None
    dims = _lay_out(ins, 0, numbers).dims
    return _sum_last(View(Square(one.fact), dims), len(summed[0]), notes)


def _lay_out(ins: Sequence[View], place: int, numbers: Any) -> View:
    """One operand of a dot product in the order of the result, then what is summed."""
    (summed, batch), view = numbers, ins[place]
    dims = [view.dims[i] for i in batch[place]]
    for side, other in enumerate(ins):
        tied = (*summed[side], *batch[side])
        free = [dim for i, dim in enumerate(other.dims) if i not in tied]
        dims += free if side == place else [broadcast(count(dim)) for dim in free]
    return View(view.fact, (*dims, *(view.dims[i] for i in summed[place])))


def _sum_last(view: View, axes: int, notes: Notes) -> View:
    rank = len(view.dims)
    return sum_over(view, range(rank - axes, rank), notes)


def _stretch(ins: Sequence[View], eqn: Any) -> tuple[View, View]:
    one, other = (View(v.fact, stretch(v.dims, eqn.outvars[0].aval.shape)) for v in ins)
    return one, other


def _fold(one: View, other: View, combine: Callable[[float, float], float | None]) -> View:
    a, b = one.fact.value, other.fact.value
    value = None if a is None or b is None else combine(a, b)
    dims = one.dims if not is_uniform(one.dims) else other.dims
    return View(Constant(value), dims)


# What moves, repeats or picks entries: what is known of an array stays known.


@rule(
    # The same numbers in another precision, place or layout; or shared by several devices.
    *("convert_element_type", "reduce_precision", "copy", "copy_p", "stop_gradient", "name"),
    *("real", "conj", "sharding_constraint", "reshard", "mesh_cast", "device_put", "relayout"),
    *("optimization_barrier", "layout_constraint", "with_memory_space_constraint"),
    *("psum", "pmean", "psum_invariant", "all_gather", "all_gather_invariant"),
    *("pvary", "pcast", "pbroadcast"),
)
def keep(ins: Sequence[View], eqn: Any, notes: Notes) -> list[View] | None:
    """Each result shows what the operand in its place does."""
    pairs = zip(eqn.invars, eqn.outvars, strict=False)
    is_rounded = any(_is_inexact(old) and not _is_inexact(new) for old, new in pairs)
    if is_rounded or len(ins) != len(eqn.outvars):
        return None
    return [fit(view, var.aval.shape) for view, var in zip(ins, eqn.outvars, strict=True)]


@rule("transpose", "broadcast_in_dim", "squeeze", "expand_dims", "reshape", "tile")
def move(ins: Sequence[View], eqn: Any, notes: Notes) -> View | None:
    """Broadcasts, transposes and reshapes of all kinds."""
    view, shape = ins[0], eqn.outvars[0].aval.shape
    if isinstance(view.fact, Weighted):  # two views in one
        return _move_weighted(view, eqn, notes)
    name, params = eqn.primitive.name, eqn.params
    dims: Dims | None
    if name == "transpose":
        dims = tuple(view.dims[i] for i in params["permutation"])
    elif name == "broadcast_in_dim":
        made = list(map(broadcast, shape))
        for dim, place in zip(view.dims, params["broadcast_dimensions"], strict=True):
            made[place] = dim if count(dim) == shape[place] else made[place]
        dims = tuple(made)
    elif name == "squeeze":
        dims = tuple(dim for i, dim in enumerate(view.dims) if i not in params["dimensions"])
    elif name == "tile":
        dims = tuple(
            (*broadcast(size // count(dim)), *dim)
            for dim, size in zip(view.dims, shape, strict=True)
        )
    else:
        dims = reshape(view.dims, shape)
    return None if dims is None else View(view.fact, dims)


def _move_weighted(view: View, eqn: Any, notes: Notes) -> View | None:
    """An array and the parameter that multiplied it, both moved."""
    fact: Weighted = view.fact
    array = move([View(fact.of, view.dims)], eqn, notes)
    parameter = move([fact.scale], eqn, notes)
    if array is None or parameter is None:
        return None
    notes.weighted.append(replace(fact, of=array.fact, scale=parameter, origin=fact))
    return View(notes.weighted[-1], array.dims)


@rule("slice", "dynamic_slice", "gather", "split", "unstack")
def pick(ins: Sequence[View], eqn: Any, notes: Notes) -> list[View] | None:
    """Slices: of a parameter they are one layer of a stack, or a part of it."""
    view, name = ins[0], eqn.primitive.name
    if not isinstance(view.fact, Parameter | Constant):
        return None
    if any(depends(other.fact) for other in ins[1:]):
        return None  # a table of which an argument looks up rows
    if name not in ("gather", "unstack"):
        return [take(view, var.aval.shape) for var in eqn.outvars]
    if name == "gather":
        sizes = _read_gather(eqn)
        gone = eqn.params["dimension_numbers"].collapsed_slice_dims
    else:
        gone = (eqn.params["axis"],)
        sizes = [1 if i in gone else count(dim) for i, dim in enumerate(view.dims)]
    if sizes is None:
        return None
    picked = take(view, sizes)
    dims = tuple(dim for i, dim in enumerate(picked.dims) if i not in gone)
    return [View(replace(picked.fact), dims) for _ in eqn.outvars]


@rule("concatenate", "stack")
def stack(ins: Sequence[View], eqn: Any, notes: Notes) -> View | None:
    """Parameters put together, such as the layers of a loop."""
    is_new, shape = eqn.primitive.name == "stack", eqn.outvars[0].aval.shape
    axis = eqn.params["axis" if is_new else "dimension"]
    rest = [
        View(v.fact, tuple(d for i, d in enumerate(v.dims) if is_new or i != axis)) for v in ins
    ]
    united = unite(rest)
    if united is None:
        return None
    dims = list(united.dims)
    dims.insert(axis, name_axes(object(), shape)[axis])
    return View(united.fact, tuple(dims))


@rule("select_n")
def choose(ins: Sequence[View], eqn: Any, notes: Notes) -> View | None:
    """One of several arrays: the same one, one of several parameters, or an array with a mask."""
    found = join_branches(ins[1:])
    if found is not None:
        return found
    others = [v for v in ins[1:] if not (isinstance(v.fact, Constant) and is_uniform(v.dims))]
    if len(others) != 1:
        return None
    is_masked = any(isinstance(v.fact, Constant) and v.fact.value == 0 for v in ins[1:])
    if isinstance(others[0].fact, Parameter):
        return View(replace(others[0].fact), others[0].dims)  # other numbers
    # NaN in the place of a statistic, where there is none, is no matter.
    kinds = STATISTICS + (_MASKED if is_masked else ())
    return others[0] if isinstance(others[0].fact, kinds) else None


def _read_gather(eqn: Any) -> Sequence[int] | None:
    """The sizes of the slice that a gather takes, where it takes only one."""
    numbers = eqn.params["dimension_numbers"]
    has_one = len(numbers.offset_dims) == len(eqn.outvars[0].aval.shape)
    is_plain = not getattr(numbers, "operand_batching_dims", ())
    return eqn.params["slice_sizes"] if has_one and is_plain else None


def _is_inexact(var: Any) -> bool:
    dtype = getattr(var.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)
