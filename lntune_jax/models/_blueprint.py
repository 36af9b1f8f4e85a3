"""What a user asked for and what the config says, put together: leaves and `apply` of a model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lntune_jax.errors import ModelError

from . import _fields as fields
from ._build import Recipe, build
from ._decoder_build import DecoderRecipe, build_decoder
from ._decoder_names import ATTENTIONS, DECODER_TASKS, FAMILIES, REMATS
from ._decoder_settings import read_decoder_settings
from ._gpt2_settings import read_gpt2_settings
from ._layout import LAYOUTS
from ._names import DTYPES, ENCODER_TASKS, POOLINGS, TASKS
from ._settings import read_settings
from ._stack import Options
from ._stacked import find_stacks, write_name_map

if TYPE_CHECKING:
    from collections.abc import Callable

    from lntune_jax.names.rules import NameMap

    from ._build import Leaves
    from ._outputs import ModelOutput
    from ._stacked import Stacks


@dataclass(frozen=True)
class Choices:
    """The options of `from_pretrained` that decide the modules."""

    task: str | None
    pooling: str | None
    dtype: Any
    attention: str
    remat: str
    scan_layers: bool = False
    frozen_layers: int = 0


@dataclass(frozen=True)
class Blueprint:
    """A model without weights.

    Attributes:
        settings: what the config says.
        leaves: the leaves of its tree.
        apply: its function.
        dtype: of weights and activations.
        stacks: the leaves that hold all layers, and what the layers' parts are called.
        name_map: transformers' names for all leaves, if some are stacked.
    """

    settings: Any
    leaves: Leaves
    apply: Callable[..., ModelOutput]
    dtype: str
    stacks: Stacks = field(default_factory=dict)
    name_map: NameMap | None = None


def check_choices(choices: Choices) -> Choices:
    """Check what can be known without the config, and give the dtype by its name.

    Raises:
        ModelError: an option is not among the supported ones.
    """
    task, pooling = choices.task, choices.pooling
    _check("task", task, TASKS)
    _check("pooling", pooling, POOLINGS)
    _check("attention", choices.attention, ATTENTIONS)
    _check("remat", choices.remat, REMATS)
    _check("scan_layers", choices.scan_layers, (False, True))
    frozen = choices.frozen_layers
    if isinstance(frozen, bool) or not isinstance(frozen, int) or frozen < 0:
        raise ModelError(f"frozen_layers is {frozen!r}; expected an integer of at least 0")
    if frozen and not choices.scan_layers:
        raise ModelError(
            f"frozen_layers is {frozen}, which only scan_layers=True reads: the backward pass of "
            "separate layers ends by itself below the lowest that trains; leave it out"
        )
    if pooling is not None and task != "SEQ_CLS":
        raise ModelError(f"pooling is {pooling!r}, which only the task 'SEQ_CLS' reads")
    try:
        name = np.dtype(choices.dtype).name
    except TypeError:
        name = str(choices.dtype)
    if name not in DTYPES:
        raise ModelError(f"dtype is {name!r}; supported: {', '.join(DTYPES)}")
    return replace(choices, dtype=name)


def draw_up(config: Any, choices: Choices, *, pooler: bool) -> Blueprint:
    """Give the model of a config.

    Args:
        config: a transformers config.
        choices: from `check_choices`.
        pooler: whether a bare encoder or a mean-pooling classifier has a pooler.

    Raises:
        ModelError: the config or an option is one that this architecture does not honour.
    """
    model_type = fields.read(config, "model_type")
    fields.require("model_type", model_type, model_type in LAYOUTS, fields.one_of(LAYOUTS))
    if model_type in FAMILIES or model_type == "gpt2":
        return _decoder(config, choices)
    settings = read_settings(config)
    unused = {"attention": "xla", "remat": "none", "scan_layers": False}
    _fits(settings.architecture.prefix, choices, ENCODER_TASKS, unused)
    # RoBERTa's classifier never reads a pooler, and its PyTorch class has none.
    task, pooling = choices.task, choices.pooling
    pooled = task == "SEQ_CLS" and settings.architecture.pooled_classifier
    reads = task == "SEQ_CLS" and pooling is None
    recipe = Recipe(
        settings, task, pooling, (pooler or reads) and (task is None or pooled), choices.dtype
    )
    leaves, apply = build(recipe)
    return Blueprint(settings, leaves, apply, choices.dtype)


def _decoder(config: Any, choices: Choices) -> Blueprint:
    gpt2 = config.model_type == "gpt2"
    settings = read_gpt2_settings(config) if gpt2 else read_decoder_settings(config)
    _fits(config.model_type, choices, DECODER_TASKS, {"pooling": None})
    if choices.attention == "cudnn" and settings.attention_cap is not None:
        raise ModelError(
            "attention is 'cudnn', which knows no soft cap, but config field "
            f"'attn_logit_softcapping' is {settings.attention_cap}; pass attention='xla'"
        )
    if choices.frozen_layers >= settings.num_hidden_layers:
        raise ModelError(
            f"frozen_layers is {choices.frozen_layers}, and config field 'num_hidden_layers' "
            f"{settings.num_hidden_layers}: a layer above them must be left"
        )
    if choices.attention == "cudnn" and choices.scan_layers:
        _refuse_varying(settings)
    options = Options(
        choices.dtype, choices.attention, choices.remat, choices.scan_layers, choices.frozen_layers
    )
    leaves, apply = build_decoder(DecoderRecipe(settings, choices.task, options))
    if not choices.scan_layers:
        return Blueprint(settings, leaves, apply, choices.dtype)
    layout = LAYOUTS[config.model_type]
    stacks = find_stacks(leaves, layout, settings.num_hidden_layers)
    names = write_name_map(leaves, stacks, layout, config.model_type)
    return Blueprint(settings, leaves, apply, choices.dtype, stacks, names)


def _refuse_varying(settings: Any) -> None:
    """Refuse what cuDNN must be told when a program is compiled and differs between layers."""
    windows = {layer.window for layer in getattr(settings, "layers", ())}
    scales = set(getattr(settings, "scales", ()))
    for name, values in (("windows", windows), ("factors of scores", scales)):
        if len(values) > 1:
            raise ModelError(
                "attention is 'cudnn' and scan_layers is True, which makes one program for all "
                f"layers, but theirs have different {name} ({', '.join(map(str, values))}); pass "
                "attention='xla', or scan_layers=False"
            )


def _check(name: str, value: Any, supported: tuple[Any, ...]) -> None:
    if value not in supported:
        raise ModelError(f"{name} is {value!r}; supported: {', '.join(map(repr, supported))}")


def _fits(
    model_type: str, choices: Choices, tasks: tuple[str | None, ...], unused: dict[str, Any]
) -> None:
    if choices.task not in tasks:
        supported = ", ".join(map(repr, tasks))
        raise ModelError(f"task is {choices.task!r}; supported by {model_type}: {supported}")
    for name, value in unused.items():
        found = getattr(choices, name)
        if found != value:
            raise ModelError(f"{name} is {found!r}, which {model_type} does not have: leave it out")
