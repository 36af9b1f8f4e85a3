"""What each primitive does to what is known of its operands."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from .axes import Dims, broadcast, count, is_uniform, list_real, name_axes, reshape, stretch
from .facts import (
    Centred,
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
    depends,
)
from .norms import find_spread, plus, scale, times_inverse

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


_BINARY = {"mul": multiply, "div": divide, "add": add, "add_any": add, "sub": subtract}
_BOUNDS = frozenset({"max", "min", "clamp", "abs"})
_OTHERS = ("integer_pow", "pow", "square", "sqrt", "rsqrt", "reduce_sum", "neg", "dot_general")
COMPUTED = frozenset({*_BINARY, *_BOUNDS, *_OTHERS})


def compute(name: str, eqn: Any, ins: list[View], notes: Notes) -> View | None:
    """The result of the primitive of this name; None where nothing is known of it."""
    shape = eqn.outvars[0].aval.shape
    if name in _BINARY:
        return _BINARY[name](ins[0], ins[1], shape, notes)
    if name == "integer_pow":
        return raise_to(ins[0], eqn.params["y"], notes)
    if name == "pow":
        return raise_to(ins[0], getattr(ins[1].fact, "value", None), notes)
    if name == "square":
        return square(ins[0], notes)
    if name == "sqrt":
        return root(ins[0], notes)
    if name == "rsqrt":
        found = root(ins[0], notes)
        return found and invert(found)
    if name == "reduce_sum":
        return total(ins[0], eqn.params["axes"], notes)
    if name == "neg":
        return ins[0] if isinstance(ins[0].fact, Sum | Spread | Shift) else None
    if name in _BOUNDS:
        kept = [view for view in ins if isinstance(view.fact, Spread | Root | Inverse)]
        others = [view for view in ins if not any(view is other for other in kept)]
        bounded = len(kept) == 1 and all(is_uniform(view.dims) for view in others)
        return kept[0] if bounded else None
    if name == "dot_general":
        return _multiply_matrices(eqn, ins, notes)
    return None


def _multiply_matrices(eqn: Any, ins: list[View], notes: Notes) -> View | None:
    """A dot product: elementwise where nothing is summed, squares of an array with itself."""
    (summed, batch), (one, other) = _read_dot(eqn), ins
    if not summed[0]:
        views, frees = [], [_list_free(v, b) for v, b in zip(ins, batch, strict=True)]
        for place, view in enumerate(ins):
            parts = [[view.dims[i] for i in batch[place]]]
            for side, free in enumerate(frees):
                sizes = [eqn.invars[side].aval.shape[i] for i in free]
                is_own = side == place
                parts.append([view.dims[i] for i in free] if is_own else [*map(broadcast, sizes)])
            views.append(View(view.fact, tuple(dim for part in parts for dim in part)))
        return multiply(views[0], views[1], eqn.outvars[0].aval.shape, notes)
    is_square = one.fact is other.fact and one.dims == other.dims
    rest = len(one.dims) - len(summed[0]) - len(batch[0])
    if is_square and summed[0] == summed[1] and batch[0] == batch[1] and not rest:
        axes = frozenset(f for i in summed[0] for f in list_real(one.dims[i]))
        if not isinstance(one.fact, Parameter | Constant):
            return View(find_spread(one.fact, axes), tuple(one.dims[i] for i in batch[0]))
    return None


def _read_dot(eqn: Any) -> tuple[Any, Any]:
    summed, batch = eqn.params["dimension_numbers"]
    return tuple(map(tuple, summed)), tuple(map(tuple, batch))


def _list_free(view: View, batch: Sequence[int]) -> list[int]:
    return [i for i in range(len(view.dims)) if i not in batch]


# The same numbers in another precision, place or layout.
_PLACED = (
    "sharding_constraint reshard mesh_cast device_put optimization_barrier layout_constraint "
    "with_memory_space_constraint relayout"
)
_SHARED = "psum pmean psum_invariant all_gather all_gather_invariant pvary pcast pbroadcast"
_CAST = "convert_element_type reduce_precision copy copy_p stop_gradient name real conj"
_STATISTICS = (Sum, Spread, Root, Inverse)  # NaN in their place, where they are none, is no matter
_MASKED = (Other, Square, Centred, Normalised)  # nor are zeros in place of what does not count


def keep(ins: Sequence[View], eqn: Any) -> list[View] | None:
    """Each result shows what the operand in its place does."""
    if len(ins) != len(eqn.outvars):
        return None
    if not all(
        _is_inexact(new) or not _is_inexact(old)
        for old, new in zip(eqn.invars, eqn.outvars, strict=True)
    ):
        return None  # rounded to integers
    return [fit(view, var.aval.shape) for view, var in zip(ins, eqn.outvars, strict=True)]


def fit(view: View, shape: Sequence[int]) -> View:
    """The same array in a part of it, or of the whole, as `shard_map` and its collectives give."""
    if len(view.dims) != len(shape):
        return View(view.fact, name_axes(object(), shape))
    dims = tuple(
        dim if count(dim) == size else tuple(f._replace(stride=1, size=size) for f in dim[:1])
        for dim, size in zip(view.dims, shape, strict=True)
    )
    return View(view.fact, dims)


def move(ins: Sequence[View], eqn: Any) -> list[View] | None:
    """Broadcasts, transposes and reshapes of all kinds."""
    view, shape = ins[0], eqn.outvars[0].aval.shape
    if isinstance(view.fact, Weighted):  # two views in one
        return None
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
    return None if dims is None else [View(view.fact, dims)]


def pick(ins: Sequence[View], eqn: Any) -> list[View] | None:
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
    left = View(picked.fact, tuple(dim for i, dim in enumerate(picked.dims) if i not in gone))
    return [left] * len(eqn.outvars)


def take(view: View, sizes: Sequence[int]) -> View:
    """A part of a parameter: `sizes` entries along each dimension; one is an entry of a stack."""
    pairs = list(zip(view.dims, sizes, strict=True))
    layers = {f.axis for dim, size in pairs if size == 1 for f in list_real(dim)}
    dims = tuple(
        dim if count(dim) == size else tuple(f._replace(size=size) for f in dim[:1] if size > 1)
        for dim, size in pairs
    )
    fact = view.fact
    if layers and isinstance(fact, Parameter):
        fact = replace(fact, layers=fact.layers | layers)
    return View(fact, dims)


def drop(view: View) -> View:
    """One entry along the first dimension, as each turn of a loop gets."""
    picked = take(view, [1, *map(count, view.dims[1:])])
    fact = picked.fact
    if isinstance(fact, Parameter):  # a stack of one is a stack
        axes = {factor.axis for factor in view.dims[0] if factor.axis is not None}
        fact = replace(fact, layers=fact.layers | axes)
    return View(fact, picked.dims[1:])


def stack(ins: Sequence[View], eqn: Any) -> list[View] | None:
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
    return [View(united.fact, tuple(dims))]


def unite(views: Sequence[View]) -> View | None:
    """One of several parameters, which lie on the same axes of their own."""
    facts = [view.fact for view in views]
    if not all(isinstance(fact, Parameter) for fact in facts):
        return None
    if (
        len({(fact.offset, _list_places(view)) for fact, view in zip(facts, views, strict=True)})
        > 1
    ):
        return None
    leaves = frozenset[int]().union(*(fact.leaves for fact in facts))
    layers = frozenset[tuple[Hashable, int]]().union(*(fact.layers for fact in facts))
    return View(replace(facts[0], leaves=leaves, layers=layers), views[0].dims)


def _list_places(view: View) -> Hashable:
    """The dimensions of a parameter, without whose axes they are."""
    return tuple(tuple((f.axis and f.axis[1], *f[1:]) for f in dim) for dim in view.dims)


def choose(ins: Sequence[View], eqn: Any) -> list[View] | None:
    """One of several arrays: the same one, one of several parameters, or an array with a mask."""
    del eqn
    found = join_branches(ins[1:])
    if found is not None:
        return [found]
    others = [v for v in ins[1:] if not (isinstance(v.fact, Constant) and is_uniform(v.dims))]
    if len(others) != 1:
        return None
    is_masked = any(isinstance(v.fact, Constant) and v.fact.value == 0 for v in ins[1:])
    kinds = _STATISTICS + (_MASKED if is_masked else ())
    return others if isinstance(others[0].fact, kinds) else None


def join_branches(views: Sequence[View]) -> View | None:
    """What is known of an array that is one of several."""
    first = views[0]
    if all(view.fact is first.fact and view.dims == first.dims for view in views):
        return first
    return unite(views)


def _read_gather(eqn: Any) -> Sequence[int] | None:
    """The sizes of the slice that a gather takes, where it takes only one."""
    numbers = eqn.params["dimension_numbers"]
    has_one = len(numbers.offset_dims) == len(eqn.outvars[0].aval.shape)
    is_plain = not getattr(numbers, "operand_batching_dims", ())
    return eqn.params["slice_sizes"] if has_one and is_plain else None


def _is_inexact(var: Any) -> bool:
    dtype = getattr(var.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


Rule = Callable[[Sequence[View], Any], list[View] | None]

RULES: dict[str, Rule] = (
    dict.fromkeys(f"{_CAST} {_PLACED} {_SHARED}".split(), keep)
    | dict.fromkeys(("transpose", "broadcast_in_dim", "squeeze", "reshape", "tile"), move)
    | dict.fromkeys(("slice", "dynamic_slice", "gather", "split", "unstack"), pick)
    | {"concatenate": stack, "stack": stack, "select_n": choose}
)
