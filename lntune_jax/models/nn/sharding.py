"""How weights and activations of the built-in models lie on a mesh.

Kernels are divided twice: along one axis over "tensor", so that a device computes its own heads and
its own part of the MLP, and along the other over "fsdp", from which XLA gathers a layer's kernels
for its turn. Norms, heads and what else trains lie on every device. The rows of a batch stay on the
devices that hold them, and features are whole: asked for nothing, XLA has been seen to divide
activations as weights are, and to repeat every row on every device, at several times the memory.
Between the products that "tensor" divides, the tokens of a row are divided over it (sequence
parallelism): what a device keeps of a layer's states, and computes of its norms, is its part.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lntune_jax.sharding import Misfit

from ..types import Cache, ModelOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jaxtyping import Array, Float


# What is drawn anew and trains.
_HEADS = frozenset(["classifier", "score", "pooler"])


class Specs(NamedTuple):
    """Which modules of a family are divided over a mesh, by the last names of their paths.

    Attributes:
        widening: those whose outputs are divided over "tensor".
        narrowing: those that take such outputs in.
        tables: tables of words; those of positions and types are small.
        heads: modules of attention, and the field of the settings that counts their heads, none of
            which is cut in two.
        whole: modules of heads that train, beside the classifiers.
    """

    widening: tuple[str, ...]
    narrowing: tuple[str, ...]
    tables: tuple[str, ...]
    heads: tuple[tuple[str, str], ...] = ()
    whole: tuple[str, ...] = ()


def find_spec(specs: Specs, path: str, leaf: Any) -> PartitionSpec:
    """Give the `PartitionSpec` of a leaf; see `base_specs`."""
    names = path.split(".")
    if names[-1] in ("qvalue", "scale") and names[-3:-1] == ["kernel", "array"]:
        names = names[:-2]  # a part of a quantised kernel lies as the kernel would
    *modules, name = names
    whole = _HEADS.union(specs.whole)
    if not modules or not whole.isdisjoint(modules) or name == "scale":
        return PartitionSpec()
    # BERT calls the layer by its place: `intermediate.dense`, `output.dense`.
    is_named = modules[-1] == "dense" and modules[-2:-1] in (["intermediate"], ["output"])
    module = modules[-2] if is_named else modules[-1]
    if name == "embedding":
        return PartitionSpec("tensor", "fsdp") if module in specs.tables else PartitionSpec()
    if name == "bias":
        return _last(leaf, "tensor") if module in specs.widening else PartitionSpec()
    if module in specs.widening:
        return _last(leaf, "fsdp", "tensor")
    if module in specs.narrowing:
        return _last(leaf, "tensor", "fsdp")
    return _last(leaf, "fsdp", None)


def keep_heads_whole(
    specs: Specs, settings: Any, path: str, spec: PartitionSpec, sizes: Mapping[str, int]
) -> tuple[PartitionSpec, list[Misfit]]:
    """Take "tensor" out of the spec of a leaf of attention whose heads it does not divide.

    Args:
        specs: the family's.
        settings: the model's.
        path: the leaf's, with dots.
        spec: from `find_spec`, as far as it fits the shape.
        sizes: of the mesh's axes.
    """
    parts = sizes.get("tensor", 1)
    counted = [field for name, field in specs.heads if f".{name}." in f".{path}"]
    heads = getattr(settings, counted[0]) if counted else 0
    if "tensor" not in spec or heads % parts == 0:
        return spec, []
    misfit = Misfit(f"{path} in heads", spec.index("tensor"), heads, ("tensor",), parts)
    entries = [None if entry == "tensor" else entry for entry in spec]
    return PartitionSpec(*(entries if any(entries) else ())), [misfit]


def _last(leaf: Any, *entries: str | None) -> PartitionSpec:
    """A spec of the last axes; those of stacked layers come before them."""
    missing = leaf.ndim - len(entries)
    return PartitionSpec() if missing < 0 else PartitionSpec(*(None,) * missing, *entries)


# Axes of a mesh that divide the rows of a batch.
ROW_AXES = ("data", "fsdp")


def keep_rows_apart(x: Float[Array, "rows ..."]) -> Float[Array, "rows ..."]:
    """Say that the first axis is divided over the mesh's axes for rows, and the others are whole.

    Nothing is said off a mesh, of a mesh without such axes or with rows that they do not divide,
    and of a mesh whose axes are explicit, where the program says it itself.
    """
    return _constrain(x, ())


def keep_tokens_apart(x: Float[Array, "rows length ..."]) -> Float[Array, "rows length ..."]:
    """Say what `keep_rows_apart` says, and that the length is divided over "tensor".

    It is left whole where "tensor" does not divide it. Nothing is said of single tokens: see
    `divide_features`.
    """
    return x if x.shape[1] == 1 else _constrain(x, ("tensor",))


def gather_tokens(x: Float[Array, "rows length ..."]) -> Float[Array, "rows length ..."]:
    """Say that the length is whole before a product which "tensor" divides by features."""
    whole = x.shape[1] == 1 or not is_auto(jax.typeof(x).sharding.mesh, "tensor")
    return x if whole else _constrain(x, ())


def keep_features_apart(
    x: Float[Array, "rows length wide *size"],
) -> Float[Array, "rows length wide *size"]:
    """Say that what a product which "tensor" divides gives is divided by features, or by heads.

    Told the length alone, a TPU's compiler has been seen to gather whole kernels on the way back.
    """
    mesh = jax.typeof(x).sharding.mesh
    if x.shape[1] == 1 or not is_auto(mesh, "tensor") or x.shape[2] % mesh.shape["tensor"]:
        return x
    spec = PartitionSpec(find_row_axes(mesh, x.shape[0]), None, "tensor", *(None,) * (x.ndim - 3))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def _constrain(x: Any, axes: tuple[str, ...]) -> Any:
    """Divide the first axis over those for rows, and the length over these others."""
    mesh = jax.typeof(x).sharding.mesh
    rows = find_row_axes(mesh, x.shape[0])
    if not rows and not is_auto(mesh, "tensor"):
        return x
    tokens = tuple(name for name in axes if is_auto(mesh, name))
    tokens = () if tokens and x.shape[1] % _count(mesh, tokens) else tokens
    spec = PartitionSpec(rows, *([tokens or None] + [None] * x.ndim)[: x.ndim - 1])
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def find_row_axes(mesh: Any, rows: int) -> tuple[str, ...] | None:
    """Give the axes of a mesh that divide so many rows of a batch, or `None`."""
    names = tuple(name for name in ROW_AXES if is_auto(mesh, name))
    return names or None if are_rows_divided(mesh, rows) else None


def are_rows_divided(mesh: Any, rows: int) -> bool:
    """Whether so many rows of a batch lie in parts, as far as a mesh has axes for rows."""
    names = tuple(name for name in ROW_AXES if is_auto(mesh, name))
    return rows % _count(mesh, names) == 0


def _count(mesh: Any, names: tuple[str, ...]) -> int:
    return math.prod(mesh.shape[name] for name in names)


def find_rows_and_heads(query: Any, key: Any) -> tuple[Any, Any, Any]:
    """Give what a kernel of attention, which runs on one device, is divided over.

    Args:
        query: (batch, length, heads, size).
        key: (batch, length, shared, size).

    Returns:
        The mesh, and its axes for rows and for heads, each `None` where none divides them; the
        mesh is `None` off a mesh, and where its axes are divided by hand already.
    """
    mesh = jax.typeof(query).sharding.mesh
    if not any(is_auto(mesh, name) for name in mesh.axis_names):
        return None, None, None
    rows = find_row_axes(mesh, query.shape[0])
    parts = mesh.shape["tensor"] if is_auto(mesh, "tensor") else 1
    return mesh, rows, "tensor" if parts > 1 and key.shape[2] % parts == 0 else None


def divide_features(x: Float[Array, "rows 1 width"]) -> Float[Array, "rows 1 width"]:
    """Say that all rows are on every device, which has its part of their features over "fsdp".

    So each device multiplies with its own part of a kernel, and sums of single tokens are sent.
    With rows apart every kernel would be gathered for every token.
    """
    mesh = jax.typeof(x).sharding.mesh
    if not is_auto(mesh, "fsdp") or x.shape[-1] % mesh.shape["fsdp"]:
        return keep_rows_apart(x)
    spec = PartitionSpec(*(None,) * (x.ndim - 1), "fsdp")
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def spread_lookup(x: Float[Array, "rows length width"]) -> Float[Array, "rows length width"]:
    """Say how vectors from a table that "fsdp" divides by features come to their rows.

    First every device has its features of the rows of its group, then all features of its rows.
    Without the first step, on a mesh of three axes, the compiler copies all rows to all devices.
    """
    mesh = jax.typeof(x).sharding.mesh
    if not is_auto(mesh, "fsdp") or x.shape[-1] % mesh.shape["fsdp"]:
        return keep_rows_apart(x)
    outer = "data" if is_auto(mesh, "data") and x.shape[0] % mesh.shape["data"] == 0 else None
    spec = PartitionSpec(outer, *(None,) * (x.ndim - 2), "fsdp")
    return keep_rows_apart(jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec)))


def is_auto(mesh: Any, name: str) -> bool:
    """Whether a mesh has an axis of this name, and leaves it to the compiler."""
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return kinds.get(name) == AxisType.Auto


def run_on_auto_axes(
    function: Callable[..., Any], params: Any, *inputs: Any, rows: Any = None
) -> Any:
    """Call `function(params, *inputs)`, with explicit axes made automatic where weights need it.

    Args:
        function: of arrays and trees of arrays.
        params: the model's weights.
        inputs: its other arguments.
        rows: an array whose first axis says how that of the results is divided; `None` for
            results that are whole on every device: then divided inputs need it, too.
    """
    mesh = _mesh_of_divided((params, inputs) if rows is None else params)
    if mesh is None:
        return function(params, *inputs)
    spec = PartitionSpec() if rows is None else PartitionSpec(_row_axes(rows, mesh))
    return jax.sharding.auto_axes(function, out_sharding=NamedSharding(mesh, spec))(params, *inputs)


def decode_on_auto_axes(
    function: Callable[..., ModelOutput],
    params: Any,
    *inputs: Any,
    tokens: Any,
    cache: Cache,
    heads: int,
) -> ModelOutput:
    """Do what `run_on_auto_axes` does, for a call with a cache.

    The keys and values stay where the attention of their heads and rows is computed. If
    they were whole, each step would send all of them to every device. The rest of the result is
    whole, since the next token is chosen from it.

    Args:
        function: gives a `ModelOutput` with a cache.
        params: the model's weights.
        inputs: its other arguments.
        tokens: (batch, length). Rows of keys and values lie where the layers compute them: see
            `keep_rows_apart`.
        cache: the cache that is given.
        heads: of keys and values.
    """
    mesh = _mesh_of_divided((params, inputs))
    if mesh is None:
        return function(params, *inputs)
    parts = mesh.shape.get("tensor", 1) if _is_divided_over(params, "tensor") else 1
    own = "tensor" if parts > 1 and heads % parts == 0 else None
    first = () if isinstance(cache.keys, tuple) else (None,)  # of stacked layers
    names = tuple(name for name in ROW_AXES if name in mesh.axis_names)
    apart = names and tokens.shape[0] % math.prod(mesh.shape[name] for name in names) == 0
    rows = names if apart else _row_axes(tokens, mesh)
    kept = NamedSharding(mesh, PartitionSpec(*first, rows, own))
    whole = NamedSharding(mesh, PartitionSpec())

    def run(params: Any, *inputs: Any) -> ModelOutput:
        output = function(params, *inputs)
        logits = output.logits
        if logits is None or logits.ndim < 3 or logits.shape[-1] % parts:
            return output
        # Scores of each part of the vocabulary where its part of the table lies, and these are
        # gathered: asked for whole scores alone, the compiler gathers the table at each step.
        spec = PartitionSpec(*(None,) * (logits.ndim - 1), "tensor" if parts > 1 else None)
        placed = NamedSharding(jax.typeof(logits).sharding.mesh, spec)
        return output._replace(logits=jax.lax.with_sharding_constraint(logits, placed))

    out: Any = ModelOutput(whole, whole, whole, Cache(kept, kept, whole, whole))  # pyright: ignore
    called: Any = jax.sharding.auto_axes(run, out_sharding=out)(params, *inputs)
    return called


def _row_axes(array: Any, mesh: Any) -> Any:
    """The axes of a mesh that divide an array's first axis."""
    sharding = jax.typeof(array).sharding
    return sharding.spec[0] if sharding.mesh == mesh and sharding.spec else None


def _is_divided_over(params: Any, name: str) -> bool:
    """Whether a leaf is divided over an explicit axis of this name."""
    leaves = [leaf for leaf in jax.tree.leaves(params) if isinstance(leaf, jax.Array)]
    entries = (entry for leaf in leaves for entry in jax.typeof(leaf).sharding.spec)
    return any(name in (entry if isinstance(entry, tuple) else (entry,)) for entry in entries)


def _mesh_of_divided(params: Any) -> Any:
    """The mesh on whose explicit axes a leaf is divided, or `None` where none is."""
    for leaf in jax.tree.leaves(params):
        if not isinstance(leaf, jax.Array):
            continue  # numpy's is whole, and what is no array is refused by its name elsewhere
        sharding = getattr(jax.typeof(leaf), "sharding", None)
        if sharding is None or AxisType.Explicit not in sharding.mesh.axis_types:
            continue
        if any(sharding.spec):
            return sharding.mesh
    return None
