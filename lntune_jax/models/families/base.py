"""What a family is, and what their files share: readers of config fields, and lists of fields.

Every reader takes the config and a field's name, and either gives a value of the right kind or
raises an error that says what was found and what is supported.
"""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from lntune_jax.errors import ModelError

from ..nn.layers import ACTIVATIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..nn.sharding import Specs
    from ..types import Leaves, ModelOutput
    from .gguf import Architecture
    from .names import Layout


@dataclass(frozen=True)
class Kind:
    """What the families of one kind have in common: the encoders, or the decoders.

    Attributes:
        tasks: what a model of the kind can be made for; the bare one and the usual one come first.
        build: gives leaves and `apply`, from family, settings, task, options and `pooler`.
        options: the names of the options that it reads.
    """

    tasks: tuple[str | None, ...]
    build: Callable[..., tuple[Leaves, Callable[..., ModelOutput]]]
    options: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """All that is known of one `model_type`: a row of the registry.

    Attributes:
        model_type: the config's.
        kind: an encoder, or a decoder.
        read_settings: checks a transformers config, and gives what the module needs of it.
        module: the class of the bare model.
        checkpoint_names: what files call its tensors, and what they may lack.
        specs: which of its modules are divided over a mesh.
        divide: gives the settings of the first layers, as one of several devices holds them.
        gguf: what its GGUF files hold; `None` where they are not read, or are another row's.
        heads: for a task, the class of the model; empty where those of the kind are used.
    """

    model_type: str
    kind: Kind
    read_settings: Callable[[Any], Any]
    module: type
    checkpoint_names: Layout
    specs: Specs
    divide: Callable[[Any, int, int], Any]
    gguf: Architecture | None = None
    heads: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def require(field: str, value: Any, accepted: bool, supported: str) -> None:
    """Refuse a field's value unless it is accepted.

    Raises:
        ModelError: it is not; the message names field, value and what is supported.
    """
    if not accepted:
        raise ModelError(f"config field {field!r} is {value!r}; supported: {supported}")


def read(config: Any, field: str) -> Any:
    """Give a field's value, `None` where there is no such field."""
    return getattr(config, field, None)


def size(config: Any, field: str) -> int:
    """Read a count of something, at least 1."""
    value = read(config, field)
    require(field, value, is_integer(value) and value >= 1, "an integer of at least 1")
    return int(value)


def size_or_none(config: Any, field: str) -> int | None:
    """Read a count that may be left out."""
    return None if read(config, field) is None else size(config, field)


def rate(config: Any, field: str) -> float:
    """Read a probability."""
    value = read(config, field)
    require(field, value, is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
    return value


def positive(config: Any, field: str) -> float:
    """Read a number above 0."""
    value = read(config, field)
    require(field, value, is_number(value) and value > 0, "a number above 0")
    return float(value)


def positive_or_none(config: Any, field: str) -> float | None:
    """Read a number above 0 that may be left out."""
    return None if read(config, field) is None else positive(config, field)


def switch(config: Any, field: str, default: bool) -> bool:
    """Read a boolean; `None` and no such field mean the default."""
    value = read(config, field)
    require(field, value, value is None or isinstance(value, bool), "True or False")
    return default if value is None else value


def activation(config: Any, field: str = "hidden_act") -> str:
    """Read the name of an activation function."""
    value = read(config, field)
    known = isinstance(value, str) and value in ACTIVATIONS
    require(field, value, known, one_of(ACTIVATIONS))
    return value


def refuse_variants(config: Any, variants: dict[str, tuple[Any, str]]) -> None:
    """Refuse every field that is set to anything but what means "not in use".

    Args:
        config: the config.
        variants: for a field, the value that means "not in use", and what is supported.
    """
    for field, (unused, supported) in variants.items():
        value = read(config, field)
        require(field, value, value is None or value == unused, supported)


def is_integer(value: object) -> TypeGuard[int]:
    """Whether a value is an integer, and no boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is an integer or a float, and no boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def one_of(names: Any) -> str:
    """Say that one of these names is expected."""
    return "one of " + ", ".join(sorted(names))


def list_fields(kind: type) -> list[str]:
    """Give the fields that a class annotates itself, without its parents'.

    Its `vars` do not say: from Python 3.14 on annotations are computed when they are asked for.
    """
    try:
        return list(getattr(kind, "__annotations__", ()))
    except NameError:  # One of them is known to type checkers alone.
        annotationlib = importlib.import_module("annotationlib")
        return list(annotationlib.get_annotations(kind, format=annotationlib.Format.FORWARDREF))


def refuse_unknown_fields(config: Any, known: tuple[str, ...]) -> None:
    """Refuse a field of the config's class that this version does not know, unless unused."""
    for parent in type(config).__mro__:
        if parent.__name__ in ("PreTrainedConfig", "PretrainedConfig"):
            return
        for field in list_fields(parent):
            default = getattr(parent, field, None)
            value = read(config, field)
            accepted = field in known or value == default
            require(field, value, accepted, f"{default!r} (a field unknown to this version)")


def refuse_tensor(model_type: str, tensor: int) -> None:
    """Refuse tensor parallelism in an estimate, for a family whose parts are no smaller models.

    Raises:
        ModelError: there is some.
    """
    if tensor > 1:
        raise ModelError(
            f"the mesh has tensor={tensor}, along which no estimate divides a {model_type}: leave "
            "it out, or make it fsdp"
        )


def read_padding(config: Any) -> int | None:
    """Read the padding id, which only a sequence classifier looks at."""
    value = read(config, "pad_token_id")
    require("pad_token_id", value, value is None or is_integer(value), "an integer")
    return value


# Fields that no number of these models depends on. `pretraining_tp` splits products and adds them
# up again; `summary_*` belong to a class of GPT-2 that is not here.
WITHOUT_EFFECT = (
    "model_type",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pretraining_tp",
    "keys_to_ignore_at_inference",
    "base_model_tp_plan",
    "base_model_pp_plan",
    "base_model_fsdp_plan",
    "base_model_ep_plan",
    "attribute_map",
    "sub_configs",
    "default_theta",
    "summary_type",
    "summary_use_proj",
    "summary_activation",
    "summary_proj_to_labels",
    "summary_first_dropout",
)

# Field: (the value that means "not in use", what is supported).
VARIANTS = {
    "quantization_config": (None, "weights that are not quantised"),
    "is_encoder_decoder": (False, "False"),
    "add_cross_attention": (False, "False"),
    "cross_attention_hidden_size": (None, "no cross-attention"),
    "is_causal": (True, "True (a position sees the ones before it)"),
    "use_bidirectional_attention": (False, "False (a position sees the ones before it)"),
    "pruned_heads": ({}, "no pruned heads"),
    "rope_interleaved": (False, "False (a pair is an entry of each half)"),
    "use_mrope": (False, "False"),
}

# The same for encoders.
ENCODER_VARIANTS = {
    "is_decoder": (False, "False (an encoder that sees both sides)"),
    "is_encoder_decoder": (False, "False"),
    "is_causal": (False, "False (an encoder that sees both sides)"),
    "add_cross_attention": (False, "False"),
    "pruned_heads": ({}, "no pruned heads"),
    "quantization_config": (None, "weights that are not quantised"),
}
