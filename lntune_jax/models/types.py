"""What models return and keep between calls: plain containers that every part knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

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

    Attributes:
        dtype: of weights and activations.
        pooling: what an encoder's sequence classifier reads: one of `POOLINGS`; `None` where the
            model has no such head.
        attention: a decoder's implementation.
        remat: what a decoder's backward pass computes again.
        scan_layers: whether a decoder's layers are one, with stacked weights, in a loop.
        frozen_layers: of these, how many from the first are a stack and a loop of their own.
        quantize: what the kernels of the layers are kept as, or `None` for `dtype`.

    Example:
        >>> from lntune_jax.models import Options
        >>> Options(remat="full").remat
        'full'
    """

    dtype: str = "float32"
    pooling: str | None = None
    attention: str = "xla"
    remat: str = "none"
    scan_layers: bool = False
    frozen_layers: int = 0
    quantize: str | None = None


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
