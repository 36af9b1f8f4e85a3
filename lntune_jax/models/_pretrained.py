"""A Hugging Face checkpoint as a plain tree of weights and a pure function, without PyTorch.

`from_pretrained` reads config and weights; `from_config` needs the config alone and gives the
tree's shapes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ._blueprint import Choices, check_choices, draw_up
from ._build import nest
from ._directory import check_layers, config_of, find_directory, with_labels
from ._layout import LAYOUTS
from ._loading import load_leaves
from ._matching import canonical_keys, match
from ._quantize import check_kind, quantized_shapes
from ._source import config_from, open_source
from ._stacked import unstack

if TYPE_CHECKING:
    from collections.abc import Callable

    from lntune_jax.names.rules import NameMap

    from ._blueprint import Blueprint
    from ._outputs import ModelOutput


@dataclass(frozen=True, eq=False)
class PretrainedModel:
    """A model's weights and the function that uses them.

    Attributes:
        params: a nested dict with string keys, indices of layers too. The paths are PyTorch's
            module paths, the leaves Flax's: `kernel` (inputs, outputs) and `bias`, `scale` and
            `bias`, `embedding`.
        config: the transformers config.
        apply: a pure function, which jit, grad and vmap can take: of an encoder
            `apply(params, input_ids, attention_mask=None, token_type_ids=None,
            position_ids=None, *, dropout_rng=None) -> ModelOutput`, of a decoder
            `apply(params, input_ids, attention_mask=None, position_ids=None, *,
            segment_ids=None, cache=None, dropout_rng=None, with_logits=True)`. All inputs are
            integers of the shape (batch, length), the mask may hold booleans. Without
            `dropout_rng` nothing is dropped. Ids outside their table give NaN. Weights may be
            wider than the model's dtype: norms compute in float32 in any case, the others are
            cast. A decoder's positions are the columns unless they are given, as in PyTorch;
            with `segment_ids` (several texts in one row) they begin anew in each segment, and
            tokens see their own segment only. `cache` is what `empty_cache` gives, or the
            `cache` of the output before.
        task: the task it was made for.
        fresh: the leaf paths, with dots, that were drawn at random.
        settings: what was read from the config, every field checked.
        dtype: of weights and activations.
        name_map: of a scanned model, transformers' names for all leaves, layer by layer, for
            `partition_params`, `save_adapter`, `restore_adapter`, `export_peft` and
            `import_peft`; else `None`, which they take too.
        quantize: what the kernels of the layers are kept as, or `None` for `dtype`.

    Example:
        >>> import jax
        >>> from transformers import BertConfig
        >>> from lntune_jax.models import from_config
        >>> tiny = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
        >>> model = from_config(tiny, task="MASKED_LM")
        >>> tokens = jax.ShapeDtypeStruct((2, 16), "int32")
        >>> jax.eval_shape(model.apply, model.params, tokens).logits.shape
        (2, 16, 30522)
    """

    params: dict[str, Any] = field(repr=False)
    config: Any = field(repr=False)
    apply: Callable[..., ModelOutput] = field(repr=False)
    task: str | None = None
    fresh: tuple[str, ...] = ()
    settings: Any = field(default=None, repr=False)
    dtype: str = "float32"
    name_map: NameMap | None = field(default=None, repr=False)
    quantize: str | None = None


def from_pretrained(
    name_or_directory: str | os.PathLike[str],
    task: str | None = None,
    *,
    dtype: Any = "float32",
    mesh: Any = None,
    specs: Callable[[str, Any], Any] | None = None,
    num_labels: int | None = None,
    pooling: str | None = None,
    attention: str = "xla",
    remat: str = "none",
    scan_layers: bool = False,
    frozen_layers: int = 0,
    seed: int = 0,
    revision: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    quantize: str | None = None,
) -> PretrainedModel:
    """Load a BERT, RoBERTa, Llama, Mistral, Qwen, Gemma or GPT-2 checkpoint.

    The weights come from `model.safetensors`, from several such files with an index, or, for
    a decoder, from a GGUF file, quantised or not, which holds the config too. Only a
    head (and the pooler that BERT's sequence classifier reads) may be missing in them: it is
    drawn from the normal distribution with the config's `initializer_range`, biases zero. A
    bare model whose checkpoint has no pooler has none, and a language model's head is never
    drawn. Tensors are read, cast and placed one at a time.

    Args:
        name_or_directory: a model directory, a GGUF file, or an id on the Hugging Face hub.
        task: `None` for the bare model; for BERT and RoBERTa "SEQ_CLS", "TOKEN_CLS" or
            "MASKED_LM", for the others "CAUSAL_LM" or "SEQ_CLS".
        dtype: of weights and activations: "float32" or "bfloat16", whatever the file's is.
        mesh: a `jax.sharding.Mesh` to put the weights on. Its axes "fsdp" and "tensor", where it
            has them, divide them as `base_specs` says; along any other there are copies.
        specs: in place of that, `specs(path, leaf)` gives the `PartitionSpec` of a leaf, from its
            path with dots and its shape and dtype.
        num_labels: outputs of a classifier, in place of the config's.
        pooling: what a sequence classifier reads: `None` for the architecture's own, "mean" for
            the mean of the last hidden states over the tokens that count (encoders only).
        attention: "xla", or "cudnn" for flash attention on NVIDIA GPUs (decoders only).
        remat: what a decoder's backward pass computes again to store less: "none", "norms" (all but
            matrix products), "dots" (queries times keys too) or "full" (layers from their input).
        scan_layers: whether a decoder keeps each leaf of its layers once, for all of them, with a
            first axis for the layer (`model.layers.input_layernorm.scale` of shape (layers,
            width)), and runs them in a loop: a program of one layer, which compiles faster.
            The host then holds one whole stacked leaf while it is read.
        frozen_layers: with `scan_layers`, how many layers from the first are a stack and a loop of
            their own, `layers.lower`; where none of them trains, the backward pass ends above.
        seed: for leaves that the checkpoint lacks.
        revision: a branch, tag or commit on the hub.
        progress: called as `progress(done, total)`, in bytes, after each tensor.
        quantize: `None`, or what the kernels of the layers are kept as to take less memory:
            "int8", "int4", "nf4" or "fp8" (needs qwix, the extra `quant`). Norms, biases,
            embeddings and heads stay in `dtype`, and so do activations.

    Raises:
        ModelError: the name is neither a directory nor on the hub; a file is missing, damaged
            or a pickle; the config holds something that cannot be honoured exactly; the weights
            do not fit the model; `quantize` would quantise activations, through which norms
            get wrong gradients. The message names file, field or keys.

    Warns:
        ShardingWarning: an axis of the mesh does not divide one of a leaf, which is left whole.
        FreshWeightsWarning: leaves outside `classifier` and `score` were drawn at random.

    Example:
        >>> from lntune_jax.models import from_pretrained
        >>> try:
        ...     from_pretrained("./no-such-directory", task="SEQ_CLS")
        ... except ValueError as error:
        ...     print(error)
        './no-such-directory' is neither a directory nor an id on the hub
    """
    asked = Choices(task, pooling, dtype, attention, remat, scan_layers, frozen_layers)
    choices = check_choices(asked)
    quantize = check_kind(quantize, scan_layers=scan_layers)
    with open_source(find_directory(name_or_directory, revision)) as (found, weights):
        config = with_labels(found, num_labels)
        layout = LAYOUTS[config.model_type]
        names = canonical_keys(weights, layout.prefix)
        check_layers(config, len(names), weights.directory)
        pooler = any(name.startswith("pooler.") for name in names)
        blueprint = draw_up(config, choices, pooler=pooler)
        parts = unstack(blueprint.leaves, blueprint.stacks)
        plan = match(parts, names, weights, task, layout)
        arrays = load_leaves(
            blueprint.leaves,
            plan,
            weights,
            names,
            layout,
            stacks=blueprint.stacks,
            mesh=mesh,
            specs=specs,
            seed=seed,
            spread=blueprint.settings.initializer_range,
            progress=progress,
            quantize=quantize,
        )
    fresh = tuple(map(".".join, plan.fresh))
    return _complete(nest(arrays), config, blueprint, task, quantize, fresh)


def from_config(
    directory_or_config: Any,
    task: str | None = None,
    *,
    dtype: Any = "float32",
    num_labels: int | None = None,
    pooling: str | None = None,
    attention: str = "xla",
    remat: str = "none",
    scan_layers: bool = False,
    frozen_layers: int = 0,
    revision: str | None = None,
    quantize: str | None = None,
) -> PretrainedModel:
    """Give the model of a config, with shapes in place of weights.

    Args:
        directory_or_config: a transformers config, the dict of a config.json, a directory with
            one, or an id on the Hugging Face hub; no weights are read or fetched.
        task: as in `from_pretrained`.
        dtype: as in `from_pretrained`.
        num_labels: as in `from_pretrained`.
        pooling: as in `from_pretrained`.
        attention: as in `from_pretrained`.
        remat: as in `from_pretrained`.
        scan_layers: as in `from_pretrained`.
        frozen_layers: as in `from_pretrained`.
        revision: as in `from_pretrained`.
        quantize: as in `from_pretrained`.

    Returns:
        A model whose `params` are `jax.ShapeDtypeStruct`; `jax.eval_shape(model.apply, ...)`
        works on them, and `model.apply` on a tree of arrays of those shapes.

    Raises:
        ModelError: as in `from_pretrained`, for all that the config says.

    Example:
        >>> from transformers import BertConfig
        >>> from lntune_jax.models import from_config
        >>> tiny = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
        >>> model = from_config(tiny, task="SEQ_CLS", num_labels=3)
        >>> model.params["classifier"]["kernel"]
        ShapeDtypeStruct(shape=(8, 3), dtype=float32)
        >>> sorted(model.params["bert"]["encoder"]["layer"]["0"]["output"]["LayerNorm"])
        ['bias', 'scale']
    """
    asked = Choices(task, pooling, dtype, attention, remat, scan_layers, frozen_layers)
    choices, config = check_choices(asked), directory_or_config
    quantize = check_kind(quantize, scan_layers=scan_layers)
    if isinstance(config, str | os.PathLike):
        config = config_from(find_directory(config, revision, ("config.json",)))
    elif isinstance(config, dict):
        config = config_of(config, "the config")
    blueprint = draw_up(config := with_labels(config, num_labels), choices, pooler=True)
    leaves = quantized_shapes(blueprint.leaves, quantize)
    return _complete(nest(leaves), config, blueprint, task, quantize)


def _complete(
    tree: Any, config: Any, made: Blueprint, task: Any, quantize: Any, fresh: tuple[str, ...] = ()
) -> PretrainedModel:
    rest = fresh, made.settings, made.dtype, made.name_map, quantize
    return PretrainedModel(tree, config, made.apply, task, *rest)
