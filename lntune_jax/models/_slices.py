"""The model that one device runs: a few of the layers, and its share of heads and MLP."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lntune_jax.errors import ModelError
from lntune_jax.paths import flatten

from ._build import Recipe, build, nest
from ._decoder_build import DecoderRecipe, build_decoder
from ._decoder_settings import DecoderSettings
from ._gpt2_settings import Gpt2Settings
from ._layout import LAYOUTS
from ._pretrained import PretrainedModel
from ._quantized import count_bytes
from ._scan import LOWER
from ._stack import Options
from ._stacked import count_frozen, find_stacks, unstack, write_name_map

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._blueprint import Choices

_SHARED = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size")


def slice_model(settings: Any, choices: Choices, layers: int, tensor: int) -> PretrainedModel:
    """Give the model of the first layers, as one of `tensor` devices holds it.

    Heads, the MLP's width and the vocabulary are divided, so that what is left is a model of the
    same kind: what each device computes with under tensor parallelism.

    Raises:
        ModelError: the model cannot be divided so.
    """
    if isinstance(settings, DecoderSettings):
        parts = {name: _divide(settings, name, tensor) for name in _SHARED}
        own: Any = replace(settings, layers=settings.layers[:layers], **parts)
    elif tensor > 1:
        raise ModelError(f"the mesh has tensor={tensor}; only the Llama family is divided so")
    elif isinstance(settings, Gpt2Settings):
        own = replace(settings, scales=settings.scales[:layers])
    else:
        own = replace(settings, num_hidden_layers=layers)
        pooled = choices.task == "SEQ_CLS" and own.architecture.pooled_classifier
        pooler = choices.task is None or (pooled and choices.pooling is None)
        leaves, apply = build(Recipe(own, choices.task, choices.pooling, pooler, choices.dtype))
        return PretrainedModel(
            nest(leaves), None, apply, choices.task, settings=own, dtype=choices.dtype
        )
    options = Options(choices.dtype, choices.attention, choices.remat, choices.scan_layers)
    leaves, apply = build_decoder(DecoderRecipe(own, choices.task, options))
    names = None
    if choices.scan_layers:
        layout = LAYOUTS[own.model_type]
        stacks = find_stacks(leaves, layout, layers)
        names = write_name_map(leaves, stacks, layout, own.model_type)
    return PretrainedModel(
        nest(leaves), None, apply, choices.task, settings=own, dtype=choices.dtype, name_map=names
    )


def count_differentiated(model: PretrainedModel, trainable: Iterable[str]) -> int:
    """Give how many layers the backward pass of LN tuning goes through.

    Args:
        model: perhaps with frozen layers in a stack of their own.
        trainable: the paths of what trains; a norm of the frozen stack makes all of it count.
    """
    layers = model.settings.num_hidden_layers
    if model.name_map is None:
        return layers
    layout = LAYOUTS[model.settings.model_type]
    below = f".{layout.layers}.{LOWER}."
    if any(below in f".{path}" for path in trainable):
        return layers
    leaves = {leaf.path: leaf.value for leaf in flatten(model.params)[0]}
    return layers - count_frozen(leaves, layout)


def largest_leaf(model: PretrainedModel) -> int:
    """Give the bytes of the largest leaf, or, of a stacked one, of one layer of it."""
    leaves = {leaf.path: leaf.value for leaf in flatten(model.params)[0]}
    if model.name_map is not None:
        settings = model.settings
        stacks = find_stacks(leaves, LAYOUTS[settings.model_type], settings.num_hidden_layers)
        leaves = unstack(leaves, stacks)
    return max(map(count_bytes, leaves.values()))


def _divide(settings: Any, name: str, tensor: int) -> int:
    size = getattr(settings, name)
    if size % tensor:
        raise ModelError(f"the mesh has tensor={tensor}, which does not divide {name} = {size}")
    return size // tensor
