"""Llama, Mistral, Qwen and Gemma: what tells one from another, their configs, and the decoder.

Every field that changes a number is honoured or refused by its name. That goes for fields which
only newer versions of transformers have as well: one that is not known here must hold its default.
Every attribute is called what PyTorch's transformers calls it, so that the paths of the weights
are the ones in the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx

from lntune_jax.errors import ModelError

from ..nn.attention import attend_causally
from ..nn.layers import ACTIVATIONS, Embed, RMSNorm, dense
from ..nn.rope import Rope, rotate, rotations
from ..nn.sharding import Specs, keep_rows_apart, spread_lookup
from ..nn.stack import Context, run_layers, scan_layers, stack_layers
from . import base as fields
from . import gguf
from .base import HONOURED, VARIANTS, WITHOUT_EFFECT, read_padding, refuse_unknown_fields
from .names import name_decoder
from .rope import LAYER_TYPES, read_rope

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from ..inputs import DecoderInputs
    from ..nn.stack import Kept
    from ..types import Cache, Options

    Hidden = Float[Array, "batch length hidden"]


@dataclass(frozen=True)
class Traits:
    """What the code of one architecture does, whatever its config says.

    Attributes:
        norm_offset: added to the stored scale of every norm: Gemma keeps scales as offsets.
        query_key_norms: whether each head's queries and keys are normalised.
        feedforward_norms: whether a norm stands before and after the MLP, and one after attention.
        scaled_embeddings: whether embeddings are multiplied by the square root of their width.
        attention_bias: whether queries, keys and values have biases; `None`: the config says.
        output_bias: whether attention's output has one; `None`: as `attention_bias` in the config.
        mlp_bias: whether the config may give the MLP biases.
        activation: the config field with the MLP's activation.
        windows: which layers see a window only: "none", "all", or by the config's "layer_types".
        window_pattern: without layer types in the config, each so many-th layer sees everything;
            0 for Qwen's rule, a number of layers at the start which do.
        scaled_queries: whether `query_pre_attn_scalar` stands for the width of a head.
        caps: the soft caps that the architecture's code applies.
        layered_rope: whether each type of layer has rotary positions of its own.
    """

    norm_offset: float = 0.0
    query_key_norms: bool = False
    feedforward_norms: bool = False
    scaled_embeddings: bool = False
    attention_bias: bool | None = None
    output_bias: bool | None = None
    mlp_bias: bool = False
    activation: str = "hidden_act"
    windows: str = "none"
    window_pattern: int = 0
    scaled_queries: bool = False
    caps: tuple[str, ...] = ()
    layered_rope: bool = False


ATTENTION_CAP, FINAL_CAP = "attn_logit_softcapping", "final_logit_softcapping"

TRAITS = {
    "llama": Traits(mlp_bias=True),
    "mistral": Traits(attention_bias=False, output_bias=False, windows="all"),
    "qwen2": Traits(attention_bias=True, output_bias=False, windows="layer_types"),
    "qwen3": Traits(query_key_norms=True, windows="layer_types"),
    "gemma": Traits(norm_offset=1.0, scaled_embeddings=True),
    "gemma2": Traits(
        norm_offset=1.0,
        feedforward_norms=True,
        scaled_embeddings=True,
        activation="hidden_activation",
        windows="layer_types",
        window_pattern=2,
        scaled_queries=True,
        caps=(ATTENTION_CAP, FINAL_CAP),
    ),
    "gemma3_text": Traits(
        norm_offset=1.0,
        query_key_norms=True,
        feedforward_norms=True,
        scaled_embeddings=True,
        activation="hidden_activation",
        windows="layer_types",
        window_pattern=6,
        scaled_queries=True,
        # transformers keeps the field for attention's cap in this config and never reads it.
        caps=(FINAL_CAP,),
        layered_rope=True,
    ),
}


@dataclass(frozen=True)
class LayerSettings:
    """What one layer differs in: how far back it sees, and its rotary positions."""

    window: int | None
    rope: Rope


@dataclass(frozen=True)
class Settings:
    """The numbers and switches of one decoder of the Llama family."""

    model_type: str
    traits: Traits
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    layers: tuple[LayerSettings, ...]
    activation: str
    epsilon: float
    attention_bias: bool
    output_bias: bool
    mlp_bias: bool
    attention_scale: float
    attention_cap: float | None
    final_cap: float | None
    attention_dropout: float
    tie_word_embeddings: bool
    initializer_range: float
    pad_token_id: int | None
    num_labels: int
    prefix: str = "model"
    table: str = "embed_tokens"
    positions: None = None
    scales: tuple[float, ...] = ()

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Each layer's."""
        return tuple(layer.window for layer in self.layers)

    @property
    def num_hidden_layers(self) -> int:
        """One for each entry of `layers`."""
        return len(self.layers)


def divide(settings: Settings, layers: int, tensor: int) -> Settings:
    """Give the settings of the first layers, as one of `tensor` devices holds them.

    Heads, the MLP's width and the vocabulary are divided, so that what is left is a model of the
    same kind: what each device computes with under tensor parallelism.

    Raises:
        ModelError: the model cannot be divided so.
    """
    parts = {name: _divide(settings, name, tensor) for name in _SHARED}
    return replace(settings, layers=settings.layers[:layers], **parts)


_SHARED = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size")


def _divide(settings: Settings, name: str, tensor: int) -> int:
    size = getattr(settings, name)
    if size % tensor:
        raise ModelError(f"the mesh has tensor={tensor}, which does not divide {name} = {size}")
    return size // tensor


def read_settings(config: Any) -> Settings:
    """Read and check the config of a decoder of the Llama family.

    Args:
        config: a `PretrainedConfig` whose `model_type` is in `TRAITS`.

    Raises:
        ModelError: a field holds a value that the models do not honour.
    """
    family = TRAITS[config.model_type]
    fields.refuse_variants(config, VARIANTS)
    refuse_unknown_fields(config, (*HONOURED, *WITHOUT_EFFECT))
    heads = fields.size(config, "num_attention_heads")
    width = _head_width(config, heads)
    shared = fields.size_or_none(config, "num_key_value_heads") or heads
    fields.require(
        "num_key_value_heads", shared, heads % shared == 0, f"a divisor of {heads} attention heads"
    )
    _refuse_unread(config, family)
    biased = fields.switch(config, "attention_bias", False)
    attention_bias = biased if family.attention_bias is None else family.attention_bias
    return Settings(
        model_type=config.model_type,
        traits=family,
        vocab_size=fields.size(config, "vocab_size"),
        hidden_size=fields.size(config, "hidden_size"),
        intermediate_size=fields.size(config, "intermediate_size"),
        num_attention_heads=heads,
        num_key_value_heads=shared,
        head_dim=width,
        layers=_layers(config, family, width),
        activation=_activation(config, family),
        epsilon=fields.positive(config, "rms_norm_eps"),
        attention_bias=attention_bias,
        output_bias=biased if family.output_bias is None else family.output_bias,
        mlp_bias=fields.switch(config, "mlp_bias", False),
        attention_scale=_scaled_width(config, family, width) ** -0.5,
        attention_cap=fields.positive_or_none(config, ATTENTION_CAP),
        final_cap=fields.positive_or_none(config, FINAL_CAP),
        attention_dropout=_dropout(config),
        tie_word_embeddings=fields.switch(config, "tie_word_embeddings", False),
        initializer_range=fields.positive(config, "initializer_range"),
        pad_token_id=read_padding(config),
        num_labels=fields.size(config, "num_labels"),
    )


def _head_width(config: Any, heads: int) -> int:
    width = fields.size_or_none(config, "head_dim")
    if width is None:
        hidden = fields.size(config, "hidden_size")
        fields.require(
            "hidden_size", hidden, hidden % heads == 0, f"a multiple of {heads} attention heads"
        )
        width = hidden // heads
    fields.require("head_dim", width, width % 2 == 0, "an even number")
    return width


def _refuse_unread(config: Any, family: Traits) -> None:
    """Refuse what the architecture's own code would pass over though another one reads it."""
    unread = {}
    if family.attention_bias is False:
        unread["attention_bias"] = (False, "False, for this architecture")
    if not family.mlp_bias:
        unread["mlp_bias"] = (False, "False, for this architecture")
    if family.windows == "none":
        unread["sliding_window"] = (None, "None, for this architecture")
    if not family.scaled_queries:
        unread["query_pre_attn_scalar"] = (None, "None, for this architecture")
    for cap in (ATTENTION_CAP, FINAL_CAP):
        if cap not in family.caps:
            unread[cap] = (None, "None, for this architecture")
    fields.refuse_variants(config, unread)


def _activation(config: Any, family: Traits) -> str:
    name = fields.activation(config, family.activation)
    if config.model_type != "gemma":
        return name
    # Gemma's first files say "gelu" and mean the approximation; transformers knows.
    name = "gelu_pytorch_tanh" if name == "gelu" else name
    other = fields.read(config, "hidden_activation")
    fields.require("hidden_activation", other, other in (None, name), f"None or {name!r}")
    return name


def _scaled_width(config: Any, family: Traits, width: int) -> float:
    return fields.positive(config, "query_pre_attn_scalar") if family.scaled_queries else width


def _dropout(config: Any) -> float:
    unset = fields.read(config, "attention_dropout") is None
    return 0.0 if unset else fields.rate(config, "attention_dropout")


def _layers(config: Any, family: Traits, width: int) -> tuple[LayerSettings, ...]:
    count = fields.size(config, "num_hidden_layers")
    window = _window(config, family)
    types = _layer_types(config, family, count, window)
    ropes = {
        name: read_rope(
            config,
            width,
            theta=1_000_000.0 if family.layered_rope and name == "full_attention" else 10_000.0,
            layer_type=name if family.layered_rope else None,
        )
        for name in sorted(set(types))
    }
    windows = {"full_attention": None, "sliding_attention": window}
    return tuple(LayerSettings(windows[name], ropes[name]) for name in types)


def _window(config: Any, family: Traits) -> int | None:
    # Version 4 of transformers leaves the window in Qwen's config when it is switched off.
    if family.windows == "none" or fields.read(config, "use_sliding_window") is False:
        return None
    return fields.size_or_none(config, "sliding_window")


def _layer_types(config: Any, family: Traits, count: int, window: int | None) -> tuple[str, ...]:
    given = fields.read(config, "layer_types")
    if family.windows != "layer_types":
        usual = ("full_attention" if window is None else "sliding_attention",) * count
        accepted = given is None or tuple(given) == usual
        fields.require("layer_types", given, accepted, "None, for this architecture")
        return usual
    types = _default_types(config, family, count, window) if given is None else tuple(given)
    fields.require("layer_types", given, len(types) == count, f"a list of {count}")
    for name in types:
        fields.require("layer_types", given, name in LAYER_TYPES, f"a list of {LAYER_TYPES}")
    if "sliding_attention" in types:
        found = fields.read(config, "sliding_window")
        fields.require("sliding_window", found, window is not None, "a number, for these layers")
    return types


def _default_types(config: Any, family: Traits, count: int, window: int | None) -> tuple[str, ...]:
    if family.window_pattern:
        pattern = fields.size_or_none(config, "sliding_window_pattern") or family.window_pattern
        return tuple(LAYER_TYPES[(index + 1) % pattern != 0] for index in range(count))
    first = count if window is None else fields.read(config, "max_window_layers")
    fields.require("max_window_layers", first, fields.is_integer(first), "an integer")
    return tuple(LAYER_TYPES[index >= first] for index in range(count))


NAMES = name_decoder(
    "model", "embed_tokens.weight", r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"
)
SPECS = Specs(
    widening=("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head"),
    narrowing=("o_proj", "down_proj"),
    tables=("embed_tokens",),
    heads=(
        ("q_proj", "num_attention_heads"),
        ("k_proj", "num_key_value_heads"),
        ("v_proj", "num_key_value_heads"),
        ("o_proj", "num_attention_heads"),
    ),
)

FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}

# A Mistral is a llama here; one with a window says so.
LLAMA = gguf.Architecture(
    "llama",
    "llama",
    reordered=True,
    keys=(*gguf.OTHER_KEYS, *gguf.ROPE_KEYS, gguf.WINDOW),
    windowed="mistral",
)
QWEN2 = gguf.Architecture("qwen2", "qwen2")
QWEN3 = gguf.Architecture("qwen3", "qwen3")

_GELU = "gelu_pytorch_tanh"

GEMMA = gguf.Architecture(
    "gemma",
    "gemma",
    norm_offset=1.0,
    constants={"hidden_act": _GELU},
    space_prefix=False,
)

GEMMA2 = replace(
    GEMMA,
    name="gemma2",
    model_type="gemma2",
    fields={**gguf.FIELDS, **gguf.CAPS},
    keys=(*GEMMA.keys, gguf.WINDOW, gguf.WINDOW_PATTERN),
    constants={
        "hidden_activation": _GELU,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    layer_modules={**gguf.LAYER_MODULES, **FOUR_NORMS},
    window_pattern=2,
    wide_layers=46,
)

GEMMA3 = replace(
    GEMMA2,
    name="gemma3",
    model_type="gemma3_text",
    fields={**gguf.FIELDS, "final_logit_softcapping": "final_logit_softcapping"},
    keys=(*GEMMA2.keys, gguf.LOCAL_ROPE_BASE),
    constants={"hidden_activation": _GELU, "final_logit_softcapping": None},
    window_pattern=6,
    wide_layers=62,
    local_rope=True,
)


class Decoder(nnx.Module):
    """From token ids to hidden states."""

    def __init__(self, settings: Settings, options: Options, rngs: nnx.Rngs):
        """Make the modules."""
        self.settings = settings
        self.options = options
        self.embed_tokens = Embed(
            settings.vocab_size, settings.hidden_size, dtype=options.dtype, rngs=rngs
        )
        layers = settings.layers
        if options.scan_layers:
            self.layers: Any = stack_layers(
                lambda: Layer(settings, layers[0], options, rngs),
                len(layers),
                options.frozen_layers,
            )
        else:
            self.layers = nnx.List([Layer(settings, own, options, rngs) for own in layers])
        self.norm = norm(settings, settings.hidden_size, options, rngs)

    def __call__(self, inputs: DecoderInputs, key: Any) -> tuple[Hidden, Cache | None]:
        """Compute the last hidden states, and the cache with these tokens in it."""
        hidden = spread_lookup(self.embed_tokens(inputs.input_ids))
        if self.settings.traits.scaled_embeddings:
            # Rounded to the model's own type, as the factor is in PyTorch.
            hidden = hidden * jnp.asarray(self.settings.hidden_size**0.5, hidden.dtype)
        layers = self.settings.layers
        angles = {own.rope: rotations(own.rope, inputs.position_ids) for own in layers}
        scanned, windows = self.options.scan_layers, {own.window for own in layers}
        varying = scanned and len(windows) > 1
        masks = {window: inputs.mask(window, varying) for window in windows}
        contexts = [Context(masks[own.window], angles[own.rope]) for own in layers]
        run = scan_layers if scanned else run_layers
        hidden, cache = run(self.layers, hidden, contexts, inputs, self.options.remat, key)
        return keep_rows_apart(self.norm(hidden)), cache


class Layer(nnx.Module):
    """Attention, then the MLP, each on a normalised state and added to it."""

    def __init__(
        self,
        settings: Settings,
        own: LayerSettings,
        options: Options,
        rngs: nnx.Rngs,
    ):
        width = settings.hidden_size
        self.sandwich = settings.traits.feedforward_norms
        self.input_layernorm = norm(settings, width, options, rngs)
        self.self_attn = Attention(settings, own.window, options, rngs)
        self.post_attention_layernorm = norm(settings, width, options, rngs)
        if self.sandwich:
            self.pre_feedforward_layernorm = norm(settings, width, options, rngs)
            self.post_feedforward_layernorm = norm(settings, width, options, rngs)
        self.mlp = MLP(settings, options, rngs)

    def __call__(self, hidden: Hidden, context: Context, key: Any) -> tuple[Hidden, Kept | None]:
        attended, kept = self.self_attn(self.input_layernorm(hidden), context, key)
        if not self.sandwich:
            hidden = hidden + attended
            return hidden + self.mlp(self.post_attention_layernorm(hidden)), kept
        hidden = hidden + self.post_attention_layernorm(attended)
        inner = self.mlp(self.pre_feedforward_layernorm(hidden))
        return hidden + self.post_feedforward_layernorm(inner), kept


class Attention(nnx.Module):
    """Grouped-query attention over rotated queries and keys."""

    def __init__(
        self,
        settings: Settings,
        window: int | None,
        options: Options,
        rngs: nnx.Rngs,
    ):
        width, size, dtype = settings.hidden_size, settings.head_dim, options.dtype
        own, shared = settings.num_attention_heads * size, settings.num_key_value_heads * size
        biased = settings.attention_bias
        self.q_proj = dense(width, own, dtype, rngs, bias=biased)
        self.k_proj = dense(width, shared, dtype, rngs, bias=biased)
        self.v_proj = dense(width, shared, dtype, rngs, bias=biased)
        self.o_proj = dense(own, width, dtype, rngs, bias=settings.output_bias)
        self.normalised = settings.traits.query_key_norms
        if self.normalised:
            self.q_norm = norm(settings, size, options, rngs)
            self.k_norm = norm(settings, size, options, rngs)
        self.settings = settings
        self.window = window
        self.implementation = options.attention

    def __call__(self, hidden: Hidden, context: Context, key: Any) -> tuple[Hidden, Kept | None]:
        query, keys, values = (
            projection(hidden).reshape(*hidden.shape[:2], -1, self.settings.head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.normalised:
            query, keys = self.q_norm(query), self.k_norm(keys)
        assert context.angles is not None
        query, keys = rotate(query, *context.angles), rotate(keys, *context.angles)
        (keys, values), kept = context.remember(keys, values)
        mixed = attend_causally(
            query,
            keys,
            values,
            context.mask,
            window=self.window,
            scale=self.settings.attention_scale,
            cap=self.settings.attention_cap,
            implementation=self.implementation,
            rate=self.settings.attention_dropout,
            dropout_rng=key,
        )
        return self.o_proj(mixed.reshape(*hidden.shape[:2], -1)), kept


class MLP(nnx.Module):
    """A wide layer, each entry of which is weighed by another's activation."""

    def __init__(self, settings: Settings, options: Options, rngs: nnx.Rngs):
        width, wide = settings.hidden_size, settings.intermediate_size
        dtype, bias = options.dtype, settings.mlp_bias
        self.gate_proj = dense(width, wide, dtype, rngs, bias=bias)
        self.up_proj = dense(width, wide, dtype, rngs, bias=bias)
        self.down_proj = dense(wide, width, dtype, rngs, bias=bias)
        self.activation = settings.activation

    def __call__(self, hidden: Hidden) -> Hidden:
        gate = ACTIVATIONS[self.activation](self.gate_proj(hidden))
        return self.down_proj(gate * self.up_proj(hidden))


def norm(settings: Settings, width: int, options: Options, rngs: nnx.Rngs) -> RMSNorm:
    """A norm over `width` entries with the family's offset."""
    offset = settings.traits.norm_offset
    return RMSNorm(width, epsilon=settings.epsilon, offset=offset, dtype=options.dtype, rngs=rngs)
