"""RoBERTa: BERT's encoder, with positions that follow the padding and heads of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx

from ..nn.layers import ACTIVATIONS, dense, dropout, split_key
from . import encoders
from .bert import Output, norm

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from ..nn.layers import Embed
    from ..types import Options
    from .bert import Settings

    Hidden = Float[Array, "batch length hidden"]
    Logits = Float[Array, "batch length vocabulary"]


class SequenceClassifier(encoders.SequenceClassifier):
    """RoBERTa's: it never reads a pooler, and its PyTorch class has none."""

    def __init__(self, base: Any, settings: Settings, options: Options, rngs: nnx.Rngs):
        """Make the classifier."""
        super().__init__(base, settings, options)
        self.classifier = Classifier(settings, options.dtype, rngs)

    def classify(
        self, vector: Float[Array, "batch hidden"], key: Any
    ) -> Float[Array, "batch labels"]:
        """Give the logits of each text."""
        return self.classifier(vector, key)


class Classifier(nnx.Module):
    """Two dense layers with tanh between them."""

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


class LanguageModel(encoders.LanguageModel):
    """RoBERTa's masked language model."""

    def __init__(self, base: Any, settings: Settings, options: Options, rngs: nnx.Rngs):
        """Make the head."""
        super().__init__(base, settings)
        self.lm_head = LanguageHead(settings, options.dtype, rngs)

    def score(self, hidden: Hidden) -> Logits:
        """Give the logits of each token."""
        return self.lm_head(hidden, self.base.embeddings.word_embeddings)


class LanguageHead(Output):
    """The head; its activation is the exact gelu, whatever the config says for the layers."""

    def __init__(self, settings: Settings, dtype: Any, rngs: nnx.Rngs):
        """Make the dense layer, the norm and the output."""
        super().__init__(settings, dtype, rngs)
        self.dense = dense(settings.hidden_size, settings.hidden_size, dtype, rngs)
        self.layer_norm = norm(settings, dtype, rngs)

    def __call__(self, hidden: Hidden, table: Embed) -> Logits:
        """Score every entry of the vocabulary."""
        inner = ACTIVATIONS["gelu"](self.dense(hidden))
        return self.project(self.layer_norm(inner), table)


HEADS = {
    "SEQ_CLS": SequenceClassifier,
    "TOKEN_CLS": encoders.TokenClassifier,
    "MASKED_LM": LanguageModel,
}
