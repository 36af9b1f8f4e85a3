"""What is known of each array in a traced function: facts, and views of what they are about.

A fact is an object of its own: two views hold the same numbers, up to shape and precision, if and
only if they hold the same fact.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .axes import Dims, Factor, name_axes

SCALE, BIAS = "scale", "bias"

Axes = frozenset[Factor]


@dataclass(frozen=True, eq=False)
class Other:
    """An array of which nothing more is known.

    Attributes:
        depends: whether it depends on the function's arguments beside the parameters.
        is_input: whether it is such an argument, or one plus a constant.
    """

    depends: bool
    is_input: bool = False


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
    """An array times a parameter, where it is not known yet whether it will be normalised."""

    of: Any
    scale: View


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
    """What was met on the way; lists that grow.

    Attributes:
        found: places of norms.
        uses: leaves used in any other way, and the primitive that did.
        opaque: primitives that cannot be looked into, and the leaves among their operands.
        weighted: arrays times a parameter; `normalised` are those that were normalised after it.
    """

    found: list[Found] = field(default_factory=list)
    uses: list[tuple[int, str]] = field(default_factory=list)
    opaque: list[tuple[str, frozenset[int]]] = field(default_factory=list)
    weighted: list[Weighted] = field(default_factory=list)
    normalised: list[Weighted] = field(default_factory=list)

    def extend(self, other: Notes) -> None:
        """Takes over all that another one holds."""
        self.found.extend(other.found)
        self.uses.extend(other.uses)
        self.opaque.extend(other.opaque)
        self.weighted.extend(other.weighted)
        self.normalised.extend(other.normalised)

    def list_uses(self, leaf: int) -> list[str]:
        """The primitives that use a leaf in another way than norms do."""
        settled = set(map(id, self.normalised))
        lost = [fact.scale.fact for fact in self.weighted if id(fact) not in settled]
        uses = [name for own, name in self.uses if own == leaf]
        return uses + ["mul" for fact in lost if leaf in fact.leaves]


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


def lose(name: str, operands: Sequence[View], shapes: Sequence[Sequence[int]], notes: Notes) -> Any:
    """The results of a primitive that is not followed; its parameters have another use."""
    notes.uses.extend((leaf, name) for view in operands for leaf in list_leaves(view.fact))
    if all(isinstance(view.fact, Constant) for view in operands):
        return [new_value(Constant(), shape) for shape in shapes]
    is_needed = any(depends(view.fact) for view in operands)
    return [new_value(Other(is_needed), shape) for shape in shapes]
