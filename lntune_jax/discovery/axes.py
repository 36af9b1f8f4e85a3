"""Axes of a traced array, followed through reshapes, transposes and broadcasts.

Each dimension is a row of factors, outermost first: a factor is a digit of one of the axes that the
array began with. Splitting 12 channels into 3 groups of 4 splits one factor in two; merging them
again gives it back. So it is known what was averaged over, whatever shape the array has since.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

ALL, PART, NONE = "all", "part", "none"


class Factor(NamedTuple):
    """The digit `index // stride % size` of an axis: of an origin, and its number there.

    `axis` is None along a broadcast.
    """

    axis: tuple[Hashable, int] | None
    stride: int
    size: int


Dims = tuple[tuple[Factor, ...], ...]


def name_axes(origin: Hashable, shape: Sequence[int]) -> Dims:
    """The dimensions of an array whose axes are its own."""
    return tuple((Factor((origin, i), 1, size),) for i, size in enumerate(shape))


def broadcast(size: int) -> tuple[Factor, ...]:
    """A dimension along which all entries are the same."""
    return (Factor(None, 1, size),) if size > 1 else ()


def count(dim: Sequence[Factor]) -> int:
    """The size of a dimension.

    Example:
        >>> count((Factor(("x", 0), 4, 3), Factor(("x", 0), 1, 4)))
        12
    """
    size = 1
    for factor in dim:
        size *= factor.size
    return size


def is_uniform(dims: Dims) -> bool:
    """Whether all entries are the same, as of a scalar that was broadcast."""
    return not any(list_real(dim) for dim in dims)


def list_real(dim: Iterable[Factor]) -> list[Factor]:
    """The factors along which the array varies."""
    return [factor for factor in dim if factor.axis is not None and factor.size > 1]


def repeats(dims: Dims) -> bool:
    """Whether one axis lies in two dimensions, as of an outer product of an array with itself."""
    digits = [(factor.axis, factor.stride) for dim in dims for factor in list_real(dim)]
    return len(set(digits)) < len(digits)


def stretch(dims: Dims, shape: Sequence[int]) -> Dims:
    """The dimensions after an operation that repeats dimensions of size 1 where `shape` has more.

    Example:
        >>> stretch(((), (Factor(("x", 0), 1, 4),)), (2, 4))
        ((Factor(axis=None, stride=1, size=2),), (Factor(axis=('x', 0), stride=1, size=4),))
    """
    if len(dims) != len(shape):  # a scalar
        return tuple(map(broadcast, shape))
    return tuple(
        dim if count(dim) == size else broadcast(size)
        for dim, size in zip(dims, shape, strict=True)
    )


def reshape(dims: Dims, shape: Sequence[int]) -> Dims | None:
    """The dimensions after a reshape; None where a factor would have to be cut unevenly.

    Example:
        >>> channels = (Factor(("x", 0), 1, 12),)
        >>> groups = reshape((channels,), (3, 4))
        >>> groups
        ((Factor(axis=('x', 0), stride=4, size=3),), (Factor(axis=('x', 0), stride=1, size=4),))
        >>> reshape(groups, (12,)) == (channels,)
        True
    """
    if tuple(map(count, dims)) == tuple(shape):
        return dims
    rest = [factor for dim in dims for factor in dim if factor.size != 1]
    made: list[tuple[Factor, ...]] = []
    for size in shape:
        dim: list[Factor] = []
        while size > 1:
            if not rest:
                return None
            outer, inner = _cut(rest.pop(0), size)
            if outer is None:
                return None
            dim.append(outer)
            if inner is not None:
                rest.insert(0, inner)
            size //= outer.size
        made.append(_merge(dim))
    return None if rest else tuple(made)


def cover(factor: Factor, axes: frozenset[Factor]) -> str:
    """How much of a factor was averaged over: `ALL`, `PART` or `NONE` of it.

    Example:
        >>> cover(Factor(("x", 0), 1, 12), frozenset({Factor(("x", 0), 1, 4)}))
        'part'
    """
    inside = 1
    for other in axes:
        if other.axis == factor.axis:
            low = max(other.stride, factor.stride)
            high = min(other.stride * other.size, factor.stride * factor.size)
            inside *= max(high // low, 1)
    return NONE if inside == 1 else ALL if inside >= factor.size else PART


def pair(one: Sequence[Factor], other: Sequence[Factor]) -> list[tuple[Factor, Factor]] | None:
    """The factors of two dimensions of one size, cut until they stand side by side."""
    left, right = ([f for f in dim if f.size > 1] for dim in (one, other))
    pairs: list[tuple[Factor, Factor]] = []
    while left and right:
        a, b = left.pop(), right.pop()  # the innermost first
        size = min(a.size, b.size)
        if max(a.size, b.size) % size:
            return None
        for factor, stack in ((a, left), (b, right)):
            if factor.size > size:
                stack.append(Factor(factor.axis, factor.stride * size, factor.size // size))
        pairs.append((a._replace(size=size), b._replace(size=size)))
    return None if left or right else pairs


def _cut(factor: Factor, size: int) -> tuple[Factor | None, Factor | None]:
    """The outer part of a factor that a dimension of `size` takes, and the inner rest."""
    if size % factor.size == 0:
        return factor, None
    if factor.size % size:
        return None, None
    inner = factor.size // size
    return Factor(factor.axis, factor.stride * inner, size), factor._replace(size=inner)


def _merge(dim: Sequence[Factor]) -> tuple[Factor, ...]:
    """Neighbouring digits of one axis as one digit."""
    merged: list[Factor] = []
    for factor in dim:
        last = merged[-1] if merged else None
        if last and last.axis == factor.axis and last.stride == factor.stride * factor.size:
            merged[-1] = factor._replace(size=last.size * factor.size)
        elif last and last.axis is None and factor.axis is None:
            merged[-1] = Factor(None, 1, last.size * factor.size)
        else:
            merged.append(factor)
    return tuple(merged)
