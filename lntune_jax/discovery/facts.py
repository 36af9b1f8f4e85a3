"""What is known of each array in a traced function: facts, and views of what they are about.

A fact is an object of its own: two views hold the same numbers, up to shape and precision, if and
only if they hold the same fact.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Collection, Hashable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from .axes import Dims, Factor, broadcast, count, list_real, name_axes

SCALE, BIAS = "scale", "bias"

Axes = frozenset[Factor]


@dataclass(frozen=True, eq=False)
class Other:
    """An array that is no step of a norm, and what it was made of since the last dense layer.

    Attributes:
        depends: whether it depends on the function's arguments beside the parameters.
        is_input: whether it is such an argument, or one plus a constant.
        weights: parameters that it was multiplied by or, where it does not depend on an argument,
            made of; each with the axes along which it varies.
        divided: axes along which it was divided by a root that is the same along them.
        is_root: whether it is such a root.
        is_scaled: whether a parameter has multiplied it after that division.
        table: a parameter of which it holds rows that were looked up.
    """

    depends: bool
    is_input: bool = False
    weights: frozenset[tuple[frozenset[int], Axes]] = frozenset()
    divided: Axes = frozenset()
    is_root: bool = False
    is_scaled: bool = False
    table: frozenset[int] = frozenset()


@dataclass(frozen=True, eq=False)
class Constant:
    """An array that depends neither on parameters nor on arguments, and its value if known."""

    value: float | None = None


@dataclass(frozen=True, eq=False)
class Parameter:
    """A parameter plus `offset`, or one of several; `layers` are axes of which it is one entry."""

    leaves: frozenset[int]
    offset: float = 0.0
    layers: frozenset[tuple[Hashable, int]] = frozenset()


@dataclass(frozen=True, eq=False)
class Square:
    """The square of another array."""

    of: Any


@dataclass(frozen=True, eq=False)
class Magnitude:
    """The absolute values of another array, which have the same squares."""

    of: Any


@dataclass(frozen=True, eq=False)
class Sum:
    """The sum, or the mean, of an array over some of its axes, up to the sign."""

    of: Any
    axes: Axes
    is_mean: bool = False


@dataclass(frozen=True, eq=False)
class Spread:
    """The sum, or the mean, of squares; with `is_centred` of the differences from the mean."""

    of: Any
    axes: Axes
    is_mean: bool = False
    is_centred: bool = False


@dataclass(frozen=True, eq=False)
class Running:
    """A variance that was given: a running statistic."""

    of: Any


@dataclass(frozen=True, eq=False)
class Root:
    """The square root of a spread."""

    of: Spread | Running


@dataclass(frozen=True, eq=False)
class Inverse:
    """One over the root of a spread; with a scale, times that, and then the view is the scale's."""

    of: Spread | Running
    scale: Parameter | None = None


@dataclass(frozen=True, eq=False)
class Centred:
    """An array less its mean over some axes."""

    of: Any
    axes: Axes


@dataclass(frozen=True, eq=False)
class Shift:
    """A mean times the inverse, up to the sign; with a bias, plus that, and the view is its."""

    of: Spread | Running
    bias: Parameter | None = None


@dataclass(frozen=True, eq=False)
class Weighted:
    """An array times a parameter, where it is not known yet whether it will be normalised.

    Attributes:
        of: the array.
        scale: the parameter, in the array's shape.
        is_doubtful: whether the array may be normalised already.
        origin: the same before it was reshaped.
    """

    of: Any
    scale: View
    is_doubtful: bool = False
    origin: Weighted | None = None


@dataclass(frozen=True, eq=False)
class Normalised:
    """An array over its root mean square, with what has been done to it since.

    Attributes:
        of: the array itself.
        spread: what it was divided by the root of.
        axes: over which the statistics were taken.
        is_centred: whether the mean was taken off.
        scale: the kind of norm and the sizes of the scale, where there was one.
        has_bias: whether a bias was added.
    """

    of: Any
    spread: Spread | Running
    axes: Axes
    is_centred: bool
    scale: tuple[str, tuple[int, ...]] | None = None
    has_bias: bool = False


class View(NamedTuple):
    """A fact, and how the array at hand shows it."""

    fact: Any
    dims: Dims


class Found(NamedTuple):
    """One place where a parameter scales or shifts a normalised activation."""

    parameter: Parameter
    role: str
    kind: str
    axes: tuple[int, ...]


@dataclass(frozen=True)
class Notes:
    """What was met on the way; collections that grow.

    Attributes:
        found: places of norms.
        uses: leaves used in any other way, and the primitive that did.
        opaque: primitives that cannot be looked into, and the leaves among their operands.
        uncertain: leaves that may be a norm's, and what they do.
        weighted: arrays times a parameter; `normalised` are those that were normalised after it.
        unscaled: arrays times a parameter whose own statistics divided them, and these; `scaled`
            are the statistics of norms that have a scale, and the scale.
        values: the results of the expressions met so far. Two equal ones are one value.
        sizes: how many floating-point numbers each leaf holds.
    """

    found: list[Found] = field(default_factory=list)
    uses: list[tuple[int, str]] = field(default_factory=list)
    opaque: list[tuple[str, frozenset[int]]] = field(default_factory=list)
    uncertain: list[tuple[frozenset[int], str]] = field(default_factory=list)
    weighted: list[Weighted] = field(default_factory=list)
    normalised: list[Weighted] = field(default_factory=list)
    unscaled: list[tuple[Parameter, Any]] = field(default_factory=list)
    scaled: list[tuple[Any, frozenset[int]]] = field(default_factory=list)
    values: MutableMapping[Hashable, Any] = field(default_factory=dict)
    sizes: Mapping[int, int] = field(default_factory=dict)

    def draft(self) -> Notes:
        """Empty ones that know the same values: thrown away, or taken over by `extend`."""
        return Notes(values=ChainMap({}, self.values), sizes=self.sizes)

    def extend(self, other: Notes) -> None:
        """Takes over all that a draft holds."""
        for own in fields(self):
            if isinstance(held := getattr(self, own.name), list):
                held.extend(getattr(other, own.name))
        assert isinstance(other.values, ChainMap), "not a draft"
        self.values.update(other.values.maps[0])

    def count(self, leaves: frozenset[int]) -> float:
        """How many numbers some leaves hold; of packed integers no one knows."""
        return sum(self.sizes.get(leaf, math.inf) for leaf in leaves)

    def spend(self, views: Sequence[View]) -> None:
        """Notes that arrays times a parameter are used otherwise than by dividing them."""
        held = [view.fact.scale.fact for view in views if isinstance(view.fact, Weighted)]
        self.uses.extend((leaf, "mul") for parameter in held for leaf in parameter.leaves)

    def list_uses(self, leaf: int) -> list[str]:
        """The primitives that use a leaf in another way than norms do."""
        uses = [name for own, name in self.uses if own == leaf]
        return uses + ["mul" for fact in self._list_lost() if leaf in fact.scale.fact.leaves]

    def _list_lost(self) -> list[Weighted]:
        """Arrays times a parameter that were not normalised after it."""
        settled = set[int]()
        for fact in self.normalised:
            own: Weighted | None = fact
            while own is not None:
                settled.add(id(own))
                own = own.origin
        return [fact for fact in self.weighted if id(fact) not in settled]

    def list_uncertain(self, ambiguous: Collection[int] = ()) -> dict[int, str]:
        """What each leaf does that may be a norm's; a scale that is ambiguous settles nothing."""
        settled = {id(spread) for spread, own in self.scaled if own.isdisjoint(ambiguous)}
        before = [
            (parameter.leaves, "multiplies an array before its root mean square is taken")
            for parameter, spread in self.unscaled
            if id(spread) not in settled
        ]
        doubts = [
            (fact.scale.fact.leaves, "multiplies an array that may be normalised")
            for fact in self._list_lost()
            if fact.is_doubtful
        ]
        every = [*before, *doubts, *self.uncertain]
        return {leaf: how for leaves, how in every for leaf in leaves}


def new_value(fact: Any, shape: Sequence[int]) -> View:
    """A view of an array whose axes are its own."""
    return View(fact, name_axes(object(), shape))


def depends(fact: Any) -> bool:
    """Whether an array depends on the function's arguments beside the parameters."""
    while not isinstance(fact, Other):
        if isinstance(fact, Constant | Parameter):
            return False
        fact = fact.of
    return fact.depends


def list_leaves(fact: Any) -> frozenset[int]:
    """The parameters that an array is, or holds without their being known as a norm's yet."""
    if isinstance(fact, Parameter):
        return fact.leaves
    held = fact.scale if isinstance(fact, Inverse) else None
    held = fact.bias if isinstance(fact, Shift) else held
    return frozenset() if held is None else held.leaves


# Views of parts, and of several arrays.


def fit(view: View, shape: Sequence[int]) -> View:
    """The same array in a part of it, or of the whole, as `shard_map` and its collectives give."""
    if len(view.dims) != len(shape):
        return View(view.fact, name_axes(object(), shape))
    if tuple(map(count, view.dims)) == tuple(shape):
        return view
    dims = tuple(
        dim if count(dim) == size else tuple(f._replace(stride=1, size=size) for f in dim[:1])
        for dim, size in zip(view.dims, shape, strict=True)
    )
    return View(view.fact, dims)


def take(view: View, sizes: Sequence[int]) -> View:
    """A part of a parameter: `sizes` entries along each dimension; one is an entry of a stack."""
    pairs = list(zip(view.dims, sizes, strict=True))
    layers = {f.axis for dim, size in pairs if size == 1 for f in list_real(dim)}
    dims = tuple(dim if count(dim) == size else _shorten(dim, size) for dim, size in pairs)
    fact = view.fact
    if any(map(list_real, view.dims)) and dims != view.dims:  # other numbers
        fact = replace(fact)
    if layers and isinstance(fact, Parameter):
        fact = replace(fact, layers=fact.layers | layers)
    return View(fact, dims)


def _shorten(dim: Sequence[Factor], size: int) -> tuple[Factor, ...]:
    """A dimension of which some entries are taken."""
    if size == 1 or not list_real(dim):
        return broadcast(size)
    one = dim[0] if len(dim) == 1 else Factor((object(), 0), 1, size)
    return (one._replace(size=size),)


def drop(view: View) -> View:
    """One entry along the first dimension, as each turn of a loop gets."""
    picked = take(view, [1, *map(count, view.dims[1:])])
    fact = picked.fact
    if isinstance(fact, Parameter):  # a stack of one is a stack
        axes = {factor.axis for factor in view.dims[0] if factor.axis is not None}
        fact = replace(fact, layers=fact.layers | axes)
    return View(fact, picked.dims[1:])


def unite(views: Sequence[View]) -> View | None:
    """One of several parameters, which lie on the same axes of their own."""
    facts = [view.fact for view in views]
    if not all(isinstance(fact, Parameter) for fact in facts):
        return None
    places = {(fact.offset, _list_places(view)) for fact, view in zip(facts, views, strict=True)}
    if len(places) > 1:
        return None
    leaves = frozenset[int]().union(*(fact.leaves for fact in facts))
    layers = frozenset[tuple[Hashable, int]]().union(*(fact.layers for fact in facts))
    return View(replace(facts[0], leaves=leaves, layers=layers), views[0].dims)


def _list_places(view: View) -> Hashable:
    """The dimensions of a parameter, without whose axes they are."""
    return tuple(tuple((f.axis and f.axis[1], *f[1:]) for f in dim) for dim in view.dims)


def join_branches(views: Sequence[View]) -> View | None:
    """What is known of an array that is one of several."""
    return views[0] if all(view == views[0] for view in views) else unite(views)
