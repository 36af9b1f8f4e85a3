"""The primitives that compute one array, and what their result is in terms of norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .arithmetic import (
    add,
    divide,
    invert,
    multiply,
    raise_to,
    root,
    square,
    subtract,
    total,
)
from .axes import broadcast, is_uniform, list_real
from .norms import find_spread
from .values import Constant, Inverse, Notes, Parameter, Root, Shift, Spread, Sum, View

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
