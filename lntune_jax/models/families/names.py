"""What checkpoint files call things and how they lay them out, for each kind of model.

Of a scanned model, some leaves hold all layers; a part is called what it is called in the model
whose layers are not scanned, and that is what checkpoints and adapters go by.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import jax

from lntune_jax.names.rules import NameMap, NameRule

from ..nn.stack import LOWER, UPPER

if TYPE_CHECKING:
    from ..types import Leaves

    Path = tuple[str, ...]
    Stacks = dict[Path, tuple[Path, ...]]


# The last segment of a leaf path here: the one PyTorch uses for it.
TORCH_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}

# What checkpoints converted from TensorFlow call the leaves of a LayerNorm.
TENSORFLOW_LEAVES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


@dataclass(frozen=True)
class Layout:
    """The names in a checkpoint of one architecture.

    Attributes:
        prefix: the attribute under which a model with a head keeps its base, as files of such
            models do.
        embeddings: the word embeddings' key in a bare model.
        fresh: for a task, the modules that a checkpoint may lack, all their leaves together.
        tied: output weights that a file may hold beside the word embeddings they equal.
        tied_task: the task which reads those.
        harmless: for a task, keys (whole, as regular expressions) that it does not use though a
            checkpoint may hold them.
        synonyms: second names of keys, of which a file may hold only one.
        kept: modules whose kernels PyTorch keeps as (inputs, outputs), like Flax; the others
            are transposed.
        layers: the list of layers.
    """

    prefix: str
    embeddings: str
    fresh: dict[str | None, tuple[str, ...]]
    tied: tuple[str, ...]
    tied_task: str
    harmless: dict[str | None, tuple[str, ...]]
    synonyms: dict[str, str] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    layers: str = "layers"

    def name(self, path: tuple[str, ...]) -> str:
        """Give the key that a leaf has in a bare model."""
        return self.parameter(path[1:] if path[0] == self.prefix else path)

    def parameter(self, path: tuple[str, ...]) -> str:
        """Give what PyTorch calls a leaf of the same model."""
        return ".".join((*path[:-1], TORCH_LEAVES[path[-1]]))

    def transposed(self, path: tuple[str, ...]) -> bool:
        """Whether PyTorch keeps a leaf's axes the other way round."""
        return path[-1] == "kernel" and path[-2] not in self.kept


# Heads that a decoder's file may hold, whatever the task.
_HEADS = (r"lm_head\.weight", r"score\.weight")


def name_decoder(
    prefix: str,
    embeddings: str,
    buffers: str,
    kept: tuple[str, ...] = (),
    layers: str = "layers",
) -> Layout:
    """Give the names of a decoder.

    Args:
        prefix: as in `Layout`.
        embeddings: as in `Layout`.
        buffers: the keys of what older versions saved, which is computed here.
        kept: as in `Layout`.
        layers: as in `Layout`.
    """
    return Layout(
        prefix=prefix,
        embeddings=embeddings,
        fresh={None: (), "CAUSAL_LM": (), "SEQ_CLS": ("score",)},
        tied=("lm_head.weight",),
        tied_task="CAUSAL_LM",
        harmless={
            None: (buffers, *_HEADS),
            "SEQ_CLS": (buffers, *_HEADS),
            "CAUSAL_LM": (buffers, r"score\.weight"),
        },
        kept=kept,
        layers=layers,
    )


def find_stacks(leaves: Leaves, layout: Layout, count: int) -> Stacks:
    """Give, for each stacked leaf, the paths of its layers' parts.

    Args:
        leaves: anything with a shape, by path.
        layout: the architecture's.
        count: the layers of the model, be they in one stack or in two.
    """
    stacks = {}
    for path, leaf in leaves.items():
        place = path.index(layout.layers) + 1 if layout.layers in path[:2] else 0
        if place:
            held = leaf.shape[0]
            first = count - held if path[place] == UPPER else 0
            rest = path[place + 1 :] if path[place] in (LOWER, UPPER) else path[place:]
            stacks[path] = tuple(
                (*path[:place], str(index), *rest) for index in range(first, first + held)
            )
    return stacks


def count_frozen(leaves: Leaves, layout: Layout) -> int:
    """Give how many layers are in the lower one of two stacks, 0 where there is one or none."""
    lower = (
        leaf.shape[0] for path, leaf in leaves.items() if (layout.layers, LOWER) in pairwise(path)
    )
    return next(lower, 0)


def unstack(leaves: Leaves, stacks: Stacks) -> Leaves:
    """Give the leaves with those of layers one by one."""
    return {
        part: jax.ShapeDtypeStruct(leaf.shape[1:] if path in stacks else leaf.shape, leaf.dtype)
        for path, leaf in leaves.items()
        for part in stacks.get(path, (path,))
    }


def write_name_map(leaves: Leaves, stacks: Stacks, layout: Layout, model_type: str) -> NameMap:
    """Give the map from every leaf of a scanned model to transformers' parameters."""
    return NameMap(
        source="lntune_jax.models, scan_layers=True",
        model_types=(model_type,),
        rules=tuple(_rule(path, stacks.get(path), layout) for path in leaves),
    )


def _rule(path: Path, parts: tuple[Path, ...] | None, layout: Layout) -> NameRule:
    leaf, transposed = ".".join(path), layout.transposed(path)
    if parts is None:
        return NameRule(leaf=leaf, parameter=layout.parameter(path), transpose=transposed)
    place = path.index(layout.layers) + 1
    numbered = (*parts[0][:place], "{layer}", *parts[0][place + 1 :])
    return NameRule(
        leaf=leaf,
        parameter=layout.parameter(numbered),
        layer_axis=0,
        first=int(parts[0][place]),
        layers=len(parts),
        transpose=transposed,
    )
