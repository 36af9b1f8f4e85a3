"""Arrays for every leaf: read, transposed, cast and placed one tensor at a time.

The host holds one tensor more than the model's own share at any moment; of a scanned model, one
stacked leaf and the layer that is being read into it. Leaves that the checkpoint lacks are drawn
from the seed and their path, so that no other leaf changes them.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from lntune_jax.config import TASK_HEADS
from lntune_jax.errors import FreshWeightsWarning, ModelError
from lntune_jax.messages import warn
from lntune_jax.sharding import fit_spec, warn_of

from ._base_specs import base_specs
from ._matching import LISTED
from ._quantize import is_quantized, place_parts, quantize_kernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from lntune_jax.sharding import Misfit

    from ._build import Leaves
    from ._files import Weights
    from ._gguf import GgufFile
    from ._layout import Layout
    from ._matching import Plan
    from ._stacked import Stacks


# Heads that are always fresh when a task begins: no reason to warn.
_HEADS = TASK_HEADS["SEQ_CLS"]


def load_leaves(
    leaves: Leaves,
    plan: Plan,
    weights: Weights | GgufFile,
    names: dict[str, str],
    layout: Layout,
    *,
    stacks: Stacks,
    mesh: Any,
    specs: Callable[[str, Any], Any] | None,
    seed: int,
    spread: float,
    progress: Callable[[int, int], None] | None,
    quantize: str | None = None,
) -> dict[tuple[str, ...], jax.Array]:
    """Read what the plan found in the checkpoint, and draw the rest.

    Args:
        leaves: the model's leaves.
        plan: where each comes from.
        weights: the checkpoint.
        names: its keys, from `canonical_keys`.
        layout: the architecture's names.
        stacks: the leaves that hold all layers, and the paths of the layers' parts in the plan.
        mesh: devices to put every leaf on, or `None` for the default device.
        specs: how each leaf lies on the mesh; `None` for `base_specs`, as far as it fits.
        seed: for the leaves that are drawn.
        spread: their standard deviation.
        progress: told after each leaf how many bytes of how many are in place.
        quantize: what the kernels of the layers become, one of `KINDS`, or `None`.

    Raises:
        ModelError: tied weights differ, or a tensor is not floating point.
    """
    if plan.tied is not None:
        _check_tied(weights, plan.tied, names[layout.embeddings])
    arrays, misfits = {}, []
    total, done = sum(map(_bytes, leaves.values())), 0
    for path, leaf in leaves.items():
        if path in stacks:
            array = np.empty(leaf.shape, leaf.dtype)
            for index, part in enumerate(stacks[path]):
                array[index] = _read(part, plan, weights, layout)
        elif path in plan.sources:
            array = _read(path, plan, weights, layout)
        else:
            array = draw(path, leaf.shape, seed, spread)
        sharding = None
        if mesh is not None:
            spec, found = _spec(".".join(path), leaf, mesh, specs)
            misfits += found
            sharding = jax.sharding.NamedSharding(mesh, spec)
        if quantize is not None and is_quantized(path):
            # From float32, so that the few bits are the same whatever the model's dtype is.
            exact = np.ascontiguousarray(array, np.float32)
            found = place_parts(path, quantize_kernel(exact, quantize))
            placed = {part: _place_part(value, sharding) for part, value in found.items()}
        else:
            placed = {path: _place(np.ascontiguousarray(array, leaf.dtype), sharding)}
        # Without waiting, reading runs ahead and the host holds every tensor still on its way.
        arrays |= jax.block_until_ready(placed)
        done += _bytes(leaf)
        if progress is not None:
            progress(done, total)
    _warn(plan)
    warn_of(misfits)
    return arrays


def _read(
    path: tuple[str, ...], plan: Plan, weights: Weights | GgufFile, layout: Layout
) -> np.ndarray:
    array = weights.read(plan.sources[path])
    return array.T if layout.transposed(path) else array


def _bytes(leaf: jax.ShapeDtypeStruct) -> int:
    return leaf.size * leaf.dtype.itemsize


def _check_tied(weights: Weights | GgufFile, output: str, embeddings: str) -> None:
    if not np.array_equal(weights.read(output), weights.read(embeddings)):
        raise ModelError(
            f"{weights.directory}: {output} and {embeddings} differ, but config field "
            "'tie_word_embeddings' is True; set it to False in config.json if the file is right"
        )


def draw(path: tuple[str, ...], shape: tuple[int, ...], seed: int, spread: float) -> np.ndarray:
    """Draw a leaf that a checkpoint lacks: the same for a seed, whatever else is drawn."""
    if path[-1] == "scale":
        return np.ones(shape, np.float32)
    if path[-1] == "bias":
        return np.zeros(shape, np.float32)
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(".".join(path).encode()))
    return np.asarray(jax.random.normal(key, shape, jnp.float32) * spread)


def _spec(
    path: str,
    leaf: jax.ShapeDtypeStruct,
    mesh: Any,
    specs: Callable[[str, Any], Any] | None,
) -> tuple[Any, list[Misfit]]:
    """How a leaf lies on the mesh, and what of our own rule does not fit; theirs is law."""
    if specs is not None:
        return specs(path, leaf), []
    return fit_spec(path, leaf.shape, base_specs(path, leaf), mesh.shape)


def _place(array: np.ndarray, sharding: Any) -> jax.Array:
    if sharding is None:
        return jnp.asarray(array)
    # By callback: each process of several hands over its own devices' parts.
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _place_part(array: jax.Array, sharding: Any) -> jax.Array:
    """Place a part of a quantised kernel like the kernel; an axis that does not divide is whole."""
    if sharding is None:
        return array
    spec, _ = fit_spec("", array.shape, sharding.spec, sharding.mesh.shape)
    return _place(np.asarray(array), jax.sharding.NamedSharding(sharding.mesh, spec))


def _warn(plan: Plan) -> None:
    names = [".".join(path) for path in plan.fresh if path[0] not in _HEADS]
    if names:
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        warn(
            f"not in the checkpoint, drawn at random: {', '.join(names[:LISTED])}{more}; "
            "train them before you rely on the output",
            FreshWeightsWarning,
        )
