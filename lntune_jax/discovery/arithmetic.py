"""What sums, products and powers of traced arrays are: the steps of which every norm is made.

Each rule gives the result's view, or None where nothing is known of it. Signs and constant factors
do not matter, and neither does the order of the operands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from .axes import is_uniform, list_real, stretch
from .norms import find_spread, plus, scale, times_inverse
from .values import (
    Constant,
    Inverse,
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
)

_SCALED = (
    Sum,
    Spread,
    Root,
    Inverse,
    Shift,
    Normalised,
    Parameter,
)  # a constant factor is no matter


def multiply(one: View, other: View, shape: Sequence[int], notes: Notes) -> View | None:
    """The product of two arrays, in the shape that both broadcast to."""
    one, other = (View(v.fact, stretch(v.dims, shape)) for v in (one, other))
    if isinstance(one.fact, Constant) and isinstance(other.fact, Constant):
        return _fold(one, other, lambda a, b: a * b)
    if one.fact is other.fact and one.dims == other.dims:
        return square(one, notes)
    for a, b in ((one, other), (other, one)):
        found = _times_constant(a, b) or times_inverse(a, b, notes)
        if found is not None:
            return found
    for a, b in ((one, other), (other, one)):
        if isinstance(b.fact, Parameter) and not isinstance(a.fact, Constant | Parameter):
            found = scale(a, b, notes) if isinstance(a.fact, Normalised) else None
            if found is None:  # not yet: it may be divided by its root mean square after this
                notes.weighted.append(Weighted(a.fact, b))
                found = View(notes.weighted[-1], a.dims)
            return found
    return None


def divide(one: View, other: View, shape: Sequence[int], notes: Notes) -> View | None:
    """The quotient of two arrays."""
    one, other = (View(v.fact, stretch(v.dims, shape)) for v in (one, other))
    fact = other.fact
    if isinstance(one.fact, Sum | Spread) and isinstance(fact, Other | Sum | Constant):
        return View(replace(one.fact, is_mean=True), one.dims)  # a count, of what is not masked
    if isinstance(fact, Constant):
        if isinstance(one.fact, Constant):
            return _fold(one, other, lambda a, b: a / b if b else None)
        return _times_constant(one, View(Constant(_invert(fact)), other.dims))
    if isinstance(fact, Root):
        inverse = View(Inverse(fact.of), other.dims)
        if isinstance(one.fact, Constant) and is_uniform(one.dims):
            return inverse
        return times_inverse(one, inverse, notes)
    return None


def add(one: View, other: View, shape: Sequence[int], notes: Notes) -> View | None:
    """The sum of two arrays, or their difference where the sign is no matter."""
    one, other = (View(v.fact, stretch(v.dims, shape)) for v in (one, other))
    if isinstance(one.fact, Constant) and isinstance(other.fact, Constant):
        return _fold(one, other, lambda a, b: a + b)
    for a, b in ((one, other), (other, one)):
        found = _plus_constant(a, b) or plus(a, b, notes)
        if found is not None:
            return found
    return None


def subtract(one: View, other: View, shape: Sequence[int], notes: Notes) -> View | None:
    """The difference of two arrays."""
    if isinstance(other.fact, Constant):
        value = other.fact.value
        negative = Constant(None if value is None else -value)
        return add(one, View(negative, other.dims), shape, notes)
    if isinstance(one.fact, Constant | Parameter) and isinstance(other.fact, Parameter):
        return None  # not a parameter plus a constant
    if {type(one.fact), type(other.fact)} == {Parameter, Normalised}:
        return None  # a bias is added
    return add(one, other, shape, notes)


def square(view: View, notes: Notes) -> View:
    """The square of an array."""
    fact = view.fact
    if isinstance(fact, Constant):
        return _fold(view, view, lambda a, b: a * b)
    if isinstance(fact, Parameter):
        notes.uses.extend((leaf, "square") for leaf in fact.leaves)
    return View(Square(fact), view.dims)


def root(view: View, notes: Notes) -> View | None:
    """The square root."""
    fact = view.fact
    if isinstance(fact, Spread):
        return View(Root(fact), view.dims)
    if isinstance(fact, Parameter) or (isinstance(fact, Other) and fact.is_input):
        if isinstance(fact, Parameter):
            notes.uses.extend((leaf, "sqrt") for leaf in fact.leaves)
        return View(Root(Running(fact)), view.dims)
    return None


def invert(view: View) -> View | None:
    """One over an array."""
    return View(Inverse(view.fact.of), view.dims) if isinstance(view.fact, Root) else None


def raise_to(view: View, power: float | None, notes: Notes) -> View | None:
    """An array to a power that is known."""
    if power == 2:
        return square(view, notes)
    if power == -1:
        return invert(view)
    if power in (0.5, -0.5) and not isinstance(view.fact, Constant):
        found = root(view, notes)
        return invert(found) if found and power < 0 else found
    return None


def total(view: View, dimensions: Sequence[int], notes: Notes) -> View:
    """The sum over some dimensions."""
    fact = view.fact
    axes = frozenset(f for i in dimensions for f in list_real(view.dims[i]))
    dims = tuple(dim for i, dim in enumerate(view.dims) if i not in dimensions)
    if isinstance(fact, Spread):  # over one dimension after the other
        return View(replace(fact, axes=fact.axes | axes), dims)
    if isinstance(fact, Square):
        return View(find_spread(fact.of, axes), dims)
    if isinstance(fact, Constant):
        return View(Constant(), dims)
    if isinstance(fact, Parameter):
        notes.uses.extend((leaf, "reduce_sum") for leaf in fact.leaves)
    return View(Sum(fact, axes), dims)


def _times_constant(view: View, other: View) -> View | None:
    if not isinstance(other.fact, Constant) or not is_uniform(other.dims):
        return None
    fact = view.fact
    if isinstance(fact, Sum | Spread):
        return View(replace(fact, is_mean=True), view.dims)
    if other.fact.value == 1:
        return view
    if isinstance(fact, Parameter) and fact.offset and other.fact.value is not None:
        return View(replace(fact, offset=fact.offset * other.fact.value), view.dims)
    return view if isinstance(fact, _SCALED) else None


def _plus_constant(view: View, other: View) -> View | None:
    fact, value = view.fact, getattr(other.fact, "value", None)
    if value == 0:
        return view
    if not is_uniform(other.dims):
        return None
    if isinstance(fact, Spread | Root) and isinstance(other.fact, Constant | Other | Parameter):
        return view  # epsilon
    if isinstance(other.fact, Constant):
        if isinstance(fact, Parameter):
            offset = fact.offset + (float("nan") if value is None else value)
            return View(replace(fact, offset=offset), view.dims)
        if isinstance(fact, Other) and fact.is_input:
            return View(Other(fact.depends, is_input=True), view.dims)
    return None


def _fold(one: View, other: View, combine: Callable[[float, float], float | None]) -> View:
    a, b = one.fact.value, other.fact.value
    value = None if a is None or b is None else combine(a, b)
    dims = one.dims if not is_uniform(one.dims) else other.dims
    return View(Constant(value), dims)


def _invert(constant: Constant) -> float | None:
    return 1 / constant.value if constant.value else None
