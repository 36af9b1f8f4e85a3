"""What models return and keep between calls: plain containers that every part knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

if TYPE_CHECKING:
    import jax
    from jaxtyping import Array, Bool, Float, Int

    Layers = (
        tuple[Float[Array, "batch heads slots size"], ...]
        | Float[Array, "layers batch heads slots size"]
    )
    Leaves = dict[tuple[str, ...], jax.ShapeDtypeStruct]


# What a sequence classifier may read: what its architecture's own does, the mean of the last hidden
# states over the tokens that count, or the first token's last hidden state.
POOLINGS = ("own", "mean", "cls")


@dataclass(frozen=True)
class Options:
    """How a model is made and how it computes, whatever its config says.

    `from_pretrained` and `from_config` take each of them by its name, and a model keeps them.

    Attributes:
        dtype: of weights and activations: "float32" or "bfloat16", whatever the file's is.
        pooling: what a sequence classifier reads. "own": what transformers' class for it
            reads. "mean": the mean of the last hidden states over the tokens that count.
            "cls": the first token's last hidden state (these two of encoders only). `None`: what
            the model's files say (`1_Pooling/config.json`, of sentence-transformers), and
            "own" where they say nothing or the config names a class of classifiers.
            A model keeps what came of it, or `None` if it is no sequence classifier.
        attention: the program for a decoder's attention. "xla": plain operations, which hold the
            scores of all pairs of positions. "splash" on TPUs and "cudnn" on NVIDIA GPUs: kernels
            that do not. "auto": the kernel of the platform that a program is traced for, where it
            honours the config, the dtype and the inputs; else "xla", as on a CPU, with a cache and
            for rows of less than 128 tokens.
        remat: what a decoder's backward pass computes again to store less, two by the names of
            JAX's policies (`jax.checkpoint_policies`): "none"; "dots_saveable", all but matrix
            products; "dots_with_no_batch_dims_saveable", queries times keys too; or "full", each
            layer from its input.
        scan_layers: whether a decoder keeps each leaf of its layers once, for all of them, with a
            first axis for the layer (`model.layers.input_layernorm.scale` of shape (layers,
            width)), and runs them in a loop: a program of one layer, which compiles faster.
            The host then holds one whole stacked leaf while it is read.
        frozen_layers: with `scan_layers`, how many layers from the first are a stack and a loop of
            their own, `layers.lower`; where none of them trains, the backward pass ends above.
        quantize: `None`, or what the kernels of the layers are kept as to take less memory:
            "int8", "int4", "nf4" or "fp8" (needs qwix, the extra `quant`). Norms, biases,
            embeddings and heads stay in `dtype`, and so do activations.

    Example:
        >>> from lntune_jax.models import Options
        >>> Options(remat="full").remat
        'full'
    """

    dtype: str = "float32"
    pooling: str | None = None
    attention: str = "auto"
    remat: str = "none"
    scan_layers: bool = False
    frozen_layers: int = 0
    quantize: str | None = None


class GivenOptions(TypedDict, total=False):
    """The names and types of `Options`, any of which may be passed as keywords.

    Example:
        >>> from lntune_jax.models import GivenOptions
        >>> given: GivenOptions = {"dtype": "bfloat16", "remat": "full"}
        >>> from transformers import LlamaConfig
        >>> from lntune_jax.models import from_config
        >>> from_config(LlamaConfig(num_hidden_layers=1), **given).options.remat
        'full'
    """

    dtype: Any
    pooling: str | None
    attention: str
    remat: str
    scan_layers: bool
    frozen_layers: int
    quantize: str | None


class ModelOutput(NamedTuple):
    """The arrays a model computed; `None` for those it has not.

    Attributes:
        last_hidden_state: (batch, length, hidden); of a classifier of the first token only with
            `with_hidden=True`, since its last layer computes no other token else.
        pooler_output: (batch, hidden), of a bare model that has a pooler.
        logits: (batch, labels), (batch, length, labels) or (batch, length, vocabulary), of a
            model with a head.
        cache: of a decoder that was given one, with the keys and values of its inputs added.

    Example:
        >>> import jax
        >>> from lntune_jax.models import ModelOutput
        >>> jax.tree.map(abs, ModelOutput(logits=-1.0))
        ModelOutput(last_hidden_state=None, pooler_output=None, logits=1.0, cache=None)
    """

    last_hidden_state: Float[Array, "batch length hidden"] | None = None
    pooler_output: Float[Array, "batch hidden"] | None = None
    logits: Float[Array, "batch ..."] | None = None
    cache: Cache | None = None


class Cache(NamedTuple):
    """What a decoder keeps between calls.

    Attributes:
        keys: one array for each layer, (batch, heads, slots, size), rotated already; of a model
            with `scan_layers` one array for all, with a first axis for the layers. Heads come
            before slots, as attention's products read them: no step turns the cache round.
        values: the same for the values.
        valid: true in a slot whose token may be seen.
        next_slot: the slot of each row's next token.

    Example:
        >>> import jax.numpy as jnp
        >>> from lntune_jax.models import Cache
        >>> Cache((), (), jnp.zeros((1, 4), bool), jnp.array([0])).next_slot
        Array([0], dtype=int32)
    """

    keys: Layers
    values: Layers
    valid: Bool[Array, "batch slots"]
    next_slot: Int[Array, " batch"]
