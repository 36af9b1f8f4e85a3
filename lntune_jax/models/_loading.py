"""Arrays for every leaf: read, transposed, cast and placed one tensor at a time.

The host holds one tensor more than the model at any moment; leaves that the checkpoint lacks
are drawn from the seed and their path, so that no other leaf changes them.
"""

from __future__ import annotations

import warnings
import zlib
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from lntune_jax._errors import FreshWeightsWarning, ModelError

from ._matching import LISTED
from ._names import WORD_EMBEDDINGS

if TYPE_CHECKING:
    from ._build import Leaves
    from ._files import Weights
    from ._matching import Plan


def load_leaves(
    leaves: Leaves,
    plan: Plan,
    weights: Weights,
    names: dict[str, str],
    *,
    mesh: Any,
    seed: int,
    spread: float,
) -> dict[tuple[str, ...], jax.Array]:
    """Read what the plan found in the checkpoint, and draw the rest.

    Args:
        leaves: the model's leaves.
        plan: where each comes from.
        weights: the checkpoint.
        names: its keys, from `canonical_keys`.
        mesh: devices to copy every leaf to, or `None` for the default device.
        seed: for the leaves that are drawn.
        spread: their standard deviation.

    Raises:
        ModelError: tied weights differ, or a tensor is not floating point.
    """
    if plan.tied is not None:
        _check_tied(weights, plan.tied, names[WORD_EMBEDDINGS])
    arrays = {}
    for path, leaf in leaves.items():
        if path in plan.sources:
            array = weights.read(plan.sources[path])
            array = array.T if path[-1] == "kernel" else array
        else:
            array = _draw(path, leaf.shape, seed, spread)
        arrays[path] = _place(array.astype(leaf.dtype), mesh)
    _warn(plan)
    return arrays


def _check_tied(weights: Weights, output: str, embeddings: str) -> None:
    if not np.array_equal(weights.read(output), weights.read(embeddings)):
        raise ModelError(
            f"{weights.directory}: {output} and {embeddings} differ, but config field "
            "'tie_word_embeddings' is True; set it to False in config.json if the file is right"
        )


def _draw(path: tuple[str, ...], shape: tuple[int, ...], seed: int, spread: float) -> np.ndarray:
    if path[-1] == "scale":
        return np.ones(shape, np.float32)
    if path[-1] == "bias":
        return np.zeros(shape, np.float32)
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(".".join(path).encode()))
    return np.asarray(jax.random.normal(key, shape, jnp.float32) * spread)


def _place(array: np.ndarray, mesh: Any) -> jax.Array:
    if mesh is None:
        return jnp.asarray(array)
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    # By callback: each process of several hands over its own devices' copies.
    return jax.make_array_from_callback(array.shape, whole, lambda index: array[index])


def _warn(plan: Plan) -> None:
    names = [".".join(path) for path in plan.fresh if path[0] != "classifier"]
    if names:
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        warnings.warn(
            f"not in the checkpoint, drawn at random: {', '.join(names[:LISTED])}{more}; "
            "train them before you rely on the output",
            FreshWeightsWarning,
            stacklevel=4,
        )
