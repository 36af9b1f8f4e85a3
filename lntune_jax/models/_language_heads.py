"""The heads that score the vocabulary, with output weights of their own or the embeddings'.

Tied weights are one leaf of the tree, not two: a tied head holds a bias and no decoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx

from ._activations import ACTIVATIONS
from ._layers import Embed, LayerNorm, dense

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from ._settings import Settings

    Hidden = Float[Array, "batch length hidden"]
    Logits = Float[Array, "batch length vocabulary"]


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
