"""The steps that end in a norm: a variance, a normalised array, its scale and its bias.

A scale may come before the division by the root mean square or after it, a bias beside the mean.
Which kind of norm it is, the axes say: a LayerNorm averages over those on which its scale lies, a
BatchNorm over all others, a GroupNorm over a part of the channels, or over positions too.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from .axes import ALL, NONE, PART, Dims, Factor, cover, is_uniform, list_real, pair
from .facts import (
    BIAS,
    SCALE,
    Axes,
    Centred,
    Constant,
    Found,
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
    depends,
)
from .trail import read_trail

STATISTICS = (Sum, Spread, Root, Inverse)
SCALED = (*STATISTICS, Shift, Normalised, Parameter)  # a constant factor is no matter


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


def sum_over(view: View, dimensions: Sequence[int], notes: Notes) -> View:
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


def times_constant(view: View, other: View) -> View | None:
    """An array times a number, where that is no matter or makes a mean of a sum."""
    if not isinstance(other.fact, Constant) or not is_uniform(other.dims):
        return None
    fact = view.fact
    if isinstance(fact, Sum | Spread):
        return View(replace(fact, is_mean=True), view.dims)
    if other.fact.value == 1:
        return view
    if isinstance(fact, Parameter) and fact.offset and other.fact.value is not None:
        return View(replace(fact, offset=fact.offset * other.fact.value), view.dims)
    return view if isinstance(fact, SCALED) else None


def plus_constant(view: View, other: View) -> View | None:
    """An array plus a number: an epsilon, an offset, nothing."""
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
        _note_weight(View(normal, view.dims), notes)
        found = _finish(View(normal, view.dims), inverse, other, weight, notes)
        notes.normalised.extend([weighted] if weighted and found else [])
        return found
    if isinstance(fact, Parameter) and inverse.scale is None:
        return View(Inverse(spread, fact), view.dims)
    return None


def _note_weight(normal: View, notes: Notes) -> None:
    """A parameter that multiplied an array before its statistics: a scale where no other comes."""
    fact: Normalised = normal.fact
    if isinstance(fact.of, Weighted):
        found = judge(fact.of.scale, normal)
        if found is not None and found.kind in (LAYER, RMS):
            notes.unscaled.append((fact.of.scale.fact, fact.spread))


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
    """A normalised array times a parameter, or times what was made of one.

    None where that is no scale of its norm. What a scale is made of is only noted as uncertain.
    """
    fact: Normalised = normal.fact
    trail = read_trail(parameter)
    leaves = trail.table.union(*(own for own, _ in trail.weights))
    if not leaves or (depends(parameter.fact) and not trail.table):
        return None
    found = judge(parameter, normal)
    if fact.scale is not None or fact.has_bias:
        return None
    if found is None:
        is_one = isinstance(parameter.fact, Parameter) and is_uniform(parameter.dims)
        if is_one and depends(fact.of) and not isinstance(fact.spread, Running):
            notes.uncertain.append((leaves, "multiplies a normalised array by one number"))
        return None
    if isinstance(parameter.fact, Parameter):
        notes.scaled.append((fact.spread, parameter.fact.leaves))
        notes.found.append(Found(parameter.fact, SCALE, found.kind, found.axes))
    elif found.kind in (LAYER, RMS):
        how = "holds rows that multiply" if trail.table else "is changed before it multiplies"
        notes.uncertain.append((leaves, f"{how} a normalised array"))
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


LAYER, RMS, BATCH, GROUP = "layer", "rms", "batch", "group"


class Judgement(NamedTuple):
    """What a parameter is to a normalised activation.

    Attributes:
        kind: `LAYER`, `RMS`, `BATCH` or `GROUP`.
        axes: the dimensions averaged over, counted from the last, -1.
        is_exact: whether the parameter lies on these and no others.
    """

    kind: str
    axes: tuple[int, ...]
    is_exact: bool


def judge(parameter: View, normal: View) -> Judgement | None:
    """The kind of norm whose scale or bias this is; None where it is no part of a norm.

    Both views have the shape of the activation.
    """
    fact: Normalised = normal.fact
    on, off = _compare(parameter.dims, normal.dims, fact.axes)
    axes = _list_averaged(normal.dims, fact.axes)
    seen = set[str]().union(*on.values())
    if not on or not axes:
        return None
    if isinstance(fact.spread, Running):
        return Judgement(BATCH, axes, False) if seen == {NONE} else None
    if all(covers == {NONE} for covers in on.values()):
        # A vector for each head or each position, where the spread is that of a vector: a gate.
        if not (fact.is_centred and fact.spread.is_mean and depends(fact.of)):
            return None
        return Judgement(BATCH if off <= {ALL} else GROUP, axes, False)
    is_part = PART in seen or any(len(covers) > 1 for covers in on.values())
    if is_part or off - {NONE}:
        is_rms = not (fact.is_centred or off - {NONE})  # of groups of channels, as Mamba's
        kind = RMS if is_rms else GROUP
        return Judgement(kind, axes, False) if depends(fact.of) else None
    if not (depends(fact.of) or fact.spread.is_mean):
        return None  # a kernel over its own length
    return Judgement(LAYER if fact.is_centred else RMS, axes, seen == {ALL})


def list_sizes(view: View) -> tuple[int, ...]:
    """The sizes of the dimensions along which a view varies."""
    sizes = (tuple(factor.size for factor in list_real(dim)) for dim in view.dims)
    return tuple(size for own in sizes for size in own)


def _compare(
    parameter: Dims, normal: Dims, axes: Axes
) -> tuple[dict[Hashable, set[str]], set[str]]:
    """How much was averaged over along each axis of the parameter, and where it has none."""
    on: dict[Hashable, set[str]] = {}
    off: set[str] = set()
    for own, other in zip(parameter, normal, strict=True):
        pairs = pair(own, other)
        if pairs is None:  # cut unevenly: all of the dimension together
            covers = {cover(factor, axes) for factor in list_real(other)} or {NONE}
            for factor in list_real(own):
                on.setdefault(factor.axis, set()).update(covers)
            continue
        for factor, along in pairs:
            place = off if factor.axis is None else on.setdefault(factor.axis, set())
            if along.axis is not None:  # else several parameters for one activation
                place.add(cover(along, axes))
    return {axis: covers for axis, covers in on.items() if covers}, off


def _list_averaged(normal: Dims, axes: Axes) -> tuple[int, ...]:
    count = len(normal)
    covers = [{cover(factor, axes) for factor in list_real(dim)} for dim in normal]
    return tuple(i - count for i, own in enumerate(covers) if own - {NONE})
