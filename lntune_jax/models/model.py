"""A Hugging Face checkpoint as a plain tree of weights and a pure function, without PyTorch.

`from_pretrained` reads config and weights; `from_config` needs the config alone and gives the
tree's shapes.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from lntune_jax.errors import ModelError

from ..messages import nearest
from ..storage.processes import together
from .families import base as fields
from .families.names import find_stacks, unstack, write_name_map
from .families.registry import FAMILIES, is_classifier
from .loading.shards import spans_all_processes
from .loading.sources import (
    check_layers,
    config_from,
    config_of,
    find_directory,
    open_source,
    read_pooling,
    read_stop_tokens,
    with_labels,
)
from .loading.weights import canonical_keys, load_leaves, match, without_head
from .nn.quantized import check_kind, quantized_shapes
from .nn.skeleton import nest
from .types import POOLINGS, GivenOptions, Options

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from lntune_jax.names.rules import NameMap

    from .families.names import Stacks
    from .types import Leaves, ModelOutput


ATTENTIONS = ("auto", "xla", "cudnn", "splash")
REMATS = ("none", "dots_saveable", "dots_with_no_batch_dims_saveable", "full")
# Not float16: its narrow range asks for loss scaling, and JAX's attention refuses it on CPU.
DTYPES = ("float32", "bfloat16")


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
            position_ids=None, *, dropout_rng=None, with_hidden=False) -> ModelOutput`, of a decoder
            `apply(params, input_ids, attention_mask=None, position_ids=None, *,
            segment_ids=None, cache=None, dropout_rng=None, with_logits=True)`. All inputs are
            integers of the shape (batch, length), the mask may hold booleans. Without
            `dropout_rng` nothing is dropped. Ids outside their table give NaN. Weights may be
            wider than the model's dtype: norms compute in float32 in any case, the others are
            cast. A decoder's positions are the columns unless they are given, as in PyTorch;
            with `segment_ids` (several texts in one row) they begin anew in each segment, and
            tokens see their own segment only. `cache` is what `empty_cache` gives, or the
            `cache` of the output before. Of a language model `with_logits="last"` gives the
            logits of the last column alone, `False` none.
        task: the task it was made for.
        fresh: the leaf paths, with dots, that were drawn at random.
        settings: what was read from the config, every field checked.
        options: how it was made: the options of `from_pretrained` that decide what it computes
            and how.
        name_map: of a scanned model, transformers' names for all leaves, layer by layer, for
            `partition_params`, `save_adapter`, `restore_adapter`, `export_peft` and
            `import_peft`; else `None`, which they take too.
        stop_tokens: of a language model, the ids at which `generate` ends a text: those of
            generation_config.json, or else of the config (`eos_token_id`).

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
    options: Options = field(default_factory=Options)
    name_map: NameMap | None = field(default=None, repr=False)
    stop_tokens: tuple[int, ...] = ()

    @property
    def dtype(self) -> str:
        """The type of weights and activations."""
        return self.options.dtype

    @property
    def max_length(self) -> int:
        """The most tokens of a row that the model has positions for."""
        return getattr(self.settings, "max_length", self.config.max_position_embeddings)

    @property
    def quantize(self) -> str | None:
        """What the kernels of the layers are kept as, or `None` for `dtype`."""
        return self.options.quantize


def from_pretrained(
    name_or_directory: str | os.PathLike[str],
    task: str | None = None,
    *,
    num_labels: int | None = None,
    mesh: Any = None,
    specs: Callable[[str, Any], Any] | None = None,
    seed: int = 0,
    new_head: bool = False,
    revision: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Unpack[GivenOptions],
) -> PretrainedModel:
    """Load a checkpoint of an encoder (BERT and its kin) or of a decoder (Llama and its kin).

    The weights come from `model.safetensors`, from several such files with an index, or, for
    a decoder, from a GGUF file, quantised or not, which holds the config too. Only a
    head (and the pooler that BERT's sequence classifier reads) may be missing in them: it is
    drawn from the normal distribution with the config's `initializer_range`, biases zero. A
    bare model whose checkpoint has no pooler has none, and a language model's head is never
    drawn. Tensors are read, cast and placed one at a time; with a mesh, each process reads only
    the parts of its own devices, and an error on one process is an error on all.

    Args:
        name_or_directory: a model directory, a GGUF file, or an id on the Hugging Face hub.
        task: `None` for the bare model; for an encoder "SEQ_CLS", "TOKEN_CLS" or "MASKED_LM", for
            a decoder "CAUSAL_LM" or "SEQ_CLS".
        num_labels: outputs of a classifier, in place of the config's.
        mesh: a `jax.sharding.Mesh` to put the weights on. Its axes "fsdp" and "tensor", where it
            has them, divide them as `model_specs` says; along any other there are copies.
        specs: in place of that, `specs(path, leaf)` gives the `PartitionSpec` of a leaf, from its
            path with dots and its shape and dtype.
        seed: for leaves that the checkpoint lacks.
        new_head: draw a classifier's head anew, also where the checkpoint has one: of another
            number of labels, or for other labels.
        revision: a branch, tag or commit on the hub.
        progress: called as `progress(done, total)`, in bytes, after each tensor.
        options: how the model is made and computes, each by its name: `dtype`, `pooling`,
            `attention`, `remat`, `scan_layers`, `frozen_layers`, `quantize`. `Options` says what
            they mean and what they are if left out; `model.options` keeps them.

    Raises:
        TypeError: there is no option of a name.
        ModelError: the name is neither a directory nor on the hub; a file is missing, damaged
            or a pickle; the config holds something that cannot be honoured exactly; the weights
            do not fit the model; `quantize` would quantise activations, through which norms
            get wrong gradients. The message names file, field or keys.
        ShardingError: `mesh` is no `jax.sharding.Mesh`.
        AnotherProcessError: the mesh spans a run of several processes, and one of them raised.

    Warns:
        ShardingWarning: an axis of the mesh does not divide one of a leaf, or the heads in it,
            and the leaf is left whole along it.
        FreshWeightsWarning: leaves outside `classifier` and `score` were drawn at random.
        UnreadWeightsWarning: tensors of modules that the model does not have were passed over.

    Example:
        >>> from lntune_jax.models import from_pretrained
        >>> try:
        ...     from_pretrained("./no-such-directory", task="SEQ_CLS")
        ... except ValueError as error:
        ...     print(error)
        './no-such-directory' is neither a directory nor an id on the hub
    """
    made = check_options(task, read_options(options, from_pretrained))
    with together(spans_all_processes(mesh)):
        path = find_directory(name_or_directory, revision)
        with open_source(path) as (found, weights):
            config = with_labels(found, num_labels)
            made = _choose_pooling(made, task, config, path)
            stops = read_stop_tokens(config, path) if task == "CAUSAL_LM" else ()
            layout = FAMILIES[config.model_type].checkpoint_names
            names = canonical_keys(weights, layout.prefix)
            if new_head:
                names = without_head(names, task)
            check_layers(config, len(names), weights.directory)
            pooler = any(name.startswith("pooler.") for name in names)
            blueprint = draw_up(config, task, made, pooler=pooler)
            parts = unstack(blueprint.leaves, blueprint.stacks)
            plan = match(parts, names, weights, task, layout)
            arrays = load_leaves(
                blueprint.leaves,
                plan,
                weights,
                names,
                layout,
                settings=blueprint.settings,
                stacks=blueprint.stacks,
                mesh=mesh,
                specs=specs,
                seed=seed,
                spread=blueprint.settings.initializer_range,
                progress=progress,
                quantize=made.quantize,
            )
    fresh = tuple(map(".".join, plan.fresh))
    return complete(blueprint, nest(arrays), config, fresh, stops)


def from_config(
    directory_or_config: Any,
    task: str | None = None,
    *,
    num_labels: int | None = None,
    revision: str | None = None,
    **options: Unpack[GivenOptions],
) -> PretrainedModel:
    """Give the model of a config, with shapes in place of weights.

    Args:
        directory_or_config: a transformers config, the dict of a config.json, a directory with
            one, or an id on the Hugging Face hub; no weights are read or fetched.
        task: as in `from_pretrained`.
        num_labels: as in `from_pretrained`.
        revision: as in `from_pretrained`.
        options: as in `from_pretrained`.

    Returns:
        A model whose `params` are `jax.ShapeDtypeStruct`; `jax.eval_shape(model.apply, ...)`
        works on them, and `model.apply` on a tree of arrays of those shapes.

    Raises:
        TypeError: there is no option of a name.
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
    made = check_options(task, read_options(options, from_config))
    config, path = directory_or_config, None
    if isinstance(config, str | os.PathLike):
        more = {"CAUSAL_LM": "generation_config.json", "SEQ_CLS": "modules.json"}
        wanted = [more[task]] if task in more else []
        path = find_directory(config, revision, ("config.json", *wanted))
        config = config_from(path)
    elif isinstance(config, dict):
        config = config_of(config, "the config")
    config = with_labels(config, num_labels)
    made = _choose_pooling(made, task, config, path)
    stops = read_stop_tokens(config, path) if task == "CAUSAL_LM" else ()
    return replace(shapes_of(draw_up(config, task, made, pooler=True), config), stop_tokens=stops)


@dataclass(frozen=True)
class Blueprint:
    """A model without weights.

    Attributes:
        settings: what the config says.
        task: what it is made for.
        options: how it is made.
        leaves: the leaves of its tree, of kernels that are not quantised.
        apply: its function.
        stacks: the leaves that hold all layers, and what the layers' parts are called.
        name_map: transformers' names for all leaves, if some are stacked.
    """

    settings: Any
    task: str | None
    options: Options
    leaves: Leaves
    apply: Callable[..., ModelOutput]
    stacks: Stacks = field(default_factory=dict)
    name_map: NameMap | None = None


def read_options(given: Mapping[str, Any], function: Callable[..., Any]) -> Options:
    """Give the options that were passed by name to a function.

    Raises:
        TypeError: there is none of a name; says which is meant, and which the function takes.
    """
    known = [each.name for each in dataclasses.fields(Options)]
    for name in given:
        if name not in known:
            own = [
                p.name
                for p in inspect.signature(function).parameters.values()
                if p.kind != p.VAR_KEYWORD
            ]
            raise TypeError(
                f"{function.__name__} has no argument {name!r}{nearest(name, [*known, *own])}. Its "
                f"options are {', '.join(known)}, and it takes {', '.join(own)}"
            )
    return Options(**given)


def check_options(task: str | None, options: Options) -> Options:
    """Check what can be known without the config, and give the dtype by its name.

    Raises:
        ModelError: an option is not among the supported ones.
    """
    tasks = dict.fromkeys(task for row in FAMILIES.values() for task in row.kind.tasks)
    _check("task", task, tuple(tasks))
    _check("pooling", options.pooling, (None, *POOLINGS))
    _check("attention", options.attention, ATTENTIONS)
    _check("remat", options.remat, REMATS)
    _check("scan_layers", options.scan_layers, (False, True))
    frozen = options.frozen_layers
    if isinstance(frozen, bool) or not isinstance(frozen, int) or frozen < 0:
        raise ModelError(f"frozen_layers is {frozen!r}; expected an integer of at least 0")
    if frozen and not options.scan_layers:
        raise ModelError(
            f"frozen_layers is {frozen}, which only scan_layers=True reads: the backward pass of "
            "separate layers ends by itself below the lowest that trains; leave it out"
        )
    if options.pooling is not None and task != "SEQ_CLS":
        raise ModelError(f"pooling is {options.pooling!r}, which only the task 'SEQ_CLS' reads")
    try:
        name = np.dtype(options.dtype).name
    except TypeError:
        name = str(options.dtype)
    if name not in DTYPES:
        raise ModelError(f"dtype is {name!r}; supported: {', '.join(DTYPES)}")
    quantize = check_kind(options.quantize, scan_layers=options.scan_layers)
    return replace(options, dtype=name, quantize=quantize)


def draw_up(config: Any, task: str | None, options: Options, *, pooler: bool) -> Blueprint:
    """Give the model of a config.

    Args:
        config: a transformers config.
        task: what it is made for.
        options: from `check_options`.
        pooler: whether a bare encoder or a mean-pooling classifier has a pooler.

    Raises:
        ModelError: the config or an option is one that this architecture does not honour.
    """
    model_type = fields.read(config, "model_type")
    fields.require("model_type", model_type, model_type in FAMILIES, fields.one_of(FAMILIES))
    family = FAMILIES[model_type]
    settings = family.read_settings(config)
    if task not in family.kind.tasks:
        supported = ", ".join(map(repr, family.kind.tasks))
        raise ModelError(f"task is {task!r}; supported by {model_type}: {supported}")
    for unread in dataclasses.fields(Options):
        found = getattr(options, unread.name)
        if unread.name not in family.kind.options and found != unread.default:
            raise ModelError(
                f"{unread.name} is {found!r}, which {model_type} does not have: leave it out"
            )
    head = family.heads.get("SEQ_CLS")
    if head is not None and options.pooling == head.reads(settings):
        options = replace(options, pooling="own")  # as merging and PEFT's classes know it
    return assemble(settings, task, options, pooler=pooler)


def assemble(settings: Any, task: str | None, options: Options, *, pooler: bool) -> Blueprint:
    """Give the model of settings that were checked.

    Raises:
        ModelError: an option does not go with them.
    """
    family = FAMILIES[settings.model_type]
    leaves, apply = family.kind.build(family, settings, task, options, pooler=pooler)
    if not options.scan_layers:
        return Blueprint(settings, task, options, leaves, apply)
    layout = family.checkpoint_names
    stacks = find_stacks(leaves, layout, settings.num_hidden_layers)
    names = write_name_map(leaves, stacks, layout, settings.model_type)
    return Blueprint(settings, task, options, leaves, apply, stacks, names)


def _choose_pooling(options: Options, task: str | None, config: Any, path: Path | None) -> Options:
    """Give the options with the pooling of a classifier, where none was asked for."""
    family = FAMILIES.get(fields.read(config, "model_type"))  # `draw_up` refuses an unknown one
    has_choice = family is not None and "pooling" in family.kind.options
    if not has_choice and options.pooling == "own":  # which is true of every architecture
        return replace(options, pooling=None)
    if options.pooling is not None or task != "SEQ_CLS" or not has_choice:
        return options
    said = None if path is None or is_classifier(config) else read_pooling(path)
    return replace(options, pooling=said or "own")


def complete(
    made: Blueprint,
    params: Any,
    config: Any = None,
    fresh: tuple[str, ...] = (),
    stops: tuple[int, ...] = (),
) -> PretrainedModel:
    """Give the model with its weights."""
    rest = fresh, made.settings, made.options, made.name_map, stops
    return PretrainedModel(params, config, made.apply, made.task, *rest)


def shapes_of(made: Blueprint, config: Any = None) -> PretrainedModel:
    """Give the model with shapes in place of weights."""
    layers = FAMILIES[made.settings.model_type].checkpoint_names.layers
    leaves = quantized_shapes(made.leaves, made.options.quantize, layers)
    return complete(made, nest(leaves), config)


def _check(name: str, value: Any, supported: tuple[Any, ...]) -> None:
    if value not in supported:
        raise ModelError(f"{name} is {value!r}; supported: {', '.join(map(repr, supported))}")
