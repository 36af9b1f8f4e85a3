"""The steps that end in a norm: a variance, a normalised array, its scale and its bias.

A scale may come before the division by the root mean square or after it, a bias beside the mean.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .axes import Factor, list_real
from .kinds import LAYER, RMS, judge, list_sizes
from .values import (
    BIAS,
    SCALE,
    Axes,
    Centred,
    Found,
    Inverse,
    Normalised,
    Notes,
    Other,
    Parameter,
    Running,
    Shift,
    Spread,
    Square,
    Sum,
    View,
    Weighted,
)


def find_spread(fact: Any, axes: Axes) -> Spread:
    """The sum of an array's squares; of differences from the mean it is that array's variance."""
    if isinstance(fact, Centred) and fact.axes == axes:
        return Spread(fact.of, axes, is_centred=True)
    return Spread(fact, axes)


def find_average(own: Any, fact: Any) -> Axes | None:
    """The axes over which one array is the mean of another; None where it is not."""
    if isinstance(own, Spread) and isinstance(fact, Square):
        is_its = own.of is fact.of and own.is_mean and not own.is_centred
        return own.axes if is_its else None
    axes, is_mean = frozenset[Factor](), False
    while isinstance(own, Sum):  # over one dimension after the other, or of a mean
        axes, is_mean, own = axes | own.axes, is_mean or own.is_mean, own.of
        if own is fact:
            return axes if is_mean else None
    return None


def times_inverse(view: View, other: View, notes: Notes) -> View | None:
    """An array times one over the root of a spread: its own, or a parameter that scales it."""
    inverse, fact = other.fact, view.fact
    if not isinstance(inverse, Inverse):
        return None
    spread = inverse.of
    weighted = fact if isinstance(fact, Weighted) and spread.of is not fact else None
    weight, inner = (weighted.scale, weighted.of) if weighted else (None, fact)
    origin = inner.of if isinstance(inner, Centred) and spread.of is not inner else inner
    normal = None
    if isinstance(spread, Running):
        if isinstance(fact, Other | Centred | Weighted):
            normal = Normalised(inner, spread, _list_repeated(view, other), True)
    elif spread.of is origin:
        is_centred = spread.is_centred or origin is not inner
        normal = Normalised(origin, spread, spread.axes, is_centred)
    elif find_average(fact, spread.of) is not None:
        return View(Shift(spread), view.dims)
    if normal is not None:
        found = _finish(View(normal, view.dims), inverse, other, weight, notes)
        notes.normalised.extend([weighted] if weighted and found else [])
        return found
    if isinstance(fact, Parameter) and inverse.scale is None:
        return View(Inverse(spread, fact), view.dims)
    return None


def _list_repeated(view: View, other: View) -> Axes:
    """The axes of an array along which another one is the same."""
    pairs = zip(view.dims, other.dims, strict=True)
    return frozenset(f for dim, own in pairs if not list_real(own) for f in list_real(dim))


def _finish(
    normal: View, inverse: Inverse, view: View, weight: View | None, notes: Notes
) -> View | None:
    """A normalised array, times the scale that its inverse or the array itself has had before."""
    if inverse.scale is None:
        return normal if weight is None else scale(normal, weight, notes)
    return None if weight else scale(normal, View(inverse.scale, view.dims), notes)


def scale(normal: View, parameter: View, notes: Notes) -> View | None:
    """A normalised array times a parameter; None where that is no scale of its norm."""
    fact: Normalised = normal.fact
    found = judge(parameter, normal)
    if found is None or fact.scale is not None or fact.has_bias:
        return None
    notes.found.append(Found(parameter.fact, SCALE, found.kind, found.axes))
    return View(replace(fact, scale=(found.kind, list_sizes(parameter))), normal.dims)


def plus(view: View, other: View, notes: Notes) -> View | None:
    """The sum of two arrays, or their difference, where that is a step of a norm."""
    fact, own = view.fact, other.fact
    axes = find_average(own, fact)
    if axes is not None:
        return View(Centred(fact, axes), view.dims)
    is_difference = isinstance(fact, Spread) and isinstance(own, Square)
    if is_difference and find_average(own.of, fact.of) == fact.axes:
        return View(replace(fact, is_centred=True), view.dims)
    if isinstance(fact, Shift) and isinstance(own, Parameter) and fact.bias is None:
        return View(Shift(fact.of, own), other.dims)
    if isinstance(fact, Normalised) and isinstance(own, Shift) and own.of is fact.spread:
        return view if own.bias is None else _shift(view, View(own.bias, other.dims), notes)
    if isinstance(fact, Normalised) and isinstance(own, Parameter):
        return _shift(view, other, notes)
    return None


def _shift(normal: View, parameter: View, notes: Notes) -> View | None:
    """A normalised array plus a parameter: its bias, where it lies on the axes of its scale."""
    fact: Normalised = normal.fact
    found = judge(parameter, normal)
    if found is None or fact.has_bias:
        return None
    fits = found.is_exact or found.kind not in (LAYER, RMS)
    if fact.scale is not None:
        fits = fact.scale == (found.kind, list_sizes(parameter))
    if not fits:
        return None
    notes.found.append(Found(parameter.fact, BIAS, found.kind, found.axes))
    return View(replace(fact, has_bias=True), normal.dims)
