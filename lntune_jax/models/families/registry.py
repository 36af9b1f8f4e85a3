"""The families by their `model_type`: a row each, and what follows from all rows together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..nn.sharding import Specs, find_spec
from . import bert, distilbert, gpt2, llama, modernbert, olmo2, phi3, roberta, rotary_decoder
from .base import Family
from .decoders import DECODER
from .encoders import ENCODER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jax.sharding import PartitionSpec

    from .gguf import Architecture


def _bert(model_type: str, heads: Mapping[str, Any]) -> Family:
    return Family(
        model_type,
        ENCODER,
        bert.read_settings,
        bert.Encoder,
        bert.name_checkpoint(model_type),
        bert.SPECS,
        bert.divide,
        heads=heads,
    )


def _llama(model_type: str, files: Architecture | None) -> Family:
    return Family(
        model_type,
        DECODER,
        llama.read_settings,
        rotary_decoder.Decoder,
        rotary_decoder.NAMES,
        rotary_decoder.SPECS,
        rotary_decoder.divide,
        files,
    )


_ROWS = (
    _bert("bert", bert.HEADS),
    _bert("roberta", roberta.HEADS),
    Family(
        "distilbert",
        ENCODER,
        distilbert.read_settings,
        distilbert.Encoder,
        distilbert.NAMES,
        distilbert.SPECS,
        distilbert.divide,
        heads=distilbert.HEADS,
    ),
    Family(
        "modernbert",
        ENCODER,
        modernbert.read_settings,
        modernbert.Encoder,
        modernbert.NAMES,
        modernbert.SPECS,
        modernbert.divide,
        heads=modernbert.HEADS,
    ),
    _llama("llama", llama.LLAMA),
    _llama("mistral", None),  # in GGUF a llama with a window
    _llama("qwen2", llama.QWEN2),
    _llama("qwen3", llama.QWEN3),
    _llama("gemma", llama.GEMMA),
    _llama("gemma2", llama.GEMMA2),
    _llama("gemma3_text", llama.GEMMA3),
    Family(
        "olmo2",
        DECODER,
        olmo2.read_settings,
        olmo2.Decoder,
        rotary_decoder.NAMES,
        rotary_decoder.SPECS,
        rotary_decoder.divide,
        olmo2.OLMO2,
    ),
    Family(
        "phi3",
        DECODER,
        phi3.read_settings,
        phi3.Decoder,
        rotary_decoder.NAMES,
        phi3.SPECS,
        phi3.divide,
        phi3.PHI3,
    ),
    Family(
        "gpt2",
        DECODER,
        gpt2.read_settings,
        gpt2.Gpt2,
        gpt2.NAMES,
        gpt2.SPECS,
        gpt2.divide,
        gpt2.GPT2,
    ),
)
FAMILIES = {row.model_type: row for row in _ROWS}


def find_task(config: Any) -> str | None:
    """Give the task that a model is usually tuned for: a classifier's where its file is one.

    Args:
        config: a transformers config of one of `FAMILIES`.

    Example:
        >>> from transformers import BertConfig, LlamaConfig
        >>> find_task(LlamaConfig()), find_task(BertConfig())
        ('CAUSAL_LM', 'SEQ_CLS')
        >>> find_task(LlamaConfig(architectures=["LlamaForSequenceClassification"]))
        'SEQ_CLS'
    """
    return "SEQ_CLS" if is_classifier(config) else FAMILIES[config.model_type].kind.tasks[1]


def is_classifier(config: Any) -> bool:
    """Whether a config's file is one of a sequence classifier, by the class that it names."""
    classes = getattr(config, "architectures", None) or ()
    return any(str(name).endswith("ForSequenceClassification") for name in classes)


# What GGUF files call their architectures.
GGUF = {row.gguf.name: row.gguf for row in _ROWS if row.gguf is not None}

# A path does not say its family: the names of all stand together.
_SPECS = Specs(
    widening=tuple({name for row in _ROWS for name in row.specs.widening}),
    narrowing=tuple({name for row in _ROWS for name in row.specs.narrowing}),
    tables=tuple({name for row in _ROWS for name in row.specs.tables}),
    whole=tuple({name for row in _ROWS for name in row.specs.whole}),
)


def base_specs(path: str, leaf: Any) -> PartitionSpec:
    """Give the `PartitionSpec` of a leaf of the built-in models, for the axes "fsdp" and "tensor".

    It is a rule for `lntune_jax.make_specs` and `lntune_jax.shard_params`, which leave out the
    axes that a mesh does not have and those that do not divide. `from_pretrained(mesh=)` goes by
    it too, and leaves whole along "tensor" what would be cut within a head: a path alone does not
    say how many heads there are.

    Args:
        path: the leaf's path, with dots.
        leaf: anything with a shape; stacked layers have a first axis more, which is whole.

    Example:
        >>> import jax
        >>> from lntune_jax.models import base_specs
        >>> kernel = jax.ShapeDtypeStruct((8, 16), "float32")
        >>> tuple(base_specs("model.layers.0.mlp.up_proj.kernel", kernel))
        ('fsdp', 'tensor')
        >>> tuple(base_specs("model.layers.0.mlp.down_proj.kernel", kernel))
        ('tensor', 'fsdp')
        >>> tuple(base_specs("model.norm.scale", jax.ShapeDtypeStruct((8,), "float32")))
        ()
    """
    return find_spec(_SPECS, path, leaf)
