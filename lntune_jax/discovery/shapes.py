"""Primitives that move, repeat or pick entries: what is known of an array stays known."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from .axes import Dims, broadcast, count, is_uniform, list_real, name_axes, reshape
from .values import (
    Centred,
    Constant,
    Inverse,
    Normalised,
    Other,
    Parameter,
    Root,
    Spread,
    Square,
    Sum,
    View,
    Weighted,
    depends,
)

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
