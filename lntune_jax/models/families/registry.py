"""The families by their `model_type`: a row each, and what follows from all rows together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lntune_jax.paths import flatten, join
from lntune_jax.sharding import fit_spec, warn_of

from ..nn.sharding import Specs, find_spec, keep_heads_whole
from . import bert, distilbert, gpt2, llama, modernbert, olmo2, phi3, roberta, rotary_decoder
from .base import Family
from .decoders import DECODER
from .encoders import ENCODER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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
    axes that a mesh does not have and those that do not divide. A path does not say how many heads
    there are, so that "tensor" may cut within a head of attention, and each layer then sends parts
    of heads. Where you have the model, use `model_specs`, which cuts none. `from_pretrained(mesh=)`
    does what `model_specs` says.

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


def model_specs(model: Any, mesh: Any) -> Callable[[str, Any], PartitionSpec]:
    """Give the rule `base_specs` for one model and mesh: no head of attention is cut in two.

    Args:
        model: from `from_pretrained` or `from_config`.
        mesh: a `jax.sharding.Mesh` or `AbstractMesh`, the one that `make_specs` is given.

    Returns:
        A rule for `lntune_jax.make_specs` and `lntune_jax.shard_params`, also for the halves of
        the model's tree.

    Warns:
        ShardingWarning: "tensor" does not divide the heads, and a leaf is left whole along it.

    Example:
        >>> import jax
        >>> import lntune_jax as lnt
        >>> from transformers import LlamaConfig
        >>> tiny = LlamaConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=1)
        >>> model = lnt.models.from_config(tiny)
        >>> mesh = jax.sharding.AbstractMesh((2,), ("tensor",))
        >>> specs = lnt.make_specs(model.params, mesh, lnt.models.model_specs(model, mesh))
        >>> tuple(specs["layers"]["0"]["self_attn"]["k_proj"]["kernel"])
        (None, 'tensor')
    """
    own, settings = FAMILIES[model.settings.model_type].specs, model.settings

    def rule(path: str, leaf: Any) -> PartitionSpec:
        return keep_heads_whole(own, settings, path, base_specs(path, leaf), mesh.shape)[0]

    misfits = []
    for leaf in flatten(model.params)[0]:
        path = join(leaf.path)
        spec, _ = fit_spec(path, leaf.value.shape, base_specs(path, leaf.value), mesh.shape)
        misfits += keep_heads_whole(own, settings, path, spec, mesh.shape)[1]
    warn_of(misfits)
    return rule
