"""Which kind of norm a parameter belongs to, judged by the axes it lies on and those averaged over.

A LayerNorm averages over the axes on which its scale lies; a BatchNorm over all others; a GroupNorm
over a part of the channels, or over positions too.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from .axes import ALL, NONE, PART, Dims, cover, list_real, pair
from .values import Axes, Normalised, Running, View, depends

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
    if PART in seen or any(len(covers) > 1 for covers in on.values()) or off - {NONE}:
        return Judgement(GROUP, axes, False) if depends(fact.of) else None
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
