"""ModernBERT: rotary positions, layers that see all or a window around them, gated wide layers.

A field that the model cannot honour exactly is refused by its name. Every attribute is called
what PyTorch's transformers calls it, so that the paths of the weights are the ones in the
checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx

from ..inputs import prepare_encoder_inputs, refuse_types
from ..nn.attention import attend_explicitly
from ..nn.layers import ACTIVATIONS, Embed, LayerNorm, dense, dropout, split_key
from ..nn.rope import Rope, rotate, rotations
from ..nn.sharding import Specs, keep_rows_apart, spread_lookup
from . import base as fields
from . import encoders
from .names import Layout
from .rope import LAYER_TYPES, read_rope

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

    from ..inputs import Inputs
    from ..types import Options

    Hidden = Float[Array, "batch length hidden"]
    Angles = tuple[Float[Array, "rows length half"], Float[Array, "rows length half"]]
    Mask = Bool[Array, "_ 1 _ length"] | None


HONOURED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_activation",
    "initializer_range",
    "norm_eps",
    "norm_bias",
    "attention_bias",
    "attention_dropout",
    "layer_types",
    "rope_parameters",
    "local_attention",
    "embedding_dropout",
    "mlp_bias",
    "mlp_dropout",
    "decoder_bias",
    "classifier_pooling",
    "classifier_dropout",
    "classifier_bias",
    "classifier_activation",
    "tie_word_embeddings",
    # The context from which some scalings of rotary positions start; there is no table.
    "max_position_embeddings",
)

# How PyTorch draws weights, which kernels it takes, what its loss passes over, and ids of tokens.
UNREAD = (
    "initializer_cutoff_factor",
    "deterministic_flash_attn",
    "sparse_prediction",
    "sparse_pred_ignore_index",
    "pad_token_id",
    "cls_token_id",
    "sep_token_id",
)

_THETA = {"full_attention": 160_000.0, "sliding_attention": 10_000.0}

POOLINGS = ("cls", "mean")


@dataclass(frozen=True)
class LayerSettings:
    """What one layer differs in.

    Attributes:
        local: whether it sees a window, rather than all.
        normed: whether a norm comes before its attention; not in the first layer.
    """

    local: bool
    normed: bool


@dataclass(frozen=True)
class Settings:
    """The numbers and switches of one ModernBERT; `reach` is what a window holds on either side."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    layers: tuple[LayerSettings, ...]
    ropes: tuple[Rope, Rope]
    reach: int
    activation: str
    epsilon: float
    norm_bias: bool
    attention_bias: bool
    mlp_bias: bool
    decoder_bias: bool
    classifier_bias: bool
    classifier_activation: str
    classifier_pooling: str
    embedding_dropout: float
    attention_dropout: float
    mlp_dropout: float
    classifier_dropout: float
    initializer_range: float
    tie_word_embeddings: bool
    num_labels: int
    model_type: str = "modernbert"
    prefix: str = "model"

    @property
    def num_hidden_layers(self) -> int:
        """One for each entry of `layers`."""
        return len(self.layers)


def read_settings(config: Any) -> Settings:
    """Read and check the config of a ModernBERT.

    Raises:
        ModelError: a field holds a value that the model does not honour.
    """
    fields.refuse_variants(config, fields.ENCODER_VARIANTS)
    fields.refuse_unknown_fields(config, (*HONOURED, *UNREAD, *fields.WITHOUT_EFFECT))
    hidden, heads = fields.size(config, "hidden_size"), fields.size(config, "num_attention_heads")
    fields.require(
        "hidden_size",
        hidden,
        hidden % (2 * heads) == 0,
        f"a multiple of twice num_attention_heads ({heads})",
    )
    pooling = fields.read(config, "classifier_pooling")
    fields.require("classifier_pooling", pooling, pooling in POOLINGS, fields.one_of(POOLINGS))
    types = _layer_types(config)
    full, sliding = (
        read_rope(config, hidden // heads, theta=_THETA[name], layer_type=name)
        for name in LAYER_TYPES
    )
    return Settings(
        vocab_size=fields.size(config, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.size(config, "intermediate_size"),
        num_attention_heads=heads,
        layers=tuple(
            LayerSettings(name == "sliding_attention", normed=index > 0)
            for index, name in enumerate(types)
        ),
        ropes=(full, sliding),
        reach=fields.size(config, "local_attention") // 2,
        activation=fields.activation(config, "hidden_activation"),
        epsilon=fields.positive(config, "norm_eps"),
        norm_bias=fields.switch(config, "norm_bias", False),
        attention_bias=fields.switch(config, "attention_bias", False),
        mlp_bias=fields.switch(config, "mlp_bias", False),
        decoder_bias=fields.switch(config, "decoder_bias", True),
        classifier_bias=fields.switch(config, "classifier_bias", False),
        classifier_activation=fields.activation(config, "classifier_activation"),
        classifier_pooling=pooling,
        embedding_dropout=fields.rate(config, "embedding_dropout"),
        attention_dropout=fields.rate(config, "attention_dropout"),
        mlp_dropout=fields.rate(config, "mlp_dropout"),
        classifier_dropout=fields.rate(config, "classifier_dropout"),
        initializer_range=fields.positive(config, "initializer_range"),
        tie_word_embeddings=fields.switch(config, "tie_word_embeddings", True),
        num_labels=fields.size(config, "num_labels"),
    )


def _layer_types(config: Any) -> tuple[str, ...]:
    """Each layer's; transformers makes the list of `global_attn_every_n_layers`."""
    count, given = fields.size(config, "num_hidden_layers"), fields.read(config, "layer_types")
    listed = isinstance(given, list | tuple) and len(given) == count
    accepted = listed and all(name in LAYER_TYPES for name in given)
    fields.require("layer_types", given, accepted, f"a list of {count}, each of {LAYER_TYPES}")
    return tuple(given)


def divide(settings: Settings, layers: int, tensor: int) -> Settings:
    """Give the settings of the first layers; heads are not divided over devices.

    Raises:
        ModelError: they are to be.
    """
    fields.refuse_tensor(settings.model_type, tensor)
    return replace(settings, layers=settings.layers[:layers])


_CLASSIFIER = r"classifier\.(weight|bias)"

_UNUSED = (r"head\.(dense|norm)\.(weight|bias)", r"decoder\.(weight|bias)", _CLASSIFIER)

NAMES = Layout(
    prefix="model",
    embeddings="embeddings.tok_embeddings.weight",
    fresh={
        None: (),
        "SEQ_CLS": ("head", "classifier"),
        "TOKEN_CLS": ("head", "classifier"),
        "MASKED_LM": ("head", "decoder"),
    },
    tied=("decoder.weight",),
    tied_task="MASKED_LM",
    harmless={None: _UNUSED, "SEQ_CLS": _UNUSED, "TOKEN_CLS": _UNUSED, "MASKED_LM": (_CLASSIFIER,)},
)

# The fused kernels are divided as GPT-2's is: a part need not be queries, or gates, alone.
SPECS = Specs(
    widening=("Wqkv", "Wi", "decoder"),
    narrowing=("Wo",),
    tables=("tok_embeddings",),
    heads=(("Wqkv", "num_attention_heads"), ("attn.Wo", "num_attention_heads")),
    whole=("head",),
)


class Encoder(nnx.Module):
    """The bare model: from token ids to hidden states."""

    def __init__(self, settings: Settings, *, pooler: bool, dtype: Any, rngs: nnx.Rngs):
        """Make the modules; there is no pooler to be asked for."""
        del pooler
        self.embeddings = Embeddings(settings, dtype, rngs)
        self.layers = nnx.List([Layer(settings, own, dtype, rngs) for own in settings.layers])
        self.final_norm = _norm(settings, dtype, rngs)
        self.ropes, self.reach = settings.ropes, settings.reach

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
        return prepare_encoder_inputs(input_ids, attention_mask, None, position_ids, table=None)

    def __call__(self, inputs: Inputs, key: Any) -> Hidden:
        """Compute the last hidden states."""
        return self.states(inputs, key)

    def states(self, inputs: Inputs, key: Any, places: int | None = None) -> Hidden:
        """Compute the last hidden states of the first `places`; `None` for all.

        What follows the last layer's keys and values is computed for these places only.
        """
        first, rest = split_key(key, 2)
        hidden = self.embeddings(inputs, first)
        # Whether a layer is local says which of each two is its own.
        turns = tuple(rotations(rope, inputs.position_ids) for rope in self.ropes)
        masks = _masks(inputs, self.reach)
        for layer, own in zip(self.layers, split_key(rest, len(self.layers)), strict=True):
            read = places if layer is self.layers[-1] else None
            kept = layer.local
            hidden = layer(keep_rows_apart(hidden), masks[kept], turns[kept], own, read)
        return self.final_norm(keep_rows_apart(hidden))


def _masks(inputs: Inputs, reach: int) -> tuple[Mask, Mask]:
    """Give who is seen: of all tokens, and of those at most `reach` columns away."""
    counted = None if inputs.attention_mask is None else inputs.attention_mask[:, None, None, :]
    columns = jnp.arange(inputs.input_ids.shape[1], dtype=jnp.int32)
    near = (jnp.abs(columns[:, None] - columns) <= reach)[None, None]
    return counted, near if counted is None else counted & near


class Embeddings(nnx.Module):
    """Word vectors, normalised."""

    def __init__(self, settings: Settings, dtype: Any, rngs: nnx.Rngs):
        rows, width = settings.vocab_size, settings.hidden_size
        self.tok_embeddings = Embed(rows, width, dtype=dtype, rngs=rngs)
        self.norm = _norm(settings, dtype, rngs)
        self.rate = settings.embedding_dropout

    def __call__(self, inputs: Inputs, key: Any) -> Hidden:
        words = spread_lookup(self.tok_embeddings(inputs.input_ids))
        return dropout(self.norm(words), self.rate, key)


class Layer(nnx.Module):
    """Attention, then gated wide layers, each of what is normalised, and added to what came in."""

    def __init__(self, settings: Settings, own: LayerSettings, dtype: Any, rngs: nnx.Rngs):
        # Before the first layer's attention PyTorch's norm is one in name.
        self.attn_norm = _norm(settings, dtype, rngs) if own.normed else None
        self.attn = Attention(settings, dtype, rngs)
        self.mlp_norm = _norm(settings, dtype, rngs)
        self.mlp = FeedForward(settings, dtype, rngs)
        self.local = own.local

    def __call__(
        self, hidden: Hidden, mask: Mask, turns: Angles, key: Any, places: int | None
    ) -> Hidden:
        first, second = split_key(key, 2)
        normal = hidden if self.attn_norm is None else self.attn_norm(hidden)
        attended = hidden[:, :places] + self.attn(normal, mask, turns, first, places)
        return attended + self.mlp(self.mlp_norm(attended), second, hidden.shape[:2])


class Attention(nnx.Module):
    """Self-attention, from one product for queries, keys and values, and its projection."""

    def __init__(self, settings: Settings, dtype: Any, rngs: nnx.Rngs):
        width, bias = settings.hidden_size, settings.attention_bias
        self.Wqkv = dense(width, 3 * width, dtype, rngs, bias=bias)
        self.Wo = dense(width, width, dtype, rngs, bias=bias)
        self.heads = settings.num_attention_heads
        self.rate = settings.attention_dropout

    def __call__(
        self, hidden: Hidden, mask: Mask, turns: Angles, key: Any, places: int | None
    ) -> Hidden:
        first, second = split_key(key, 2)
        batch, length, width = hidden.shape
        fused = self.Wqkv(hidden).reshape(batch, length, 3, self.heads, -1)
        query, keys, values = fused[:, :places, 0], fused[:, :, 1], fused[:, :, 2]
        cosines, sines = turns
        query = rotate(query, cosines[:, :places], sines[:, :places])
        keys = rotate(keys, cosines, sines)
        if mask is not None:
            mask = mask[:, :, :places]
        drawn = (batch, self.heads, length, length)
        mixed = attend_explicitly(query, keys, values, mask, self.rate, first, drawn=drawn)
        projected = self.Wo(mixed.reshape(batch, -1, width))
        return dropout(projected, self.rate, second, hidden.shape)


class FeedForward(nnx.Module):
    """A wide product in two halves, of which the second, as it is, gates the first."""

    def __init__(self, settings: Settings, dtype: Any, rngs: nnx.Rngs):
        width, wide, bias = settings.hidden_size, settings.intermediate_size, settings.mlp_bias
        self.Wi = dense(width, 2 * wide, dtype, rngs, bias=bias)
        self.Wo = dense(wide, width, dtype, rngs, bias=bias)
        self.activation = settings.activation
        self.rate = settings.mlp_dropout

    def __call__(self, x: Float[Array, "batch places _"], key: Any, rows: Any) -> Hidden:
        inner, gate = jnp.split(self.Wi(x), 2, axis=-1)
        gated = ACTIVATIONS[self.activation](inner) * gate
        return self.Wo(dropout(gated, self.rate, key, (*rows, gated.shape[-1])))


def _norm(settings: Settings, dtype: Any, rngs: nnx.Rngs) -> LayerNorm:
    bias, epsilon = settings.norm_bias, settings.epsilon
    return LayerNorm(settings.hidden_size, epsilon=epsilon, bias=bias, dtype=dtype, rngs=rngs)


class Head(nnx.Module):
    """What comes before every output: a dense layer, an activation and a norm."""

    def __init__(self, settings: Settings, dtype: Any, rngs: nnx.Rngs):
        width, bias = settings.hidden_size, settings.classifier_bias
        self.dense = dense(width, width, dtype, rngs, bias=bias)
        self.norm = _norm(settings, dtype, rngs)
        self.activation = settings.classifier_activation

    def __call__(self, x: Float[Array, "*axes hidden"]) -> Float[Array, "*axes hidden"]:
        return self.norm(ACTIVATIONS[self.activation](self.dense(x)))


class SequenceClassifier(encoders.SequenceClassifier):
    """The head and a dense layer on the first token's state, or on the mean, as the config says."""

    def __init__(self, base: Any, settings: Settings, options: Options, rngs: nnx.Rngs):
        """Make the classifier."""
        super().__init__(base, settings, options)
        self.rate = settings.classifier_dropout
        self.head = Head(settings, options.dtype, rngs)
        self.classifier = dense(settings.hidden_size, settings.num_labels, options.dtype, rngs)

    @staticmethod
    def reads(settings: Settings) -> str:
        """Give what the config says."""
        return settings.classifier_pooling

    def classify(
        self, vector: Float[Array, "batch hidden"], key: Any
    ) -> Float[Array, "batch labels"]:
        """Give the logits of each text."""
        return self.classifier(dropout(self.head(vector), self.rate, key))


class TokenClassifier(encoders.TokenClassifier):
    """The head and a dense layer on every state."""

    def __init__(self, base: Any, settings: Settings, options: Options, rngs: nnx.Rngs):
        """Make the classifier."""
        super().__init__(base, settings, options, rngs)
        self.head = Head(settings, options.dtype, rngs)

    def classify(self, hidden: Hidden, key: Any) -> Float[Array, "batch length labels"]:
        """Give the logits of each token."""
        return super().classify(self.head(hidden), key)


class LanguageModel(encoders.LanguageModel):
    """The head, and the word embeddings or a matrix of its own."""

    def __init__(self, base: Any, settings: Settings, options: Options, rngs: nnx.Rngs):
        """Make the head."""
        super().__init__(base, settings)
        self.head = Head(settings, options.dtype, rngs)
        self.decoder = encoders.make_output(
            settings, options.dtype, rngs, bias=settings.decoder_bias
        )

    def score(self, hidden: Hidden) -> Float[Array, "batch length vocabulary"]:
        """Give the logits of each token."""
        table = self.base.embeddings.tok_embeddings
        return encoders.project(self.head(hidden), self.decoder, table)


HEADS = {
    "SEQ_CLS": SequenceClassifier,
    "TOKEN_CLS": TokenClassifier,
    "MASKED_LM": LanguageModel,
}
