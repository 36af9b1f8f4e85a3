"""The models an encoder's user asks for: the bare one, and one with a head for each task.

Each has a method `outputs` from prepared inputs to a `ModelOutput`; the heads' attributes are
called what PyTorch's transformers calls them. Tied weights are one leaf of the tree, not two: a
tied head holds a bias and no decoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx

from ..nn.layers import ACTIVATIONS, Embed, LayerNorm, dense, dropout, mean_pool, split_key
from ..nn.sharding import run_on_auto_axes
from ..nn.skeleton import skeleton
from ..types import ModelOutput
from .base import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array, Float

    from ..inputs import Inputs
    from ..types import Leaves, Options
    from .bert import Settings

    Hidden = Float[Array, "batch length hidden"]
    Logits = Float[Array, "batch length vocabulary"]


TASKS = (None, "SEQ_CLS", "TOKEN_CLS", "MASKED_LM")


def build(
    module: Any, settings: Any, task: str | None, options: Options, *, pooler: bool
) -> tuple[Leaves, Callable[..., ModelOutput]]:
    """Give the leaves of the model's tree, by path, and its `apply`.

    Args:
        module: the family's encoder, a class.
        settings: what the config says.
        task: one of `TASKS`.
        options: how it is made.
        pooler: whether a bare model or a mean-pooling classifier has the pooler.
    """
    leaves, bind = skeleton(lambda: make_module(module, settings, task, options, pooler=pooler))

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
        inputs = module.prepare_inputs(
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
    module: Any, settings: Any, task: str | None, options: Options, *, pooler: bool
) -> Any:
    """Make the model of a task, with weights."""
    # RoBERTa's classifier never reads a pooler, and its PyTorch class has none.
    pooled = task == "SEQ_CLS" and settings.architecture.pooled_classifier
    reads = task == "SEQ_CLS" and options.pooling in (None, "own")
    pooler = (pooler or reads) and (task is None or pooled)
    rngs = nnx.Rngs(0)
    base = module(settings, pooler=pooler, dtype=options.dtype, rngs=rngs)
    heads = {
        "SEQ_CLS": SequenceClassifier,
        "TOKEN_CLS": TokenClassifier,
        "MASKED_LM": MaskedLanguageModel,
    }
    return base if task is None else heads[task](base, settings, options, rngs)


def _read_bare(model: Any, inputs: Inputs, key: Any) -> ModelOutput:
    """Give the hidden states, and the pooler's output where there is a pooler."""
    hidden = model(inputs, key)
    pooled = model.pooler(hidden) if hasattr(model, "pooler") else None
    return ModelOutput(last_hidden_state=hidden, pooler_output=pooled)


class HeadedModel(nnx.Module):
    """An encoder under the architecture's own name, for a head to be put on."""

    def __init__(self, base: Any, settings: Settings):
        """Take the encoder."""
        self.prefix = settings.architecture.prefix
        setattr(self, self.prefix, base)

    @property
    def base(self) -> Any:
        """The encoder."""
        return getattr(self, self.prefix)


class SequenceClassifier(HeadedModel):
    """One row of logits for each text."""

    def __init__(self, base: Any, settings: Settings, options: Options, rngs: nnx.Rngs):
        """Make the classifier."""
        super().__init__(base, settings)
        self.pooling = options.pooling
        self.pooled = settings.architecture.pooled_classifier
        self.rate = settings.classifier_dropout
        head: Any = _classifier if self.pooled else RobertaClassifier
        self.classifier = head(settings, options.dtype, rngs)

    def outputs(self, inputs: Inputs, key: Any, with_hidden: bool = False) -> ModelOutput:
        """Pool the hidden states and classify the result."""
        first, second = split_key(key, 2)
        mean = self.pooling == "mean"
        whole = mean or with_hidden
        hidden = self.base.states(inputs, first, None if whole else 1)
        if mean:
            vector = mean_pool(hidden, inputs.attention_mask)
        elif self.pooled and self.pooling != "cls":
            vector = self.base.pooler(hidden)
        else:
            vector = hidden[:, 0]
        if self.pooled:
            logits = self.classifier(dropout(vector, self.rate, second))
        else:
            logits = self.classifier(vector, second)
        return ModelOutput(last_hidden_state=hidden if whole else None, logits=logits)


class RobertaClassifier(nnx.Module):
    """RoBERTa's own head: two dense layers with tanh between them."""

    def __init__(self, settings: Settings, dtype: Any, rngs: nnx.Rngs):
        self.dense = dense(settings.hidden_size, settings.hidden_size, dtype, rngs)
        self.out_proj = dense(settings.hidden_size, settings.num_labels, dtype, rngs)
        self.rate = settings.classifier_dropout

    def __call__(
        self, vector: Float[Array, "batch hidden"], key: Any
    ) -> Float[Array, "batch labels"]:
        first, second = split_key(key, 2)
        inner = jnp.tanh(self.dense(dropout(vector, self.rate, first)))
        return self.out_proj(dropout(inner, self.rate, second))


class TokenClassifier(HeadedModel):
    """One row of logits for each token."""

    def __init__(self, base: Any, settings: Settings, options: Options, rngs: nnx.Rngs):
        """Make the classifier."""
        super().__init__(base, settings)
        self.rate = settings.classifier_dropout
        self.classifier = _classifier(settings, options.dtype, rngs)

    def outputs(self, inputs: Inputs, key: Any, with_hidden: bool = False) -> ModelOutput:
        """Classify every hidden state."""
        del with_hidden  # They are all there.
        first, second = split_key(key, 2)
        hidden = self.base(inputs, first)
        logits = self.classifier(dropout(hidden, self.rate, second))
        return ModelOutput(last_hidden_state=hidden, logits=logits)


class MaskedLanguageModel(HeadedModel):
    """One logit for each token and each entry of the vocabulary."""

    def __init__(self, base: Any, settings: Settings, options: Options, rngs: nnx.Rngs):
        """Make the language head under the architecture's name for it."""
        super().__init__(base, settings)
        self.head = settings.architecture.masked_lm_head
        heads: dict[str, Any] = {"cls": BertLanguageHead, "lm_head": RobertaLanguageHead}
        setattr(self, self.head, heads[self.head](settings, options.dtype, rngs))

    def outputs(self, inputs: Inputs, key: Any, with_hidden: bool = False) -> ModelOutput:
        """Score the vocabulary at every position."""
        del with_hidden  # They are all there.
        hidden = self.base(inputs, key)
        table = self.base.embeddings.word_embeddings
        return ModelOutput(last_hidden_state=hidden, logits=getattr(self, self.head)(hidden, table))


def _classifier(settings: Settings, dtype: Any, rngs: nnx.Rngs) -> nnx.Linear:
    return dense(settings.hidden_size, settings.num_labels, dtype, rngs)


class _Output(nnx.Module):
    """The last step of both heads: the decoder, or the word embeddings and a bias."""

    def __init__(self, settings: Settings, dtype: Any, rngs: nnx.Rngs):
        if settings.tie_word_embeddings:
            self.bias = nnx.Param(jnp.zeros((settings.vocab_size,), dtype))
        else:
            self.decoder = dense(settings.hidden_size, settings.vocab_size, dtype, rngs)

    def project(self, hidden: Hidden, table: Embed) -> Logits:
        """Score every entry of the vocabulary."""
        if hasattr(self, "decoder"):
            return self.decoder(hidden)
        return table.attend(hidden) + jnp.asarray(self.bias[...]).astype(hidden.dtype)


class RobertaLanguageHead(_Output):
    """RoBERTa's head; its activation is the exact gelu, whatever the config says for the layers."""

    def __init__(self, settings: Settings, dtype: Any, rngs: nnx.Rngs):
        """Make the dense layer, the norm and the output."""
        super().__init__(settings, dtype, rngs)
        self.dense = dense(settings.hidden_size, settings.hidden_size, dtype, rngs)
        self.layer_norm = _norm(settings, dtype, rngs)

    def __call__(self, hidden: Hidden, table: Embed) -> Logits:
        """Score every entry of the vocabulary."""
        inner = ACTIVATIONS["gelu"](self.dense(hidden))
        return self.project(self.layer_norm(inner), table)


class BertLanguageHead(nnx.Module):
    """BERT's head, which keeps everything one level further down."""

    def __init__(self, settings: Settings, dtype: Any, rngs: nnx.Rngs):
        """Make the predictions."""
        self.predictions = _Predictions(settings, dtype, rngs)

    def __call__(self, hidden: Hidden, table: Embed) -> Logits:
        """Score every entry of the vocabulary."""
        return self.predictions(hidden, table)


class _Predictions(_Output):
    def __init__(self, settings: Settings, dtype: Any, rngs: nnx.Rngs):
        super().__init__(settings, dtype, rngs)
        self.transform = _Transform(settings, dtype, rngs)

    def __call__(self, hidden: Hidden, table: Embed) -> Logits:
        return self.project(self.transform(hidden), table)


class _Transform(nnx.Module):
    def __init__(self, settings: Settings, dtype: Any, rngs: nnx.Rngs):
        self.dense = dense(settings.hidden_size, settings.hidden_size, dtype, rngs)
        self.LayerNorm = _norm(settings, dtype, rngs)
        self.activation = settings.hidden_act

    def __call__(self, hidden: Hidden) -> Hidden:
        return self.LayerNorm(ACTIVATIONS[self.activation](self.dense(hidden)))


def _norm(settings: Settings, dtype: Any, rngs: nnx.Rngs) -> LayerNorm:
    return LayerNorm(settings.hidden_size, epsilon=settings.layer_norm_eps, dtype=dtype, rngs=rngs)
