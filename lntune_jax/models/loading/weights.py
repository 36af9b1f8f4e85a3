"""Which tensor of a checkpoint goes to which leaf, and the reading of them, one at a time.

All keys and shapes are compared before anything is read: what is missing, left over or of the
wrong shape is one error that lists it. Leaves that the checkpoint lacks are drawn from the seed and
their path, so that no other leaf changes them.
"""

from __future__ import annotations

import functools
import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lntune_jax.config import TASK_HEADS
from lntune_jax.errors import FreshWeightsWarning, ModelError, UnreadWeightsWarning
from lntune_jax.messages import list_names, warn
from lntune_jax.peft.config import list_above
from lntune_jax.sharding import fit_spec, warn_of
from lntune_jax.storage.processes import meet

from ..families.names import TENSORFLOW_LEAVES, Layout
from ..families.registry import FAMILIES, base_specs
from ..nn.quantized import is_quantized, place_parts, quantize_kernel
from ..nn.sharding import keep_heads_whole
from .safetensors import Weights
from .shards import (
    Source,
    along_rows,
    move,
    move_part,
    own_mesh,
    place,
    spans_all_processes,
    with_auto_axes,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lntune_jax.sharding import Misfit

    from ..families.names import Layout, Stacks
    from ..types import Leaves
    from .gguf import GgufFile


LISTED = 8


@dataclass(frozen=True)
class Plan:
    """Where each leaf comes from.

    Attributes:
        sources: for a leaf path, the key in the checkpoint.
        fresh: the leaf paths that the checkpoint lacks and may lack.
        tied: the key of output weights which must equal the word embeddings, if there are any.
        unknown: the keys of modules that the model does not have, which are not read.
    """

    sources: dict[tuple[str, ...], str]
    fresh: tuple[tuple[str, ...], ...]
    tied: str | None
    unknown: tuple[str, ...] = ()


class Keys(Protocol):
    """The keys and shapes of a checkpoint, whatever its files are."""

    @property
    def directory(self) -> Path:
        """Where it is, for messages."""
        ...

    def keys(self) -> list[str]:
        """Every tensor's key."""
        ...

    def shape(self, key: str) -> tuple[int, ...]:
        """A tensor's shape, in PyTorch's order of axes."""
        ...


# What older versions saved beside the weights: positions, causal masks, rotary frequencies.
_BUFFERS = re.compile(
    r"(.*\.)?(embeddings\.(position|token_type)_ids|attn\.(masked_)?bias|rotary_emb\.inv_freq)"
)


def is_buffer(name: str) -> bool:
    """Whether a checkpoint's tensor is no parameter, but a buffer which is computed here.

    Example:
        >>> is_buffer("h.0.attn.bias"), is_buffer("h.0.attn.c_attn.bias")
        (True, False)
    """
    return _BUFFERS.fullmatch(name) is not None


def canonical_keys(weights: Keys, prefix: str | None = None) -> dict[str, str]:
    """Give each key under its name today, whatever the file calls it.

    Args:
        weights: the checkpoint.
        prefix: what the names of a model with a head begin with, and those given here do not.

    Raises:
        ModelError: two keys have one name.
    """
    names: dict[str, str] = {}
    for key in weights.keys():  # noqa: SIM118
        name = key if prefix is None else key.removeprefix(prefix + ".")
        for old, new in TENSORFLOW_LEAVES.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
        if name in names:
            raise ModelError(
                f"{weights.directory} holds {name} twice: as {names[name]} and as {key}"
            )
        names[name] = key
    return names


def match(
    leaves: Leaves,
    names: dict[str, str],
    weights: Keys,
    task: str | None,
    layout: Layout,
) -> Plan:
    """Find the tensor of every leaf, and say so where that cannot be done.

    What the checkpoint holds beside them is passed over, as in transformers, unless it belongs to
    a module that is read: a bias that the config denies, or a scale of quantised weights, would
    change what that module computes.

    Args:
        leaves: the model's leaves.
        names: the checkpoint's keys, from `canonical_keys`.
        weights: the checkpoint.
        task: the model's task.
        layout: the architecture's names.

    Raises:
        ModelError: keys are missing, shapes differ, or a module that is read has keys of which
            the model knows nothing.
    """
    wanted = {path: layout.name(path) for path in leaves}
    found = {path: _find(name, names, layout) for path, name in wanted.items()}
    used = {name for name in found.values() if name is not None}
    groups = {name.split(".")[0] for name in used}
    fresh, missing = [], []
    for path, name in wanted.items():
        if found[path] is None:
            group = name.split(".")[0]
            # A module of which the file holds a part is damaged, not absent.
            absent = group in layout.fresh[task] and group not in groups
            (fresh if absent else missing).append(path)
    tied = [name for name in names if name in layout.tied and name not in used]
    left = [name for name in names if name not in used and name not in tied]
    others = [name for name in left if not _harmless(name, layout.harmless[task])]
    modules = {name.rpartition(".")[0] for name in used}
    # Where keys are missing, they may be there under another name: then all are listed.
    inside = [name for name in others if missing or not modules.isdisjoint(list_above(name))]
    sources = {path: names[name] for path, name in found.items() if name is not None}
    unexpected = [names[name] for name in inside]
    _report(leaves, sources, [wanted[path] for path in missing], unexpected, weights, layout)
    needed = task == layout.tied_task and bool(tied)
    unknown = tuple(names[name] for name in others)
    return Plan(sources, tuple(fresh), names[tied[0]] if needed else None, unknown)


def without_head(names: dict[str, str], task: str | None) -> dict[str, str]:
    """The checkpoint's keys without those of the task's head, which is then drawn anew.

    Raises:
        ModelError: the task has no classifier.
    """
    if task not in ("SEQ_CLS", "TOKEN_CLS"):
        raise ModelError(
            f"new_head=True draws a classifier; the task is {task!r}, expected SEQ_CLS or TOKEN_CLS"
        )
    return {key: name for key, name in names.items() if key.split(".")[0] not in _HEADS}


def _find(name: str, names: dict[str, str], layout: Layout) -> str | None:
    return next((n for n in (name, layout.synonyms.get(name)) if n in names), None)


def _harmless(name: str, patterns: tuple[str, ...]) -> bool:
    return is_buffer(name) or any(re.fullmatch(pattern, name) for pattern in patterns)


def _report(
    leaves: Leaves,
    sources: dict[tuple[str, ...], str],
    missing: list[str],
    unexpected: list[str],
    weights: Keys,
    layout: Layout,
) -> None:
    wrong = []
    for path, key in sources.items():
        shape = leaves[path].shape
        expected = shape[::-1] if layout.transposed(path) else shape
        if weights.shape(key) != expected:
            wrong.append(f"{key} (expected {expected}, found {weights.shape(key)})")
    faults = {
        "missing keys": missing,
        "unexpected keys": unexpected,
        "wrong shapes": wrong,
    }
    lines = [
        f"  {fault}: {list_names(names, str, LISTED)}" for fault, names in faults.items() if names
    ]
    if any(entry.startswith(("classifier.", "score.")) for entry in wrong):
        lines.append(
            "  a classifier of another size: leave num_labels out, pass the file's, or draw a new "
            "one with new_head=True"
        )
    if lines:
        raise ModelError("\n".join([f"{weights.directory} does not fit the model:", *lines]))


# Heads that are always fresh when a task begins: no reason to warn.
_HEADS = TASK_HEADS["SEQ_CLS"]


def load_leaves(
    leaves: Leaves,
    plan: Plan,
    weights: Weights | GgufFile,
    names: dict[str, str],
    layout: Layout,
    *,
    settings: Any,
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
        settings: what the config says.
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
    tied = None if plan.tied is None else (plan.tied, names[layout.embeddings])
    several = spans_all_processes(mesh)
    if several and isinstance(weights, Weights):
        weights = weights._replace(alone=True)
    source = Source(weights, plan.sources, layout, stacks, tied)
    source.check_tied_shapes()
    arrays, misfits = {}, []
    total, done = sum(map(_bytes, leaves.values())), 0
    for path, leaf in leaves.items():
        sharding = reading = None
        if mesh is not None:
            spec, found = _spec(".".join(path), leaf, mesh, specs, settings)
            misfits += found
            sharding = reading = jax.sharding.NamedSharding(mesh, spec)
        if several:
            rows = leaf.ndim - 1 if layout.transposed(path) else int(path in stacks)
            reading = along_rows(sharding, leaf.shape, rows)
        kind = quantize if is_quantized(path, layout.layers) else None
        # From float32, so that the few bits are the same whatever the model's dtype is.
        dtype = leaf.dtype if kind is None else np.dtype(np.float32)
        if path in stacks or path in plan.sources:
            read = functools.partial(source.read, path, dtype)
        else:
            read = draw(path, leaf.shape, seed, spread).astype(dtype).__getitem__
        array = place(read, leaf.shape, dtype, with_auto_axes(reading))
        if several and (kind is not None or reading != sharding):
            meet()
        with own_mesh(array):
            if kind is None:
                placed = {path: move(array, sharding)}
            else:
                found = place_parts(path, quantize_kernel(array, kind))
                placed = {part: move_part(value, sharding) for part, value in found.items()}
        del array  # where it was read to, which may not be where it lies
        arrays |= jax.block_until_ready(placed)
        done += _bytes(leaf)
        if progress is not None:
            progress(done, total)
    _warn(plan, weights)
    warn_of(misfits)
    return arrays


def _bytes(leaf: jax.ShapeDtypeStruct) -> int:
    return leaf.size * leaf.dtype.itemsize


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
    settings: Any,
) -> tuple[Any, list[Misfit]]:
    """How a leaf lies on the mesh, and what of our own rule does not fit; theirs is law."""
    if specs is not None:
        return specs(path, leaf), []
    spec, misfits = fit_spec(path, leaf.shape, base_specs(path, leaf), mesh.shape)
    own = FAMILIES[settings.model_type].specs
    spec, cut = keep_heads_whole(own, settings, path, spec, mesh.shape)
    return spec, [*misfits, *cut]


def _warn(plan: Plan, weights: Keys) -> None:
    if plan.unknown:
        warn(
            f"{weights.directory} holds tensors of modules that the model does not have, and they "
            f"are not read: {list_names(plan.unknown, str, LISTED)}. If they matter, the outputs "
            "are not those of the model that was saved",
            UnreadWeightsWarning,
        )
    names = [".".join(path) for path in plan.fresh if path[0] not in _HEADS]
    if names:
        warn(
            f"not in the checkpoint, drawn at random: {list_names(names, str, LISTED)}; "
            "train them before you rely on the output",
            FreshWeightsWarning,
        )
