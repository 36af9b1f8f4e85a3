"""Which tensor of a checkpoint goes to which leaf of a model.

All keys and shapes are compared before anything is read: what is missing, left over or of the
wrong shape is one error that lists it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lntune_jax.errors import ModelError

from ._layout import TENSORFLOW_LEAVES, Layout

if TYPE_CHECKING:
    from ._build import Leaves
    from ._files import Weights
    from ._gguf import GgufFile

LISTED = 8


@dataclass(frozen=True)
class Plan:
    """Where each leaf comes from.

    Attributes:
        sources: for a leaf path, the key in the checkpoint.
        fresh: the leaf paths that the checkpoint lacks and may lack.
        tied: the key of output weights which must equal the word embeddings, if there are any.
    """

    sources: dict[tuple[str, ...], str]
    fresh: tuple[tuple[str, ...], ...]
    tied: str | None


def canonical_keys(weights: Weights | GgufFile, prefix: str) -> dict[str, str]:
    """Give each key under the name it has in a bare model, whatever the file calls it.

    Raises:
        ModelError: two keys have one name.
    """
    names: dict[str, str] = {}
    for key in weights.keys():  # noqa: SIM118
        name = key.removeprefix(prefix + ".")
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
    weights: Weights | GgufFile,
    task: str | None,
    layout: Layout,
) -> Plan:
    """Find the tensor of every leaf, and say so where that cannot be done.

    Args:
        leaves: the model's leaves.
        names: the checkpoint's keys, from `canonical_keys`.
        weights: the checkpoint.
        task: the model's task.
        layout: the architecture's names.

    Raises:
        ModelError: keys are missing or unexpected, or shapes differ.
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
    unexpected = [names[name] for name in left if not _harmless(name, layout.harmless[task])]
    sources = {path: names[name] for path, name in found.items() if name is not None}
    _report(leaves, sources, [wanted[path] for path in missing], unexpected, weights, layout)
    needed = task == layout.tied_task and bool(tied)
    return Plan(sources, tuple(fresh), names[tied[0]] if needed else None)


def _find(name: str, names: dict[str, str], layout: Layout) -> str | None:
    return next((n for n in (name, layout.synonyms.get(name)) if n in names), None)


def _harmless(name: str, patterns: tuple[str, ...]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _report(
    leaves: Leaves,
    sources: dict[tuple[str, ...], str],
    missing: list[str],
    unexpected: list[str],
    weights: Weights | GgufFile,
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
    lines = [f"  {fault}: {_listed(names)}" for fault, names in faults.items() if names]
    if any(entry.startswith(("classifier.", "score.")) for entry in wrong):
        lines.append("  a classifier of another size: leave num_labels out, or pass the file's")
    if lines:
        raise ModelError("\n".join([f"{weights.directory} does not fit the model:", *lines]))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
