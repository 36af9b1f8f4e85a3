"""What an array was made of where it is no step of a norm, so that nothing is missed in silence.

A gate, a slice or a table between a division by a root and a parameter hides a norm. The trail of
an array tells of both: the parameters that multiplied it, and the dimensions along which a root
divided it. Where they meet, the parameter may be a norm's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from .axes import NONE, Dims, count, cover, list_real, name_axes, repeats, stretch
from .facts import (
    Axes,
    Centred,
    Constant,
    Inverse,
    Magnitude,
    Normalised,
    Notes,
    Other,
    Parameter,
    Root,
    Square,
    Sum,
    View,
    Weighted,
    depends,
    list_leaves,
)

Places = frozenset[int]

_PRODUCTS = frozenset({"mul", "div"})
_SUMS = frozenset({"add", "add_any", "sub"})
_ROOTS = frozenset({"sqrt", "rsqrt", "pow", "log"})  # exp(-0.5 * log(x)) is one
# One number of the result for one of each operand.
_ELEMENTWISE = _SUMS | _ROOTS | {
    "abs", "acos", "acosh", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil",
    "clamp", "convert_element_type", "copy", "cos", "cosh", "digamma", "div", "eq", "erf",
    "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "imag", "integer_pow",
    "is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne",
    "neg", "nextafter", "not", "or", "real", "rem", "round", "select_n", "sign", "sin", "sinh",
    "square", "tan", "tanh", "xor",
}  # fmt: skip
# After what mixes all channels, nothing before it counts.
_MIXING = frozenset({"dot_general", "ragged_dot", "ragged_dot_general", "conv_general_dilated"})
_WRITES = {"scatter-mul": "multiplies", "scatter-add": "is added to", "scatter-sub": "is taken off"}
_LOOKUPS = frozenset({"gather", "dynamic_slice"})


class Trail(NamedTuple):
    """What a view was made of; dimensions are counted from the first, 0.

    Attributes:
        weights: parameters that multiplied it, and the dimensions along which each varies; all that
            it was made of where it depends on no argument.
        divided: dimensions along which a root divided it that is the same along them.
        is_root: whether it is such a root.
        is_scaled: whether a parameter multiplied it after that division.
        table: a parameter of which it holds rows that were looked up.
    """

    weights: frozenset[tuple[frozenset[int], Places]] = frozenset()
    divided: Places = frozenset()
    is_root: bool = False
    is_scaled: bool = False
    table: frozenset[int] = frozenset()


def read_trail(view: View) -> Trail:
    """What a view was made of."""
    fact, dims = view
    if isinstance(fact, Other):
        weights = frozenset((leaves, _place(dims, axes)) for leaves, axes in fact.weights)
        divided = _place(dims, fact.divided)
        return Trail(weights, divided, fact.is_root, fact.is_scaled, fact.table)
    if isinstance(fact, Parameter):
        return Trail(frozenset({(fact.leaves, _list_varying(dims))}))
    if isinstance(fact, Weighted):
        own = read_trail(View(fact.of, dims))
        if fact.is_doubtful:
            return own._replace(is_scaled=True)
        return own._replace(weights=own.weights | read_trail(fact.scale).weights)
    if isinstance(fact, Normalised):
        is_kernel = not depends(fact.of) and not getattr(fact.spread, "is_mean", True)
        is_closed = is_kernel or fact.has_bias
        divided = frozenset[int]() if is_closed else _place(dims, fact.axes)
        own = read_trail(View(fact.of, dims)).weights if is_kernel else frozenset()
        return Trail(own, divided, is_scaled=fact.scale is not None)
    if isinstance(fact, Inverse | Root):
        scale = fact.scale if isinstance(fact, Inverse) else None
        weights = frozenset() if scale is None else read_trail(View(scale, dims)).weights
        return Trail(weights, is_root=depends(fact.of))
    if isinstance(fact, Centred | Magnitude | Square | Sum):
        own = read_trail(View(fact.of, dims))
        return own._replace(weights=frozenset()) if depends(fact.of) else own
    return Trail()


def follow(trail: Trail, dims: Dims, is_needed: bool) -> View:
    """An array that is no step of a norm, with these dimensions and this trail."""
    named = ((own, _name(dims, places)) for own, places in trail.weights)
    weights = frozenset((own, axes) for own, axes in named if axes)
    divided = _name(dims, trail.divided)
    is_scaled = trail.is_scaled and bool(divided)
    return View(
        Other(is_needed, False, weights, divided, trail.is_root, is_scaled, trail.table), dims
    )


def shift(view: View, dims: Dims, by: int = 0) -> View:
    """Some entries or a stack of an array, its dimensions `by` places further on."""
    trail = read_trail(view)

    def move(places: Places) -> Places:
        return frozenset(place + by for place in places if place + by >= 0)

    weights = frozenset((leaves, move(places)) for leaves, places in trail.weights)
    trail = trail._replace(weights=weights, divided=move(trail.divided))
    return follow(trail, dims, depends(view.fact))


def weigh(view: View, parameter: View, notes: Notes) -> View:
    """An array times a parameter, which is no scale of a norm; its root mean square may follow."""
    trail, (own,) = read_trail(view), read_trail(parameter).weights
    is_doubtful = bool(own[1] & trail.divided) and not trail.is_scaled
    notes.weighted.append(Weighted(view.fact, parameter, is_doubtful))
    return View(notes.weighted[-1], view.dims)


def lose(eqn: Any, ins: Sequence[View], notes: Notes, is_opaque: bool = False) -> list[View]:
    """The results of a primitive that is no step of a norm; its parameters have another use.

    Args:
        eqn: the equation.
        ins: what is known of its operands.
        notes: takes the uses of parameters.
        is_opaque: whether the primitive may compute a norm that cannot be seen.
    """
    name, shapes = eqn.primitive.name, [tuple(getattr(v.aval, "shape", ())) for v in eqn.outvars]
    notes.uses.extend((leaf, name) for view in ins for leaf in list_leaves(view.fact))
    if name == "dot_general" and not eqn.params["dimension_numbers"][0][0]:
        name = "mul"  # nothing is summed
    if name in _ELEMENTWISE:
        return [blend(name, ins, shapes[0], notes)]
    is_diagonal = name in _MIXING and _note_kernel(eqn, ins, notes)
    if all(isinstance(view.fact, Constant) for view in ins):
        return [View(Constant(), name_axes(object(), shape)) for shape in shapes]
    if name in _WRITES and not depends(ins[2].fact):
        array, how = read_trail(ins[0]), f"{_WRITES[name]} entries of a normalised array"
        if array.divided and not (name == "scatter-mul" and array.is_scaled):
            notes.uncertain.extend((leaves, how) for leaves, _ in read_trail(ins[2]).weights)
    trail = Trail(is_scaled=is_diagonal) if name in _MIXING else _gather_trail(name, ins)
    is_needed = any(depends(view.fact) for view in ins)
    results: list[View] = []
    for shape in shapes:
        every = frozenset(range(len(shape)))
        same = all(len(shape) == len(v.dims) for v in ins if read_trail(v).divided)
        is_anywhere = is_opaque or is_diagonal or (trail.divided and not same)
        divided = every if is_anywhere else trail.divided
        weights = frozenset() if is_needed else frozenset((own, every) for own, _ in trail.weights)
        own = trail._replace(weights=weights, divided=divided)
        results.append(follow(own, name_axes(object(), shape), is_needed))
    return results


def _note_kernel(eqn: Any, ins: Sequence[View], notes: Notes) -> bool:
    """Notes a scale within the kernel that follows its norm; whether there is nothing else in it.

    A diagonal matrix, say, has more entries than the parameters that it was made of.
    """
    name, params, is_diagonal = eqn.primitive.name, eqn.params, False
    if name == "conv_general_dilated":  # of each channel alone, one position
        is_scale = params["feature_group_count"] > 1 and len(_list_varying(ins[1].dims)) == 1
        summed = [range(len(view.dims)) for view in ins] if is_scale else [(), ()]
    else:
        summed = params["dimension_numbers"][0] if name == "dot_general" else [(), ()]
    for one, other in ((0, 1), (1, 0)):
        trail, kernel = read_trail(ins[one]), read_trail(ins[other])
        divided = {b for a, b in zip(summed[one], summed[other], strict=True) if a in trail.divided}
        if not divided or trail.is_scaled or depends(ins[other].fact):
            continue
        size = math.prod(map(count, ins[other].dims))
        is_small = all(notes.count(leaves) < size for leaves, _ in kernel.weights)
        is_diagonal |= bool(kernel.weights) and (is_small or name == "conv_general_dilated")
        wide = len(_list_varying(ins[other].dims))
        for leaves, places in kernel.weights:
            if is_diagonal or (places and places <= divided and len(places) < wide):
                notes.uncertain.append((leaves, "multiplies the kernel after a norm"))
    return is_diagonal


def _gather_trail(name: str, ins: Sequence[View]) -> Trail:
    """The trail of an array that holds some of the entries of others."""
    trails = [read_trail(view) for view in ins]
    is_lookup = name in _LOOKUPS and not depends(ins[0].fact)
    rows = [own for own, _ in trails[0].weights] if is_lookup else []
    return unite_trails(trails)._replace(table=frozenset[int]().union(*rows))


def unite_trails(trails: Sequence[Trail]) -> Trail:
    """The trail of an array in which each of several others may be."""
    return Trail(
        frozenset().union(*(trail.weights for trail in trails)),
        frozenset().union(*(trail.divided for trail in trails)),
        any(trail.is_root for trail in trails),
        all(trail.is_scaled for trail in trails if trail.divided),
        frozenset().union(*(trail.table for trail in trails)),
    )


def blend(name: str, ins: Sequence[View], shape: Sequence[int], notes: Notes) -> View:
    """An elementwise result that is no step of a norm."""
    views = [View(view.fact, stretch(view.dims, shape)) for view in ins]
    dims = _merge(views, shape)
    if all(isinstance(view.fact, Constant) for view in views):
        return View(Constant(), dims)
    if name == "select_n":
        views = views[1:]
    trails = [read_trail(view) for view in views]
    needed = [depends(view.fact) for view in views]
    is_product, is_needed = name in _PRODUCTS, any(needed)
    others = [view for view in views if not isinstance(view.fact, Constant)]
    if name in _SUMS and len(others) > 1:
        # A BatchNorm takes a running mean off whatever it gets, and adds the mean of that to it.
        is_open = [
            isinstance(v.fact, Normalised) or (name != "sub" and not isinstance(v.fact, Sum))
            for v in views
        ]
        _add_bias(trails, needed, is_open, notes)
    united = unite_trails(trails)
    divided, is_scaled = united.divided, united.is_scaled
    rows = [trail.table for trail in trails if divided and not trail.divided]
    own = _divide(views, trails, needed) if is_product else frozenset[int]()
    if own:
        divided, is_scaled = divided | own, False
    is_one = name in ("neg", "select_n") and len(others) == 1
    is_kept = is_product or is_one or not is_needed
    weights = united.weights if is_kept else frozenset()
    if divided and is_product and not is_scaled:
        is_met = _add_scale(weights, divided, frozenset[int]().union(*rows), notes)
        weights = frozenset() if is_met else weights
        is_scaled = is_met and not own
    is_root = is_needed and not own and all(
        trail.is_root for trail, is_own in zip(trails, needed, strict=True) if is_own
    )  # fmt: skip
    is_root = is_root or (is_needed and name in _ROOTS)
    table = united.table if len(others) == 1 else frozenset()
    return follow(Trail(weights, divided, is_root, is_scaled, table), dims, is_needed)


def _add_scale(
    weights: Iterable[tuple[frozenset[int], Places]],
    divided: Places,
    table: frozenset[int],
    notes: Notes,
) -> bool:
    """Notes the parameters that vary where a root divided; whether there is one."""
    met = frozenset[int]().union(*(leaves for leaves, places in weights if places & divided))
    if met:
        notes.uncertain.append((met, "multiplies an array that may be normalised"))
    if table:
        notes.uncertain.append((table, "holds rows that multiply a normalised array"))
    return bool(met or table)


def _add_bias(
    trails: Sequence[Trail], needed: Sequence[bool], is_open: Sequence[bool], notes: Notes
) -> None:
    """Notes a parameter that lies just where the other operand of a sum was divided.

    After a scale that counts only where `is_open`.
    """
    for one, other in ((0, 1), (1, 0)):
        divided = trails[one].divided if is_open[one] or not trails[one].is_scaled else frozenset()
        for leaves, places in trails[other].weights:
            if not needed[other] and places and places <= divided:
                notes.uncertain.append((leaves, "is added to an array that may be normalised"))


def _divide(views: Sequence[View], trails: Sequence[Trail], needed: Sequence[bool]) -> Places:
    """Dimensions along which one operand varies, and a root by which it is multiplied does not."""
    divided = set[int]()
    for view, trail in zip(views, trails, strict=True):
        if not trail.is_root:
            continue
        own = frozenset[int]().union(*(places for _, places in trail.weights))
        varies = _list_varying(view.dims) - own
        for other, its, is_needed in zip(views, trails, needed, strict=True):
            if is_needed and not its.is_root:
                divided |= _list_varying(other.dims) - varies
    return frozenset(divided)


def _merge(views: Sequence[View], shape: Sequence[int]) -> Dims:
    """The dimensions of an elementwise result: of the operand that varies most along each."""
    order = sorted(views, key=lambda view: not depends(view.fact))
    dims = tuple(
        max((view.dims[i] for view in order), key=lambda dim: count(list_real(dim)))
        for i in range(len(shape))
    )
    return name_axes(object(), shape) if repeats(dims) else dims


def _list_varying(dims: Dims) -> Places:
    return frozenset(i for i, dim in enumerate(dims) if list_real(dim))


def _place(dims: Dims, axes: Axes) -> Places:
    """The dimensions in which some axes lie."""
    return frozenset(
        i
        for i, dim in enumerate(dims)
        if axes and any(cover(factor, axes) != NONE for factor in list_real(dim))
    )


def _name(dims: Dims, places: Places) -> Axes:
    """The axes that lie in some dimensions."""
    return frozenset(factor for i in places for factor in list_real(dims[i]))
