"""Where the leaves of a tree lie on a mesh: rules by path, made to fit the leaves and the mesh.

A rule may name axes that a mesh does not have: along these a leaf is whole. So one table serves
data parallelism, FSDP and tensor parallelism.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from .errors import ShardingError, ShardingWarning, UnmatchedPatternWarning
from .messages import warn
from .paths import Leaf, flatten, get_shape, join
from .selection.patterns import match_patterns

Rules = Callable[[str, Any], PartitionSpec] | Sequence[tuple[str, PartitionSpec]]

_LISTED = 3


class Misfit(NamedTuple):
    """An axis of a leaf that was to be divided, and cannot be."""

    path: str
    axis: int
    size: int
    names: tuple[str, ...]
    parts: int


def make_specs(params: Any, mesh: Any, rules: Rules | None = None) -> Any:
    """Gives the `PartitionSpec` of every leaf on a mesh.

    Args:
        params: any pytree of arrays, numpy arrays or `jax.ShapeDtypeStruct`; the halves that
            `partition_params` gives too.
        mesh: a `jax.sharding.Mesh` or `AbstractMesh`.
        rules: a function `rules(path, leaf)`, such as `lntune_jax.models.base_specs` or what
            `lntune_jax.models.model_specs` gives; or pairs of a pattern and a spec, the first match
            counts and what matches none is whole. Patterns are those of `target_modules`: the end
            of a module's path, or a regular expression of its or the leaf's whole path. `None`
            divides the largest axis of each leaf of two axes or more over "fsdp". Axes that the
            mesh does not have are left out.

    Returns:
        A tree of the structure of `params`.

    Raises:
        ShardingError: a spec has more axes than its leaf, or is no spec; the message names the
            path.
        PatternError: a pattern is not valid.

    Warns:
        ShardingWarning: an axis does not divide: it is left whole, and named.
        UnmatchedPatternWarning: a pattern of `rules` matches nothing.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> mesh = jax.sharding.AbstractMesh((4, 2), ("fsdp", "tensor"))
        >>> params = {"q_proj": {"kernel": jnp.ones((8, 6))}, "norm": {"scale": jnp.ones(8)}}
        >>> rules = [("q_proj", jax.P("fsdp", "tensor"))]
        >>> tuple(lnt.make_specs(params, mesh, rules)["q_proj"]["kernel"])
        ('fsdp', 'tensor')
        >>> tuple(lnt.make_specs(params, mesh)["norm"]["scale"])
        ()
    """
    if not isinstance(mesh, jax.sharding.Mesh | jax.sharding.AbstractMesh):
        raise ShardingError(f"mesh must be a jax.sharding.Mesh or AbstractMesh, not {mesh!r}")
    leaves, treedef = flatten(params)
    wanted = _ask(leaves, rules)
    misfits: list[Misfit] = []
    specs = []
    for leaf, spec in zip(leaves, wanted, strict=True):
        fitting, found = fit_spec(join(leaf.path), get_shape(leaf.value) or (), spec, mesh.shape)
        specs.append(fitting)
        misfits += found
    warn_of(misfits)
    return treedef.unflatten(specs)


def shard_params(params: Any, mesh: Any, rules: Rules | None = None) -> Any:
    """Puts every leaf on a mesh, where `make_specs` says.

    In a run of several processes each must call this with the same numpy arrays, of which it
    hands over its own devices' parts, or with arrays that lie on all devices already.

    Args:
        params: as in `make_specs`; a `jax.ShapeDtypeStruct` gets the sharding written into it, and
            a leaf that is no array (a function in an Equinox module) stays as it is.
        mesh: a `jax.sharding.Mesh`.
        rules: as in `make_specs`.

    Raises:
        ShardingError: as in `make_specs`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> params = lnt.shard_params({"fc": {"kernel": jnp.ones((8, 4))}}, mesh)
        >>> tuple(params["fc"]["kernel"].sharding.spec)
        ('fsdp', None)
    """
    leaves, treedef = flatten(params)
    specs = jax.tree.leaves(make_specs(params, mesh, rules), is_leaf=_is_spec)
    pairs = zip(leaves, specs, strict=True)
    return treedef.unflatten(
        [_place(leaf.value, NamedSharding(mesh, spec)) for leaf, spec in pairs]
    )


def fit_spec(
    path: str, shape: tuple[int, ...], spec: Any, sizes: Mapping[str, int]
) -> tuple[PartitionSpec, list[Misfit]]:
    """Makes a spec fit a leaf: no axis that the mesh lacks, none that does not divide.

    Raises:
        ShardingError: it is no spec, or has more axes than the leaf.
    """
    if not _is_spec(spec) or PartitionSpec.UNCONSTRAINED in spec:
        raise ShardingError(
            f"rules gives {spec!r} for {path!r}; expected a jax.sharding.PartitionSpec "
            "of axis names and None"
        )
    if len(spec) > len(shape):
        raise ShardingError(
            f"rules gives {spec} for {path!r}, which has the shape {shape}: a spec has at most one "
            "entry for each axis"
        )
    entries: list[Any] = []
    misfits = []
    for axis, entry in enumerate(spec):
        named = (entry,) if isinstance(entry, str) else tuple(entry or ())
        names = tuple(name for name in named if name in sizes)
        parts = math.prod(sizes[name] for name in names)
        if shape[axis] % parts:
            misfits.append(Misfit(path, axis, shape[axis], names, parts))
            names = ()
        entries.append(names[0] if len(names) == 1 else names or None)
    return PartitionSpec(*(entries if any(entries) else ())), misfits


def warn_of(misfits: Sequence[Misfit]) -> None:
    """Says which axes were to be divided and are whole, in one warning."""
    if not misfits:
        return
    told = [
        f"axis {each.axis} of {each.path} ({each.size} over {' x '.join(each.names)} = "
        f"{each.parts})"
        for each in misfits[:_LISTED]
    ]
    more = f" and {len(misfits) - _LISTED} more" if len(misfits) > _LISTED else ""
    warn(
        f"left whole on every device, since it does not divide: {', '.join(told)}{more}. Choose "
        "other sizes of the mesh's axes, or rules that divide another axis",
        ShardingWarning,
    )


def _ask(leaves: Sequence[Leaf], rules: Rules | None) -> list[Any]:
    """What the rules say of every leaf."""
    if rules is None:
        return [_spread_largest(leaf.value) for leaf in leaves]
    if callable(rules):
        return [rules(join(leaf.path), leaf.value) for leaf in leaves]
    is_list = isinstance(rules, Sequence) and not isinstance(rules, str)
    if not is_list or not all(isinstance(rule, tuple) and len(rule) == 2 for rule in rules):
        raise ShardingError(
            "rules must be a function rules(path, leaf), or a list of pairs of a pattern and a "
            f"PartitionSpec, not {rules!r}"
        )
    modules = list(dict.fromkeys(join(leaf.path[:-1]) for leaf in leaves))
    names = [join(leaf.path) for leaf in leaves]
    matches = match_patterns([pattern for pattern, _ in rules], modules, names)
    for match in matches:
        if not match.names:
            warn(
                f"the pattern {match.pattern!r} of rules matches nothing in this tree",
                UnmatchedPatternWarning,
            )
    found = []
    for leaf, name in zip(leaves, names, strict=True):
        own = {name, join(leaf.path[:-1])}
        pairs = zip(matches, rules, strict=True)
        found.append(next((rule[1] for match, rule in pairs if own & match.names), PartitionSpec()))
    return found


def _spread_largest(leaf: Any) -> PartitionSpec:
    shape = get_shape(leaf) or ()
    if len(shape) < 2:
        return PartitionSpec()
    largest = int(np.argmax(shape))
    return PartitionSpec(*("fsdp" if axis == largest else None for axis in range(len(shape))))


def _is_spec(value: Any) -> bool:
    return isinstance(value, PartitionSpec)


def _place(value: Any, sharding: NamedSharding) -> Any:
    if isinstance(value, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)
    if isinstance(value, jax.Array):
        return jax.device_put(value, sharding)
    if not hasattr(value, "dtype") and not isinstance(value, bool | int | float | complex):
        return value  # a function in an Equinox module
    array = np.asarray(value)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
