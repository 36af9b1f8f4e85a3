"""What a user asked for and what the config says, put together: leaves and `apply` of a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lntune_jax._errors import ModelError

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

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._build import Leaves
    from ._outputs import ModelOutput


@dataclass(frozen=True)
class Choices:
    """The options of `from_pretrained` that decide the modules."""

    task: str | None
    pooling: str | None
    dtype: Any
    attention: str
    remat: str


@dataclass(frozen=True)
class Blueprint:
    """A model without weights."""

    settings: Any
    leaves: Leaves
    apply: Callable[..., ModelOutput]
    dtype: str


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
    _fits(
        settings.architecture.prefix, choices, ENCODER_TASKS, {"attention": "xla", "remat": "none"}
    )
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
    options = Options(choices.dtype, choices.attention, choices.remat)
    leaves, apply = build_decoder(DecoderRecipe(settings, choices.task, options))
    return Blueprint(settings, leaves, apply, choices.dtype)


def _check(name: str, value: Any, supported: tuple[str | None, ...]) -> None:
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
            raise ModelError(f"{name} is {found!r}; supported by {model_type}: {value!r}")
