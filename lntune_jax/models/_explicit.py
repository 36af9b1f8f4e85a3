"""Divided weights on a mesh whose axes are explicit: there the models leave the layout to XLA.

Explicit axes ask of every product where its result lies. While weights are whole on every device
that follows from the rows; of divided weights the compiler decides, as it does on automatic axes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

if TYPE_CHECKING:
    from collections.abc import Callable


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
    spec = PartitionSpec()
    if rows is not None and jax.typeof(rows).sharding.mesh == mesh:
        spec = PartitionSpec(*jax.typeof(rows).sharding.spec[:1])
    return jax.sharding.auto_axes(function, out_sharding=NamedSharding(mesh, spec))(params, *inputs)


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
