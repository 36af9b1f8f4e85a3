"""DistilBERT: BERT's layers under other names, without token types and without a pooler.

A field that the model cannot honour exactly is refused by its name. Every attribute is called
what PyTorch's transformers calls it, so that the paths of the weights are the ones in the
checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
from flax import nnx

from ..inputs import prepare_encoder_inputs, refuse_types
from ..nn.attention import attend
from ..nn.layers import ACTIVATIONS, Embed, LayerNorm, dense, dropout, split_key
from ..nn.sharding import Specs, spread_lookup
from . import base as fields
from . import encoders
from .names import Layout

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

    from ..inputs import Inputs
    from ..types import Options

    Hidden = Float[Array, "batch length hidden"]


HONOURED = (
    "vocab_size",
    "max_position_embeddings",
    "n_layers",
    "n_heads",
    "dim",
    "hidden_dim",
    "dropout",
    "attention_dropout",
    "activation",
    "initializer_range",
    "seq_classif_dropout",
    "tie_word_embeddings",
    # How a new table of positions is filled; a checkpoint holds it filled.
    "sinusoidal_pos_embds",
)

# Of a class that is not here, and of PyTorch's embedding, whose row for padding does not train.
UNREAD = ("qa_dropout", "pad_token_id")

# PyTorch's class has it in its code, not in its config.
EPSILON = 1e-12


@dataclass(frozen=True)
class Settings:
    """The numbers and switches of one DistilBERT."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    activation: str
    dropout: float
    attention_dropout: float
    sequence_dropout: float
    initializer_range: float
    tie_word_embeddings: bool
    num_labels: int
    model_type: str = "distilbert"
    prefix: str = "distilbert"

    @property
    def classifier_dropout(self) -> float:
        """Before the classifier of tokens; that of texts has a rate of its own."""
        return self.dropout


def read_settings(config: Any) -> Settings:
    """Read and check the config of a DistilBERT.

    Raises:
        ModelError: a field holds a value that the model does not honour.
    """
    fields.refuse_variants(config, fields.ENCODER_VARIANTS)
    fields.refuse_unknown_fields(config, (*HONOURED, *UNREAD, *fields.WITHOUT_EFFECT))
    hidden, heads = fields.size(config, "dim"), fields.size(config, "n_heads")
    fields.require("dim", hidden, hidden % heads == 0, f"a multiple of n_heads ({heads})")
    fields.switch(config, "sinusoidal_pos_embds", False)
    return Settings(
        vocab_size=fields.size(config, "vocab_size"),
        hidden_size=hidden,
        num_hidden_layers=fields.size(config, "n_layers"),
        num_attention_heads=heads,
        intermediate_size=fields.size(config, "hidden_dim"),
        max_position_embeddings=fields.size(config, "max_position_embeddings"),
        activation=fields.activation(config, "activation"),
        dropout=fields.rate(config, "dropout"),
        attention_dropout=fields.rate(config, "attention_dropout"),
        sequence_dropout=fields.rate(config, "seq_classif_dropout"),
        initializer_range=fields.positive(config, "initializer_range"),
        tie_word_embeddings=fields.switch(config, "tie_word_embeddings", True),
        num_labels=fields.size(config, "num_labels"),
    )


def divide(settings: Settings, layers: int, tensor: int) -> Settings:
    """Give the settings of the first layers; heads are not divided over devices.

    Raises:
        ModelError: they are to be.
    """
    fields.refuse_tensor(settings.model_type, tensor)
    return replace(settings, num_hidden_layers=layers)


_CLASSIFIERS = (r"(pre_)?classifier\.(weight|bias)", r"qa_outputs\.(weight|bias)")

_UNUSED = (*_CLASSIFIERS, r"vocab_(transform|layer_norm|projector)\.(weight|bias)")

NAMES = Layout(
    prefix="distilbert",
    embeddings="embeddings.word_embeddings.weight",
    fresh={
        None: (),
        "SEQ_CLS": ("pre_classifier", "classifier"),
        "TOKEN_CLS": ("classifier",),
        "MASKED_LM": ("vocab_transform", "vocab_layer_norm", "vocab_projector"),
    },
    tied=("vocab_projector.weight",),
    tied_task="MASKED_LM",
    harmless={None: _UNUSED, "SEQ_CLS": _UNUSED, "TOKEN_CLS": _UNUSED, "MASKED_LM": _CLASSIFIERS},
    layers="layer",
)

SPECS = Specs(
    widening=("q_lin", "k_lin", "v_lin", "lin1", "vocab_projector"),
    narrowing=("out_lin", "lin2"),
    tables=("word_embeddings",),
    heads=tuple((name, "num_attention_heads") for name in ("q_lin", "k_lin", "v_lin", "out_lin")),
    whole=("pre_classifier",),
)


class Encoder(nnx.Module):
    """The bare model: from token ids to hidden states."""

    def __init__(self, settings: Settings, *, pooler: bool, dtype: Any, rngs: nnx.Rngs):
        """Make the modules; there is no pooler to be asked for."""
        del pooler
        self.embeddings = Embeddings(settings, dtype, rngs)
        self.transformer = encoders.LayerStack(
            [Layer(settings, dtype, rngs) for _ in range(settings.num_hidden_layers)]
        )

    @staticmethod
    def prepare_inputs(
        settings: Settings,
        input_ids: Any,
        attention_mask: Any,
        token_type_ids: Any,
        position_ids: Any,
    ) -> Inputs:
        """Check the inputs and fill in the ones that are `None`.

        Raises:
            ModelError: as `prepare_encoder_inputs`, or there are token types.
        """
        refuse_types(token_type_ids, settings.model_type)
        table = settings.max_position_embeddings
        return prepare_encoder_inputs(input_ids, attention_mask, None, position_ids, table=table)

    def __call__(self, inputs: Inputs, key: Any) -> Hidden:
        """Compute the last hidden states."""
        return self.states(inputs, key)

    def states(self, inputs: Inputs, key: Any, places: int | None = None) -> Hidden:
        """Compute the last hidden states of the first `places`; `None` for all.

        What follows the last layer's keys and values is computed for these places only.
        """
        first, rest = split_key(key, 2)
        return self.transformer(self.embeddings(inputs, first), inputs.attention_mask, rest, places)


class Embeddings(nnx.Module):
    """The sum of word and position vectors, normalised."""

    def __init__(self, settings: Settings, dtype: Any, rngs: nnx.Rngs):
        width, positions = settings.hidden_size, settings.max_position_embeddings
        self.word_embeddings = Embed(settings.vocab_size, width, dtype=dtype, rngs=rngs)
        self.position_embeddings = Embed(positions, width, dtype=dtype, rngs=rngs)
        self.LayerNorm = _norm(settings, dtype, rngs)
        self.rate = settings.dropout

    def __call__(self, inputs: Inputs, key: Any) -> Hidden:
        words = spread_lookup(self.word_embeddings(inputs.input_ids))
        positions = self.position_embeddings(inputs.position_ids)
        return dropout(self.LayerNorm(words + positions), self.rate, key)


class Layer(nnx.Module):
    """Attention, then two dense layers, each added to what came in and normalised."""

    def __init__(self, settings: Settings, dtype: Any, rngs: nnx.Rngs):
        self.attention = Attention(settings, dtype, rngs)
        self.sa_layer_norm = _norm(settings, dtype, rngs)
        self.ffn = FeedForward(settings, dtype, rngs)
        self.output_layer_norm = _norm(settings, dtype, rngs)

    def __call__(
        self,
        hidden: Hidden,
        mask: Bool[Array, "batch length"] | None,
        key: Any,
        places: int | None,
    ) -> Hidden:
        first, second = split_key(key, 2)
        attended = self.attention(hidden, mask, first, places)
        attended = self.sa_layer_norm(attended + hidden[:, :places])
        return self.output_layer_norm(self.ffn(attended, second, hidden.shape) + attended)


class Attention(nnx.Module):
    """Self-attention and the projection of its result, of which nothing is dropped."""

    def __init__(self, settings: Settings, dtype: Any, rngs: nnx.Rngs):
        width = settings.hidden_size
        self.q_lin = dense(width, width, dtype, rngs)
        self.k_lin = dense(width, width, dtype, rngs)
        self.v_lin = dense(width, width, dtype, rngs)
        self.out_lin = dense(width, width, dtype, rngs)
        self.heads = settings.num_attention_heads
        self.rate = settings.attention_dropout

    def __call__(
        self,
        hidden: Hidden,
        mask: Bool[Array, "batch length"] | None,
        key: Any,
        places: int | None,
    ) -> Hidden:
        own = hidden[:, :places]
        query, keys, values = (
            projected.reshape(*projected.shape[:2], self.heads, -1)
            for projected in (self.q_lin(own), self.k_lin(hidden), self.v_lin(hidden))
        )
        mixed = attend(query, keys, values, mask, self.rate, key)
        return self.out_lin(mixed.reshape(own.shape))


class FeedForward(nnx.Module):
    """Two dense layers with an activation between them, and dropout behind them."""

    def __init__(self, settings: Settings, dtype: Any, rngs: nnx.Rngs):
        self.lin1 = dense(settings.hidden_size, settings.intermediate_size, dtype, rngs)
        self.lin2 = dense(settings.intermediate_size, settings.hidden_size, dtype, rngs)
        self.activation = settings.activation
        self.rate = settings.dropout

    def __call__(self, x: Float[Array, "batch places _"], key: Any, drawn: Any) -> Hidden:
        inner = ACTIVATIONS[self.activation](self.lin1(x))
        return dropout(self.lin2(inner), self.rate, key, drawn)


def _norm(settings: Settings, dtype: Any, rngs: nnx.Rngs) -> LayerNorm:
    return LayerNorm(settings.hidden_size, epsilon=EPSILON, dtype=dtype, rngs=rngs)


class SequenceClassifier(encoders.SequenceClassifier):
    """Two dense layers on the first token's state, with a ReLU whatever `activation` says."""

    def __init__(self, base: Any, settings: Settings, options: Options, rngs: nnx.Rngs):
        """Make the classifier."""
        super().__init__(base, settings, options)
        width, dtype = settings.hidden_size, options.dtype
        self.rate = settings.sequence_dropout
        self.pre_classifier = dense(width, width, dtype, rngs)
        self.classifier = dense(width, settings.num_labels, dtype, rngs)

    def classify(
        self, vector: Float[Array, "batch hidden"], key: Any
    ) -> Float[Array, "batch labels"]:
        """Give the logits of each text."""
        inner = jax.nn.relu(self.pre_classifier(vector))
        return self.classifier(dropout(inner, self.rate, key))


class LanguageModel(encoders.LanguageModel):
    """The masked language model, whose head has no module of its own."""

    def __init__(self, base: Any, settings: Settings, options: Options, rngs: nnx.Rngs):
        """Make the head."""
        super().__init__(base, settings)
        width, dtype = settings.hidden_size, options.dtype
        self.activation = settings.activation
        self.vocab_transform = dense(width, width, dtype, rngs)
        self.vocab_layer_norm = _norm(settings, dtype, rngs)
        self.vocab_projector = encoders.make_output(settings, dtype, rngs)

    def score(self, hidden: Hidden) -> Float[Array, "batch length vocabulary"]:
        """Give the logits of each token."""
        inner = ACTIVATIONS[self.activation](self.vocab_transform(hidden))
        table = self.base.embeddings.word_embeddings
        return encoders.project(self.vocab_layer_norm(inner), self.vocab_projector, table)


HEADS = {
    "SEQ_CLS": SequenceClassifier,
    "TOKEN_CLS": encoders.TokenClassifier,
    "MASKED_LM": LanguageModel,
}
