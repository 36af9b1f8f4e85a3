"""On a mesh, the rows of a batch stay on the devices that hold them, and features are whole.

Weights that are divided over "fsdp" leave XLA a choice: to gather the weights, or to divide the
activations by features as the weights are and repeat every row on every device. Asked for nothing,
it has been seen to take the second, at several times the memory.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# Axes of a mesh that divide the rows of a batch.
ROW_AXES = ("data", "fsdp")


def keep_rows_apart(x: Float[Array, "rows ..."]) -> Float[Array, "rows ..."]:
    """Say that the first axis is divided over the mesh's axes for rows, and the others are whole.

    Nothing is said off a mesh, of a mesh without such axes or with rows that they do not divide,
    and of a mesh whose axes are explicit, where the program says it itself.
    """
    mesh = jax.typeof(x).sharding.mesh
    names = tuple(name for name in ROW_AXES if is_auto(mesh, name))
    if not names or x.shape[0] % math.prod(mesh.shape[name] for name in names):
        return x
    spec = PartitionSpec(names, *(None,) * (x.ndim - 1))
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
