"""From a decoder's settings to a pure function of a plain tree of weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx

from lntune_jax.errors import ModelError
from lntune_jax.messages import Argument

from ..inputs import prepare_decoder_inputs
from ..nn.layers import dense
from ..nn.output import LogitRule
from ..nn.sharding import decode_on_auto_axes, run_on_auto_axes
from ..nn.skeleton import skeleton
from ..types import ModelOutput
from .base import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array, Float, Int

    from ..inputs import DecoderInputs
    from ..types import Cache, Leaves, Options
    from .base import Family


TASKS = (None, "CAUSAL_LM", "SEQ_CLS")


def build(
    family: Family, settings: Any, task: str | None, options: Options, *, pooler: bool = False
) -> tuple[Leaves, Callable[..., ModelOutput]]:
    """Give the leaves of the model's tree, by path, and its `apply`.

    Args:
        family: its row of the registry.
        settings: what the config says.
        task: one of `TASKS`.
        options: how it is made and computes.
        pooler: no decoder has one.

    Raises:
        ModelError: an option does not go with the settings.
    """
    del pooler
    _check_options(settings, options)
    dropping = options.attention in ("cudnn", "splash") and settings.attention_dropout > 0
    leaves, bind = skeleton(lambda: make_module(family, settings, task, options))

    def apply(
        params: Any,
        input_ids: Any,
        attention_mask: Any = None,
        position_ids: Any = None,
        *,
        segment_ids: Any = None,
        cache: Cache | None = None,
        dropout_rng: Any = None,
        with_logits: bool | str = True,
    ) -> ModelOutput:
        """Run the model; see `PretrainedModel` for the arguments."""
        if with_logits not in (True, False, "last"):
            raise ModelError(f"with_logits is {with_logits!r}; expected True, False or 'last'")
        if dropping and dropout_rng is not None:
            raise ModelError(
                f"attention is {options.attention!r}, which drops no probabilities, but config "
                f"field 'attention_dropout' is {settings.attention_dropout}; pass ",
                Argument("attention", "auto"),
                ", or leave dropout_rng out",
            )
        inputs = prepare_decoder_inputs(
            input_ids, attention_mask, position_ids, segment_ids, cache, settings.positions
        )

        def run(params: Any, inputs: DecoderInputs, key: Any) -> ModelOutput:
            model = bind(params)
            if task is not None:
                return model.outputs(inputs, key, with_logits)
            hidden, after = model(inputs, key)
            return ModelOutput(last_hidden_state=hidden, cache=after)

        given: Any = (run, params, inputs, dropout_rng)
        if cache is None:
            return run_on_auto_axes(*given, rows=inputs.input_ids)
        heads = settings.num_key_value_heads
        return decode_on_auto_axes(*given, tokens=inputs.input_ids, cache=cache, heads=heads)

    return leaves, apply


DECODER = Kind(
    TASKS, build, ("dtype", "attention", "remat", "scan_layers", "frozen_layers", "quantize")
)


def make_module(family: Family, settings: Any, task: str | None, options: Options) -> Any:
    """Make the model of a task, with weights."""
    rngs = nnx.Rngs(0)
    base = family.module(settings, options, rngs)
    heads: dict[str, Any] = {"CAUSAL_LM": _LanguageModel, "SEQ_CLS": _Classifier}
    return base if task is None else heads[task](base, settings, options, rngs)


def _check_options(settings: Any, options: Options) -> None:
    if options.attention == "cudnn" and settings.attention_cap is not None:
        raise ModelError(
            "attention is 'cudnn', which knows no soft cap, but config field "
            f"'attn_logit_softcapping' is {settings.attention_cap}; pass ",
            Argument("attention", "auto"),
        )
    if options.frozen_layers >= settings.num_hidden_layers:
        raise ModelError(
            f"frozen_layers is {options.frozen_layers}, and config field 'num_hidden_layers' "
            f"{settings.num_hidden_layers}: a layer above them must be left"
        )


class _Headed(nnx.Module):
    """A decoder under the architecture's own name, for a head to be put on."""

    def __init__(self, base: Any, settings: Any):
        self.prefix = settings.prefix
        self.settings = settings
        setattr(self, self.prefix, base)

    @property
    def base(self) -> Any:
        return getattr(self, self.prefix)


class _LanguageModel(_Headed):
    """One logit for each token and each entry of the vocabulary."""

    def __init__(self, base: Any, settings: Any, options: Options, rngs: nnx.Rngs):
        super().__init__(base, settings)
        if not settings.tie_word_embeddings:
            self.lm_head = dense(
                settings.hidden_size, settings.vocab_size, options.dtype, rngs, bias=False
            )

    def outputs(self, inputs: DecoderInputs, key: Any, with_logits: bool | str) -> ModelOutput:
        hidden, cache = self.base(inputs, key)
        scored = hidden[:, -1:] if with_logits == "last" else hidden
        logits = self._score(scored) if with_logits else None
        return ModelOutput(last_hidden_state=hidden, logits=logits, cache=cache)

    def _score(
        self, hidden: Float[Array, "batch length hidden"]
    ) -> Float[Array, "batch length vocabulary"]:
        tied = self.settings.tie_word_embeddings
        table = getattr(self.base, self.settings.table)
        products = table.attend(hidden) if tied else self.lm_head(hidden)
        return _rule(self.settings).finish(products)


def read_output(settings: Any, params: Any) -> tuple[Array, LogitRule]:
    """Give a language model's output weights as they lie in its tree, and their rule."""
    if settings.tie_word_embeddings:
        weights = params[settings.prefix][settings.table]["embedding"]
    else:
        weights = params["lm_head"]["kernel"]
    return jnp.asarray(weights), _rule(settings)


def _rule(settings: Any) -> LogitRule:
    return LogitRule(axis=0 if settings.tie_word_embeddings else 1, cap=settings.final_cap)


class _Classifier(_Headed):
    """One row of logits for each text, from its last token."""

    def __init__(self, base: Any, settings: Any, options: Options, rngs: nnx.Rngs):
        super().__init__(base, settings)
        self.score = dense(
            settings.hidden_size, settings.num_labels, options.dtype, rngs, bias=False
        )

    def outputs(self, inputs: DecoderInputs, key: Any, with_logits: bool | str) -> ModelOutput:
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
