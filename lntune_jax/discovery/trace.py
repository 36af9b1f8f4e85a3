"""Norms by what their parameters do: the function is traced, and its arithmetic read.

A parameter is a norm's scale or bias if it multiplies or shifts an array that was divided by the
root of its own mean square. Names, types and containers play no part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import ArgumentError, TraceWarning, TreeError
from ..messages import warn
from ..paths import Leaf, flatten, get_shape, join

_SELECTED = ("layer", "rms")


@dataclass(frozen=True)
class DiscoveredNorm:
    """One parameter that scales or shifts a normalised activation.

    Attributes:
        path: its leaf path, as in the keys of `trainable`.
        shape: its own shape.
        role: "scale" or "bias".
        kind: "layer" (LayerNorm) or "rms" (RMSNorm), whose statistics are taken over the axes on
            which the parameter lies; "batch", over all others; "group" (GroupNorm, InstanceNorm),
            over positions, or a part of the channels.
        axes: the activation's axes over which the statistics are taken, -1 the last.
        offset: what is added to the stored value first: 1 where a scale is kept as `w` and used as
            `1 + w`.
        layer_axes: axes of the leaf itself of which each use takes one entry: stacked layers.

    Example:
        >>> import jax
        >>> import lntune_jax as lnt
        >>> shape = jax.ShapeDtypeStruct((8,), "float32")
        >>> apply_fn = lambda params, x: jax.nn.standardize(x) * (1 + params["w"])
        >>> norm = lnt.discover_norms(apply_fn, {"w": shape}, shape).norms[0]
        >>> norm.role, norm.kind, norm.axes, norm.offset
        ('scale', 'layer', (-1,), 1.0)
    """

    path: str
    shape: tuple[int, ...]
    role: str
    kind: str
    axes: tuple[int, ...]
    offset: float = 0.0
    layer_axes: tuple[int, ...] = ()


@dataclass(frozen=True)
class DiscoveredNorms:
    """All that `discover_norms` found. `str()` gives a table.

    Iterating gives the leaf paths of LayerNorms and RMSNorms that are nothing else besides: what
    `norms=` takes everywhere in this library.

    Attributes:
        norms: a `DiscoveredNorm` for each leaf, in the tree's order, of every kind.
        ambiguous: leaf path to all its uses, of leaves that are a norm's in one place and something
            else in another (or a scale here and a bias there); not in `norms`.
        opaque: leaf path to the primitive, of leaves that go into a kernel which cannot be traced
            (Pallas, a foreign function, a callback): a norm may be in it.
        uncertain: leaf path to what it does, of leaves that may be a norm's: steps between hide
            whether the array that it multiplies, or is added to, is a normalised one.

    Example:
        >>> import jax
        >>> import lntune_jax as lnt
        >>> shape = jax.ShapeDtypeStruct((8,), "float32")
        >>> apply_fn = lambda params, x: jax.nn.standardize(x) * params["a"] + params["b"]
        >>> x = jax.ShapeDtypeStruct((2, 8), "float32")
        >>> list(lnt.discover_norms(apply_fn, {"a": shape, "b": shape}, x))
        ['a', 'b']
    """

    norms: tuple[DiscoveredNorm, ...]
    ambiguous: dict[str, tuple[str, ...]]
    opaque: dict[str, str]
    uncertain: dict[str, str]

    def __iter__(self) -> Iterator[str]:
        return (norm.path for norm in self.norms if norm.kind in _SELECTED)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __str__(self) -> str:
        rows = [("leaf", "shape", "role", "norm", "over axes", "stored")]
        rows += [_write_row(norm) for norm in self.norms]
        lines = _align(rows) if self.norms else ["no norm was found"]
        leaves = "leaf" if len(self) == 1 else "leaves"
        last = f"{len(self):,} {leaves} of LayerNorms and RMSNorms"
        return "\n".join([*lines, *self.describe_rest(), last])

    def describe_rest(self) -> list[str]:
        """A line for each leaf that is ambiguous, opaque or uncertain."""
        lines = [
            f"ambiguous: {path} is used as {', '.join(uses)}"
            for path, uses in self.ambiguous.items()
        ]
        lines += [
            f"opaque: {path} goes into {primitive}, which cannot be traced"
            for path, primitive in self.opaque.items()
        ]
        lines += [f"uncertain: {path} {how}" for path, how in self.uncertain.items()]
        return lines


def _write_row(norm: DiscoveredNorm) -> tuple[str, ...]:
    stored = [f"less {norm.offset:g}"] if norm.offset else []
    if norm.layer_axes:
        axes = ", ".join(map(str, norm.layer_axes))
        stored.append(f"layers along axis {axes}")
    return (
        norm.path,
        " x ".join(map(str, norm.shape)),
        norm.role,
        norm.kind,
        ", ".join(map(str, norm.axes)),
        ", ".join(stored),
    )


def _align(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def discover_norms(
    apply_fn: Callable[..., Any], params: Any, *args: Any, **kwargs: Any
) -> DiscoveredNorms:
    """Finds every parameter that scales or shifts a normalised activation, by tracing.

    `apply_fn(params, *args, **kwargs)` is traced on abstract values: nothing is computed, nothing
    compiled. What counts: division by the root of a mean of squares (`rsqrt`, `sqrt` or a power),
    with or without a mean taken off; a scale before or after it, as `w` or `1 + w`; through casts,
    reshapes, `jit`, `scan`, `while_loop`, `cond`, remat, custom gradients and `vmap`. A second
    factor or term on the same array (LayerScale, a gate, a position table) counts no more. What
    stands beside a division by a root in another way is named in a warning, not selected.

    Args:
        apply_fn: the forward pass; in a loss with a penalty on the parameters, or in a gradient,
            these have a second use, which makes them ambiguous.
        params: any pytree of arrays, numpy arrays or `jax.ShapeDtypeStruct`; what else is in it (a
            function, a string) is handed on as it is.
        *args: what else `apply_fn` takes: arrays may be abstract; numbers, strings and the like are
            handed on as they are.
        **kwargs: the same, by keyword.

    Returns:
        A `DiscoveredNorms`, whose `str()` is a table. Give it to
        `partition_params(params, config, norms=...)`, or to whatever else takes `norms`.

    Raises:
        TreeError: `apply_fn` is no function, or `params` holds no array or two leaves of one path.
        ArgumentError: `apply_fn` needs the values of an array, as a Python `if` on one does; or
            nothing that it returns depends on `params`.

    Warns:
        TraceWarning: parameters go into a kernel that cannot be traced, where they may be a norm's;
            a norm's parameter has another use; or a parameter multiplies what a root divided, or
            is added to it, but with steps between that hide whether it is a norm's.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> def apply_fn(params, x):  # names that say nothing
        ...     x = x @ params["a"]
        ...     return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * params["b"]
        >>> shape = lambda *axes: jax.ShapeDtypeStruct(axes, "float32")
        >>> params = {"a": shape(4, 8), "b": shape(8)}
        >>> norms = lnt.discover_norms(apply_fn, params, shape(2, 4))
        >>> print(norms)
        leaf  shape  role   norm  over axes  stored
        -------------------------------------------
        b     8      scale  rms   -1
        1 leaf of LayerNorms and RMSNorms
        >>> list(lnt.partition_params(params, lnt.LNTuningConfig(), norms=norms).trainable)
        ['b']
    """
    if not callable(apply_fn):
        raise TreeError(
            f"apply_fn must be a function of params and args, not {type(apply_fn).__name__}: pass "
            "what computes the model's output"
        )
    leaves, treedef = flatten(params)
    places = [i for i, leaf in enumerate(leaves) if get_shape(leaf.value) is not None]
    if not places:
        raise TreeError(
            f"params ({type(params).__name__}) holds no array: pass the tree of parameters that "
            "apply_fn takes, a dict, a list or a class that JAX knows as a pytree"
        )
    jaxpr = _trace(apply_fn, leaves, treedef, places, args, kwargs)
    found = _read(jaxpr, [leaves[i] for i in places])
    _warn(found)
    return found


def _trace(
    apply_fn: Callable[..., Any],
    leaves: Sequence[Leaf],
    treedef: Any,
    places: Sequence[int],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """The jaxpr of the function: the array leaves of `params` first, then the arrays of `args`."""
    from .walk import find_needed

    values, structure = jax.tree_util.tree_flatten((args, kwargs))
    arrays = [get_shape(v) is not None and not isinstance(v, np.generic) for v in values]
    inputs = [i for i, is_array in enumerate(arrays) if is_array]
    kinds = set[type]()  # of what the function returns beside arrays

    def call(parameters: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
        filled = dict(zip(places, parameters, strict=True))
        tree = treedef.unflatten([filled.get(i, leaf.value) for i, leaf in enumerate(leaves)])
        given = dict(zip(inputs, arrays, strict=True))
        own, keywords = structure.unflatten([given.get(i, v) for i, v in enumerate(values)])
        results = jax.tree_util.tree_leaves(apply_fn(tree, *own, **keywords))
        kinds.update(type(result) for result in results if not isinstance(result, jax.Array))
        return [result for result in results if isinstance(result, jax.Array)]

    parameters = [leaves[i].value for i in places]
    try:
        jaxpr = jax.make_jaxpr(call)(parameters, [values[i] for i in inputs])
    except jax.errors.JAXTypeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ArgumentError(
            f"apply_fn cannot be traced: it needs the values of an array ({reason}). In it, use "
            "jax.lax.cond or jnp.where for a branch and jnp for numpy; a number, a string or a "
            "boolean in args is handed on as it is"
        ) from error
    # Arrays may be in what JAX does not know as a tree.
    is_known = all(
        issubclass(kind, np.ndarray | np.generic | str | complex | Real) for kind in kinds
    )
    if is_known and not any(i < len(places) for i in find_needed(jaxpr)):
        raise ArgumentError(
            "apply_fn returns nothing that depends on params: return the model's output, computed "
            "with the params that apply_fn is given"
        )
    return jaxpr


def _read(jaxpr: Any, leaves: Sequence[Leaf]) -> DiscoveredNorms:
    """What the jaxpr says of each leaf."""
    from .axes import name_axes
    from .facts import Notes, Other, Parameter, View, new_value
    from .walk import walk

    floating = {i: a for i, a in enumerate(jaxpr.in_avals) if jnp.issubdtype(a.dtype, jnp.floating)}
    notes = Notes(sizes={i: aval.size for i, aval in floating.items()})
    shapes = [tuple(aval.shape) for aval in jaxpr.in_avals]
    views = [View(Parameter(frozenset({i})), name_axes(i, shapes[i])) for i in range(len(leaves))]
    views += [new_value(Other(True, is_input=True), shape) for shape in shapes[len(leaves) :]]
    notes.spend(walk(jaxpr, views, notes))
    norms: list[DiscoveredNorm] = []
    ambiguous: dict[str, tuple[str, ...]] = {}
    doubtful = set[int]()
    for i, leaf in enumerate(leaves):
        places = [found for found in notes.found if i in found.parameter.leaves]
        uses = [f"the {place.role} of a {place.kind} norm" for place in places]
        uses += notes.list_uses(i) if places else []
        if len(set(uses)) > 1:
            ambiguous[join(leaf.path)] = tuple(dict.fromkeys(uses))
            doubtful.add(i)
        elif places:
            first = places[0]
            layers = sorted(axis for own, axis in first.parameter.layers if own == i)
            norms.append(
                DiscoveredNorm(
                    join(leaf.path),
                    shapes[i],
                    first.role,
                    first.kind,
                    first.axes,
                    first.parameter.offset,
                    tuple(layers),
                )
            )
    opaque = {join(leaves[i].path): name for name, own in notes.opaque for i in sorted(own)}
    said = {norm.path for norm in norms} | set(ambiguous) | set(opaque)
    listed = sorted(notes.list_uncertain(doubtful).items())
    doubts = [(join(leaves[i].path), how) for i, how in listed]
    uncertain = {path: how for path, how in doubts if path not in said}
    return DiscoveredNorms(tuple(norms), ambiguous, opaque, uncertain)


def _warn(found: DiscoveredNorms) -> None:
    """One warning for each way in which leaves may be missed, with the first of them."""
    uses = {path: ", ".join(own) for path, own in found.ambiguous.items()}
    ways = [
        (
            found.opaque,
            "goes into {}, which cannot be traced: if a norm is in it, name the leaf in norms= "
            "yourself, or trace the model without that kernel",
        ),
        (
            found.uncertain,
            "may be a norm's and is not selected: it {}. If it is to train, name it in norms= "
            "yourself; print(norms) lists each",
        ),
        (
            uses,
            "is used as {}, so it is not selected: if it is to train, name it in norms= yourself; "
            "trace the forward pass, not a loss with a penalty",
        ),
    ]
    for leaves, text in ways:
        if leaves:
            path, how = next(iter(leaves.items()))
            others = f" and {len(leaves) - 1:,} more" if len(leaves) > 1 else ""
            warn(f"{path!r}{others} {text.format(how)}", TraceWarning)
