"""The models a user asks for: the bare encoder, and the encoder with one head for each task.

Each has a method `outputs` from prepared inputs to a `ModelOutput`; the heads' attributes are
called what PyTorch's transformers calls them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx

from ._bert import Encoder
from ._dropout import dropout, split_key
from ._language_heads import BertLanguageHead, RobertaLanguageHead
from ._layers import dense
from ._outputs import ModelOutput, mean_pool

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from ._inputs import Inputs
    from ._settings import Settings


class BareModel(Encoder):
    """The encoder alone."""

    def outputs(self, inputs: Inputs, key: Any) -> ModelOutput:
        """Give the hidden states, and the pooler's output where there is a pooler."""
        hidden = self(inputs, key)
        pooled = self.pooler(hidden) if hasattr(self, "pooler") else None
        return ModelOutput(last_hidden_state=hidden, pooler_output=pooled)


class HeadedModel(nnx.Module):
    """An encoder under the architecture's own name, for a head to be put on."""

    def __init__(self, settings: Settings, *, pooler: bool, dtype: Any, rngs: nnx.Rngs):
        """Make the encoder."""
        self.prefix = settings.architecture.prefix
        setattr(self, self.prefix, Encoder(settings, pooler=pooler, dtype=dtype, rngs=rngs))

    @property
    def base(self) -> Encoder:
        """The encoder."""
        return getattr(self, self.prefix)


class SequenceClassifier(HeadedModel):
    """One row of logits for each text."""

    def __init__(
        self, settings: Settings, *, pooling: str | None, pooler: bool, dtype: Any, rngs: nnx.Rngs
    ):
        """Make the encoder and the classifier."""
        super().__init__(settings, pooler=pooler, dtype=dtype, rngs=rngs)
        self.pooling = pooling
        self.pooled = settings.architecture.pooled_classifier
        self.rate = settings.classifier_dropout
        head: Any = _classifier if self.pooled else RobertaClassifier
        self.classifier = head(settings, dtype, rngs)

    def outputs(self, inputs: Inputs, key: Any) -> ModelOutput:
        """Pool the hidden states and classify the result."""
        first, second = split_key(key, 2)
        mean = self.pooling == "mean"
        hidden, start = self.base.states(inputs, first, None if mean else 1)
        if mean:
            vector = mean_pool(hidden, inputs.attention_mask)
        else:
            vector = self.base.pooler(start) if self.pooled else start[:, 0]
        if self.pooled:
            logits = self.classifier(dropout(vector, self.rate, second))
        else:
            logits = self.classifier(vector, second)
        return ModelOutput(last_hidden_state=hidden, logits=logits)


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

    def __init__(self, settings: Settings, *, dtype: Any, rngs: nnx.Rngs):
        """Make the encoder and the classifier."""
        super().__init__(settings, pooler=False, dtype=dtype, rngs=rngs)
        self.rate = settings.classifier_dropout
        self.classifier = _classifier(settings, dtype, rngs)

    def outputs(self, inputs: Inputs, key: Any) -> ModelOutput:
        """Classify every hidden state."""
        first, second = split_key(key, 2)
        hidden = self.base(inputs, first)
        logits = self.classifier(dropout(hidden, self.rate, second))
        return ModelOutput(last_hidden_state=hidden, logits=logits)


class MaskedLanguageModel(HeadedModel):
    """One logit for each token and each entry of the vocabulary."""

    def __init__(self, settings: Settings, *, dtype: Any, rngs: nnx.Rngs):
        """Make the encoder and the language head under the architecture's name for it."""
        super().__init__(settings, pooler=False, dtype=dtype, rngs=rngs)
        self.head = settings.architecture.masked_lm_head
        head = BertLanguageHead if self.head == "cls" else RobertaLanguageHead
        setattr(self, self.head, head(settings, dtype, rngs))

    def outputs(self, inputs: Inputs, key: Any) -> ModelOutput:
        """Score the vocabulary at every position."""
        hidden = self.base(inputs, key)
        table = self.base.embeddings.word_embeddings
        return ModelOutput(last_hidden_state=hidden, logits=getattr(self, self.head)(hidden, table))


def _classifier(settings: Settings, dtype: Any, rngs: nnx.Rngs) -> nnx.Linear:
    return dense(settings.hidden_size, settings.num_labels, dtype, rngs)
