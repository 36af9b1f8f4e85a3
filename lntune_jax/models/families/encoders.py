"""What all encoders share: how a model is made for a task, and what their heads have in common.

A family says which class is the model for each task. Each has a method `outputs` from prepared
inputs to a `ModelOutput`; its attributes are called what PyTorch's transformers calls them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx

from ..nn.layers import dense, dropout, mean_pool, split_key
from ..nn.sharding import keep_rows_apart, run_on_auto_axes
from ..nn.skeleton import skeleton
from ..types import ModelOutput
from .base import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array, Bool, Float

    from ..inputs import Inputs
    from ..nn.layers import Embed
    from ..types import Leaves, Options
    from .base import Family

    Hidden = Float[Array, "batch length hidden"]
    Vector = Float[Array, "batch hidden"]
    Labels = Float[Array, "batch labels"]


TASKS = (None, "SEQ_CLS", "TOKEN_CLS", "MASKED_LM")


def build(
    family: Family, settings: Any, task: str | None, options: Options, *, pooler: bool
) -> tuple[Leaves, Callable[..., ModelOutput]]:
    """Give the leaves of the model's tree, by path, and its `apply`.

    Args:
        family: its row of the registry.
        settings: what the config says.
        task: one of `TASKS`.
        options: how it is made.
        pooler: whether a bare model or a mean-pooling classifier has the pooler.
    """
    leaves, bind = skeleton(lambda: make_module(family, settings, task, options, pooler=pooler))

    def apply(
        params: Any,
        input_ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        *,
        dropout_rng: Any = None,
        with_hidden: bool = False,
    ) -> ModelOutput:
        """Run the model; see `PretrainedModel` for the arguments."""
        inputs = family.module.prepare_inputs(
            settings, input_ids, attention_mask, token_type_ids, position_ids
        )

        def run(params: Any, inputs: Inputs, key: Any) -> ModelOutput:
            model = bind(params)
            if task is None:
                return _read_bare(model, inputs, key)
            return model.outputs(inputs, key, with_hidden)

        rows = inputs.input_ids
        return run_on_auto_axes(run, params, inputs, dropout_rng, rows=rows)

    return leaves, apply


ENCODER = Kind(TASKS, build, ("dtype", "pooling", "quantize"))


def make_module(
    family: Family, settings: Any, task: str | None, options: Options, *, pooler: bool
) -> Any:
    """Make the model of a task, with weights."""
    made = None if task is None else family.heads[task]
    if made is not None:
        pooler = made.reads_pooler and (pooler or options.pooling in (None, "own"))
    rngs = nnx.Rngs(0)
    base = family.module(settings, pooler=pooler, dtype=options.dtype, rngs=rngs)
    return base if made is None else made(base, settings, options, rngs)


def _read_bare(model: Any, inputs: Inputs, key: Any) -> ModelOutput:
    """Give the hidden states, and the pooler's output where there is a pooler."""
    hidden = model(inputs, key)
    pooled = model.pooler(hidden) if hasattr(model, "pooler") else None
    return ModelOutput(last_hidden_state=hidden, pooler_output=pooled)


class LayerStack(nnx.Module):
    """The layers, one after the other."""

    def __init__(self, layers: list[Any]):
        """Take the layers, each a function of states, mask, key and places."""
        self.layer = nnx.List(layers)

    def __call__(
        self,
        hidden: Hidden,
        mask: Bool[Array, "batch length"] | None,
        key: Any,
        places: int | None = None,
    ) -> Hidden:
        for layer, own in zip(self.layer, split_key(key, len(self.layer)), strict=True):
            read = places if layer is self.layer[-1] else None
            hidden = layer(keep_rows_apart(hidden), mask, own, read)
        return keep_rows_apart(hidden)


class HeadedModel(nnx.Module):
    """An encoder under the architecture's own name, for a head to be put on."""

    # Whether the encoder has a pooler, if the checkpoint has one or nothing else is pooled.
    reads_pooler = False

    def __init__(self, base: Any, settings: Any):
        """Take the encoder."""
        self.prefix = settings.prefix
        setattr(self, self.prefix, base)

    @property
    def base(self) -> Any:
        """The encoder."""
        return getattr(self, self.prefix)


class SequenceClassifier(HeadedModel):
    """One row of logits for each text; a family adds `classify`, from one vector to logits."""

    def __init__(self, base: Any, settings: Any, options: Options):
        """Take the encoder."""
        super().__init__(base, settings)
        asked = options.pooling
        self.pooling = self.reads(settings) if asked in (None, "own") else asked

    def outputs(self, inputs: Inputs, key: Any, with_hidden: bool = False) -> ModelOutput:
        """Pool the hidden states and classify the result."""
        first, second = split_key(key, 2)
        mean = self.pooling == "mean"
        whole = mean or with_hidden
        hidden = self.base.states(inputs, first, None if whole else 1)
        if mean:
            vector = mean_pool(hidden, inputs.attention_mask)
        else:
            vector = hidden[:, 0] if self.pooling == "cls" else self.base.pooler(hidden)
        logits = self.classify(vector, second)
        return ModelOutput(last_hidden_state=hidden if whole else None, logits=logits)

    @staticmethod
    def reads(settings: Any) -> str:
        """Give what the architecture's own class reads: "mean", "cls", or "own" for a pooler."""
        del settings
        return "cls"

    def classify(self, vector: Vector, key: Any) -> Labels:
        """Give the logits of each text."""
        raise NotImplementedError


class TokenClassifier(HeadedModel):
    """One row of logits for each token."""

    def __init__(self, base: Any, settings: Any, options: Options, rngs: nnx.Rngs):
        """Make the classifier."""
        super().__init__(base, settings)
        self.rate = settings.classifier_dropout
        self.classifier = dense(settings.hidden_size, settings.num_labels, options.dtype, rngs)

    def outputs(self, inputs: Inputs, key: Any, with_hidden: bool = False) -> ModelOutput:
        """Classify every hidden state."""
        del with_hidden  # They are all there.
        first, second = split_key(key, 2)
        hidden = self.base(inputs, first)
        return ModelOutput(last_hidden_state=hidden, logits=self.classify(hidden, second))

    def classify(self, hidden: Hidden, key: Any) -> Float[Array, "batch length labels"]:
        """Give the logits of each token."""
        return self.classifier(dropout(hidden, self.rate, key))


class LanguageModel(HeadedModel):
    """One logit for each token and each entry of the vocabulary; a family adds `score`.

    Tied weights are one leaf of the tree, not two: a tied head holds a bias and no matrix.
    """

    def outputs(self, inputs: Inputs, key: Any, with_hidden: bool = False) -> ModelOutput:
        """Score the vocabulary at every position."""
        del with_hidden  # They are all there.
        hidden = self.base(inputs, key)
        return ModelOutput(last_hidden_state=hidden, logits=self.score(hidden))

    def score(self, hidden: Hidden) -> Float[Array, "batch length vocabulary"]:
        """Give the logits of each token."""
        raise NotImplementedError


def make_output(settings: Any, dtype: Any, rngs: nnx.Rngs, *, bias: bool = True) -> Any:
    """Make the last step of a language head: a matrix, or what tied weights have beside them."""
    if settings.tie_word_embeddings:
        return OutputBias(settings.vocab_size if bias else None, dtype)
    return dense(settings.hidden_size, settings.vocab_size, dtype, rngs, bias=bias)


class OutputBias(nnx.Module):
    """What output weights that are the word embeddings have of their own: a bias, or nothing."""

    def __init__(self, size: int | None, dtype: Any):
        """Make the bias."""
        self.bias = None if size is None else nnx.Param(jnp.zeros((size,), dtype))


def project(hidden: Hidden, output: Any, table: Embed) -> Float[Array, "batch length vocabulary"]:
    """Score every entry of the vocabulary, with what `make_output` gave and the embeddings."""
    if not isinstance(output, OutputBias):
        return output(hidden)
    products = table.attend(hidden)
    if output.bias is None:
        return products
    return products + jnp.asarray(output.bias[...]).astype(hidden.dtype)
