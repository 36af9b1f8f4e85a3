"""BERT: what it needs from a config, the encoder, which RoBERTa shares, and BERT's own heads.

A field that the models cannot honour exactly is refused by its name. Every attribute is called
what PyTorch's transformers calls it, so that the paths of the weights are the ones in the
checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx

from ..inputs import prepare_encoder_inputs
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
    Logits = Float[Array, "batch length vocabulary"]


@dataclass(frozen=True)
class Architecture:
    """What tells one model of the BERT family from another.

    Attributes:
        prefix: the attribute under which a model with a head keeps its encoder.
        positions_follow_padding: whether positions count the tokens that are not padding, from
            the padding id plus one, rather than the columns from zero.
    """

    prefix: str
    positions_follow_padding: bool


ARCHITECTURES = {
    "bert": Architecture("bert", positions_follow_padding=False),
    "roberta": Architecture("roberta", positions_follow_padding=True),
}


@dataclass(frozen=True)
class Settings:
    """The numbers and switches of one BERT or RoBERTa."""

    architecture: Architecture
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    hidden_act: str
    layer_norm_eps: float
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    classifier_dropout: float
    initializer_range: float
    pad_token_id: int
    tie_word_embeddings: bool
    num_labels: int

    @property
    def model_type(self) -> str:
        """The architecture's, which is its prefix too."""
        return self.architecture.prefix

    @property
    def max_length(self) -> int:
        """The most tokens in a row: positions that follow the padding begin behind its id."""
        taken = self.pad_token_id + 1 if self.architecture.positions_follow_padding else 0
        return self.max_position_embeddings - taken

    @property
    def prefix(self) -> str:
        """The attribute under which a model with a head keeps its encoder."""
        return self.architecture.prefix


def read_settings(config: Any) -> Settings:
    """Read and check a transformers config.

    Args:
        config: a `PretrainedConfig` whose `model_type` is in `ARCHITECTURES`.

    Raises:
        ModelError: a field holds a value that the models do not honour.
    """
    architecture = ARCHITECTURES[config.model_type]
    fields.refuse_variants(config, _VARIANTS)
    sizes = {name: fields.size(config, name) for name in _SIZES}
    fields.require(
        "hidden_size",
        sizes["hidden_size"],
        sizes["hidden_size"] % sizes["num_attention_heads"] == 0,
        f"a multiple of num_attention_heads ({sizes['num_attention_heads']})",
    )
    hidden = fields.rate(config, "hidden_dropout_prob")
    return Settings(
        architecture=architecture,
        **sizes,
        hidden_dropout_prob=hidden,
        attention_probs_dropout_prob=fields.rate(config, "attention_probs_dropout_prob"),
        classifier_dropout=_classifier_dropout(config, hidden),
        hidden_act=fields.activation(config),
        layer_norm_eps=fields.positive(config, "layer_norm_eps"),
        initializer_range=fields.positive(config, "initializer_range"),
        pad_token_id=_padding(config, architecture, sizes["max_position_embeddings"]),
        tie_word_embeddings=bool(getattr(config, "tie_word_embeddings", True)),
        num_labels=fields.size(config, "num_labels"),
    )


_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)

# Field: (the value that means "not in use", what is supported).
_VARIANTS = {
    "position_embedding_type": ("absolute", "'absolute'"),
    **fields.ENCODER_VARIANTS,
}


def _classifier_dropout(config: Any, hidden: float) -> float:
    unset = fields.read(config, "classifier_dropout") is None
    return hidden if unset else fields.rate(config, "classifier_dropout")


def _padding(config: Any, architecture: Architecture, positions: int) -> int:
    value = fields.read(config, "pad_token_id")
    if not architecture.positions_follow_padding:
        return 0  # Not read: BERT's positions are its columns.
    fits = fields.is_integer(value) and 0 <= value < positions - 1
    # Positions start after it, so that it must leave room in the position table.
    fields.require("pad_token_id", value, fits, f"an integer from 0 to {positions - 2}")
    return int(value)


def divide(settings: Settings, layers: int, tensor: int) -> Settings:
    """Give the settings of the first layers; heads are not divided over devices.

    Raises:
        ModelError: they are to be.
    """
    fields.refuse_tensor(settings.model_type, tensor)
    return replace(settings, num_hidden_layers=layers)


def prepare_inputs(
    settings: Settings,
    input_ids: Any,
    attention_mask: Any,
    token_type_ids: Any,
    position_ids: Any,
) -> Inputs:
    """Check the inputs and fill in the ones that are `None`.

    Raises:
        ModelError: an input has the wrong rank, shape or type of number, or is longer than the
            position table.
    """
    follow = settings.architecture.positions_follow_padding
    return prepare_encoder_inputs(
        input_ids,
        attention_mask,
        token_type_ids,
        position_ids,
        table=settings.max_position_embeddings,
        padding=settings.pad_token_id if follow else None,
    )


# The pooler, and the heads of other tasks.
_POOLER = r"pooler\.dense\.(weight|bias)"

_CLASSIFIER = r"classifier\.((dense|out_proj)\.)?(weight|bias)"

_LANGUAGE = (r"cls\.predictions\..*", r"lm_head\..*")

_OTHERS = (r"cls\.seq_relationship\..*", r"qa_outputs\..*")

_UNUSED = (_POOLER, _CLASSIFIER, *_LANGUAGE, *_OTHERS)

_NAMES = Layout(
    prefix="bert",
    embeddings="embeddings.word_embeddings.weight",
    fresh={
        None: (),
        "SEQ_CLS": ("classifier", "pooler"),
        "TOKEN_CLS": ("classifier",),
        "MASKED_LM": ("cls", "lm_head"),
    },
    tied=("cls.predictions.decoder.weight", "lm_head.decoder.weight"),
    tied_task="MASKED_LM",
    harmless={
        None: _UNUSED,
        "SEQ_CLS": _UNUSED,
        "TOKEN_CLS": _UNUSED,
        "MASKED_LM": (
            _POOLER,
            _CLASSIFIER,
            *_OTHERS,
            r"(cls\.predictions|lm_head)\.(decoder\.)?bias",
        ),
    },
    # The output bias goes by two names.
    synonyms={
        "cls.predictions.bias": "cls.predictions.decoder.bias",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
        "lm_head.bias": "lm_head.decoder.bias",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    layers="layer",
)


def name_checkpoint(model_type: str) -> Layout:
    """Give the names in checkpoints of one architecture."""
    return replace(_NAMES, prefix=ARCHITECTURES[model_type].prefix)


SPECS = Specs(
    widening=("query", "key", "value", "intermediate", "decoder", "lm_head"),
    narrowing=("output",),
    tables=("word_embeddings",),
    heads=tuple(
        (name, "num_attention_heads")
        for name in ("query", "key", "value", "attention.output.dense")
    ),
)


class Encoder(nnx.Module):
    """The bare model: from token ids to hidden states."""

    prepare_inputs = staticmethod(prepare_inputs)

    def __init__(self, settings: Settings, *, pooler: bool, dtype: Any, rngs: nnx.Rngs):
        """Make the modules, with a pooler only where one is asked for."""
        self.embeddings = Embeddings(settings, dtype, rngs)
        self.encoder = encoders.LayerStack(
            [Layer(settings, dtype, rngs) for _ in range(settings.num_hidden_layers)]
        )
        if pooler:
            self.pooler = Pooler(settings, dtype, rngs)

    def __call__(self, inputs: Inputs, key: Any) -> Hidden:
        """Compute the last hidden states."""
        return self.states(inputs, key)

    def states(self, inputs: Inputs, key: Any, places: int | None = None) -> Hidden:
        """Compute the last hidden states of the first `places`; `None` for all.

        The last layer's queries, projection and wide layers are computed for these places only.
        The numbers are those of all places but for rounding, with dropout too.
        """
        first, rest = split_key(key, 2)
        return self.encoder(self.embeddings(inputs, first), inputs.attention_mask, rest, places)


class Embeddings(nnx.Module):
    """The sum of word, type and position vectors, normalised."""

    def __init__(self, settings: Settings, dtype: Any, rngs: nnx.Rngs):
        width = settings.hidden_size
        self.word_embeddings = Embed(settings.vocab_size, width, dtype=dtype, rngs=rngs)
        self.position_embeddings = Embed(
            settings.max_position_embeddings, width, dtype=dtype, rngs=rngs
        )
        self.token_type_embeddings = Embed(settings.type_vocab_size, width, dtype=dtype, rngs=rngs)
        self.LayerNorm = norm(settings, dtype, rngs)
        self.rate = settings.hidden_dropout_prob

    def __call__(self, inputs: Inputs, key: Any) -> Hidden:
        words = spread_lookup(self.word_embeddings(inputs.input_ids))
        types = self.token_type_embeddings(inputs.token_type_ids)
        positions = self.position_embeddings(inputs.position_ids)
        return dropout(self.LayerNorm(words + types + positions), self.rate, key)


class Layer(nnx.Module):
    """Attention, then two dense layers, each added to what came in and normalised."""

    def __init__(self, settings: Settings, dtype: Any, rngs: nnx.Rngs):
        self.attention = Attention(settings, dtype, rngs)
        self.intermediate = Intermediate(settings, dtype, rngs)
        self.output = Residual(settings.intermediate_size, settings, dtype, rngs)

    def __call__(
        self,
        hidden: Hidden,
        mask: Bool[Array, "batch length"] | None,
        key: Any,
        places: int | None = None,
    ) -> Hidden:
        first, second = split_key(key, 2)
        attended = self.attention(hidden, mask, first, places)
        return self.output(self.intermediate(attended), attended, second, hidden.shape)


class Attention(nnx.Module):
    """Self-attention and the projection of its result."""

    def __init__(self, settings: Settings, dtype: Any, rngs: nnx.Rngs):
        # An attribute named "self", because the checkpoint's paths are.
        self.self = SelfAttention(settings, dtype, rngs)
        self.output = Residual(settings.hidden_size, settings, dtype, rngs)

    def __call__(
        self,
        hidden: Hidden,
        mask: Bool[Array, "batch length"] | None,
        key: Any,
        places: int | None,
    ) -> Hidden:
        first, second = split_key(key, 2)
        mixed = self.self(hidden, mask, first, places)
        return self.output(mixed, hidden[:, :places], second, hidden.shape)


class SelfAttention(nnx.Module):
    """Queries, keys and values from the hidden states, and attention between them."""

    def __init__(self, settings: Settings, dtype: Any, rngs: nnx.Rngs):
        width = settings.hidden_size
        self.query = dense(width, width, dtype, rngs)
        self.key = dense(width, width, dtype, rngs)
        self.value = dense(width, width, dtype, rngs)
        self.heads = settings.num_attention_heads
        self.rate = settings.attention_probs_dropout_prob

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
            for projected in (self.query(own), self.key(hidden), self.value(hidden))
        )
        return attend(query, keys, values, mask, self.rate, key).reshape(own.shape)


class Intermediate(nnx.Module):
    """The wide dense layer and its activation."""

    def __init__(self, settings: Settings, dtype: Any, rngs: nnx.Rngs):
        self.dense = dense(settings.hidden_size, settings.intermediate_size, dtype, rngs)
        self.activation = settings.hidden_act

    def __call__(self, hidden: Hidden) -> Float[Array, "batch length wide"]:
        return ACTIVATIONS[self.activation](self.dense(hidden))


class Residual(nnx.Module):
    """A dense layer whose result is added to an earlier state and normalised."""

    def __init__(self, inputs: int, settings: Settings, dtype: Any, rngs: nnx.Rngs):
        self.dense = dense(inputs, settings.hidden_size, dtype, rngs)
        self.LayerNorm = norm(settings, dtype, rngs)
        self.rate = settings.hidden_dropout_prob

    def __call__(
        self, x: Float[Array, "batch places _"], earlier: Hidden, key: Any, drawn: tuple[int, ...]
    ) -> Hidden:
        return self.LayerNorm(dropout(self.dense(x), self.rate, key, drawn) + earlier)


class Pooler(nnx.Module):
    """A dense layer and tanh on the first position."""

    def __init__(self, settings: Settings, dtype: Any, rngs: nnx.Rngs):
        self.dense = dense(settings.hidden_size, settings.hidden_size, dtype, rngs)

    def __call__(self, hidden: Hidden) -> Float[Array, "batch hidden"]:
        return jnp.tanh(self.dense(hidden[:, 0]))


def norm(settings: Settings, dtype: Any, rngs: nnx.Rngs) -> LayerNorm:
    """Make one of the norms."""
    return LayerNorm(settings.hidden_size, epsilon=settings.layer_norm_eps, dtype=dtype, rngs=rngs)


class SequenceClassifier(encoders.SequenceClassifier):
    """BERT's: a dense layer on the pooler's output."""

    reads_pooler = True

    def __init__(self, base: Any, settings: Settings, options: Options, rngs: nnx.Rngs):
        """Make the classifier."""
        super().__init__(base, settings, options)
        self.rate = settings.classifier_dropout
        self.classifier = dense(settings.hidden_size, settings.num_labels, options.dtype, rngs)

    @staticmethod
    def reads(settings: Settings) -> str:
        """Give what BERT reads: its pooler's output."""
        del settings
        return "own"

    def classify(
        self, vector: Float[Array, "batch hidden"], key: Any
    ) -> Float[Array, "batch labels"]:
        """Give the logits of each text."""
        return self.classifier(dropout(vector, self.rate, key))


class LanguageModel(encoders.LanguageModel):
    """BERT's masked language model."""

    def __init__(self, base: Any, settings: Settings, options: Options, rngs: nnx.Rngs):
        """Make the head."""
        super().__init__(base, settings)
        self.cls = LanguageHead(settings, options.dtype, rngs)

    def score(self, hidden: Hidden) -> Logits:
        """Give the logits of each token."""
        return self.cls.predictions(hidden, self.base.embeddings.word_embeddings)


class LanguageHead(nnx.Module):
    """BERT's head, which keeps everything one level further down."""

    def __init__(self, settings: Settings, dtype: Any, rngs: nnx.Rngs):
        self.predictions = _Predictions(settings, dtype, rngs)


class Output(nnx.Module):
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


class _Predictions(Output):
    def __init__(self, settings: Settings, dtype: Any, rngs: nnx.Rngs):
        super().__init__(settings, dtype, rngs)
        self.transform = _Transform(settings, dtype, rngs)

    def __call__(self, hidden: Hidden, table: Embed) -> Logits:
        return self.project(self.transform(hidden), table)


class _Transform(nnx.Module):
    def __init__(self, settings: Settings, dtype: Any, rngs: nnx.Rngs):
        self.dense = dense(settings.hidden_size, settings.hidden_size, dtype, rngs)
        self.LayerNorm = norm(settings, dtype, rngs)
        self.activation = settings.hidden_act

    def __call__(self, hidden: Hidden) -> Hidden:
        return self.LayerNorm(ACTIVATIONS[self.activation](self.dense(hidden)))


HEADS = {
    "SEQ_CLS": SequenceClassifier,
    "TOKEN_CLS": encoders.TokenClassifier,
    "MASKED_LM": LanguageModel,
}
