"""From a decoder's settings to a pure function of a plain tree of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx

from lntune_jax.errors import ModelError

from ..inputs import prepare_decoder_inputs
from ..nn.layers import dense
from ..nn.sharding import run_on_auto_axes
from ..nn.skeleton import skeleton
from ..types import ModelOutput
from .gpt2 import Gpt2, Gpt2Settings
from .llama import Decoder

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array, Float, Int

    from ..inputs import DecoderInputs
    from ..nn.stack import Options
    from ..types import Cache, Leaves
    from .llama import DecoderSettings


@dataclass(frozen=True)
class DecoderRecipe:
    """Everything that decides a decoder's modules and how they compute."""

    settings: DecoderSettings | Gpt2Settings
    task: str | None
    options: Options


def build_decoder(recipe: DecoderRecipe) -> tuple[Leaves, Callable[..., ModelOutput]]:
    """Give the leaves of the model's tree, by path, and its `apply`."""
    settings = recipe.settings
    table = settings.positions if isinstance(settings, Gpt2Settings) else None
    dropping = recipe.options.attention == "cudnn" and settings.attention_dropout > 0
    leaves, bind = skeleton(lambda: _module(recipe))

    def apply(
        params: Any,
        input_ids: Any,
        attention_mask: Any = None,
        position_ids: Any = None,
        *,
        segment_ids: Any = None,
        cache: Cache | None = None,
        dropout_rng: Any = None,
        with_logits: bool = True,
    ) -> ModelOutput:
        """Run the model; see `PretrainedModel` for the arguments."""
        if dropping and dropout_rng is not None:
            raise ModelError(
                "attention is 'cudnn', which drops no probabilities, but config field "
                f"'attention_dropout' is {settings.attention_dropout}; pass attention='xla', or "
                "leave dropout_rng out"
            )
        inputs = prepare_decoder_inputs(
            input_ids, attention_mask, position_ids, segment_ids, cache, table
        )

        def run(params: Any, inputs: DecoderInputs, key: Any) -> ModelOutput:
            return bind(params).outputs(inputs, key, with_logits)

        # A cache of stacked layers has no rows in its first axis.
        rows = inputs.input_ids if cache is None else None
        return run_on_auto_axes(run, params, inputs, dropout_rng, rows=rows)

    return leaves, apply


def _module(recipe: DecoderRecipe) -> Any:
    gpt2 = isinstance(recipe.settings, Gpt2Settings)
    kinds: dict[str | None, Any] = {
        None: _BareGpt2 if gpt2 else _BareDecoder,
        "CAUSAL_LM": _LanguageModel,
        "SEQ_CLS": _Classifier,
    }
    return kinds[recipe.task](recipe.settings, recipe.options, nnx.Rngs(0))


class _BareOutputs:
    def outputs(self, inputs: DecoderInputs, key: Any, with_logits: bool) -> ModelOutput:
        """Give the hidden states; there are no logits to leave out."""
        del with_logits
        hidden, cache = self(inputs, key)  # pyright: ignore[reportCallIssue]
        return ModelOutput(last_hidden_state=hidden, cache=cache)


class _BareDecoder(_BareOutputs, Decoder):
    pass


class _BareGpt2(_BareOutputs, Gpt2):
    pass


class _Headed(nnx.Module):
    """A decoder under the architecture's own name, for a head to be put on."""

    def __init__(self, settings: Any, options: Options, rngs: nnx.Rngs):
        self.prefix = settings.prefix
        self.settings = settings
        kind: Any = Gpt2 if isinstance(settings, Gpt2Settings) else Decoder
        setattr(self, self.prefix, kind(settings, options, rngs))

    @property
    def base(self) -> Any:
        return getattr(self, self.prefix)


class _LanguageModel(_Headed):
    """One logit for each token and each entry of the vocabulary."""

    def __init__(self, settings: Any, options: Options, rngs: nnx.Rngs):
        super().__init__(settings, options, rngs)
        if not settings.tie_word_embeddings:
            self.lm_head = dense(
                settings.hidden_size, settings.vocab_size, options.dtype, rngs, bias=False
            )

    def outputs(self, inputs: DecoderInputs, key: Any, with_logits: bool) -> ModelOutput:
        hidden, cache = self.base(inputs, key)
        logits = self._score(hidden) if with_logits else None
        return ModelOutput(last_hidden_state=hidden, logits=logits, cache=cache)

    def _score(
        self, hidden: Float[Array, "batch length hidden"]
    ) -> Float[Array, "batch length vocabulary"]:
        tied = self.settings.tie_word_embeddings
        logits = self.base.table.attend(hidden) if tied else self.lm_head(hidden)
        cap = self.settings.final_cap
        return logits if cap is None else jnp.tanh(logits / cap) * cap


class _Classifier(_Headed):
    """One row of logits for each text, from its last token."""

    def __init__(self, settings: Any, options: Options, rngs: nnx.Rngs):
        super().__init__(settings, options, rngs)
        self.score = dense(
            settings.hidden_size, settings.num_labels, options.dtype, rngs, bias=False
        )

    def outputs(self, inputs: DecoderInputs, key: Any, with_logits: bool) -> ModelOutput:
        hidden, cache = self.base(inputs, key)
        if not with_logits:
            return ModelOutput(last_hidden_state=hidden, cache=cache)
        rows = jnp.arange(hidden.shape[0])
        last = hidden[rows, _last_tokens(inputs.input_ids, self.settings.pad_token_id)]
        return ModelOutput(last_hidden_state=hidden, logits=self.score(last), cache=cache)


def _last_tokens(tokens: Int[Array, "batch length"], padding: int | None) -> Int[Array, " batch"]:
    """Give the last column of each row that holds no padding, as transformers finds it."""
    if padding is None:
        if tokens.shape[0] != 1:
            raise ModelError(
                "config field 'pad_token_id' is None, so that the last token of each of "
                f"{tokens.shape[0]} rows is unknown; set it in the config"
            )
        return jnp.full((1,), tokens.shape[1] - 1, jnp.int32)
    columns = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    return jnp.argmax(jnp.where(tokens != padding, columns, 0), axis=1)
