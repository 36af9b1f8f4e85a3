"""The loss of a causal language model, without its logits ever being there as a whole.

Logits of 128 thousand entries for every token are larger than all else in a step of norm tuning.
Here the vocabulary is gone through in chunks: each chunk's logits are added to a running sum of
exponentials and forgotten (`_vocabulary`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from lntune_jax.errors import ModelError
from lntune_jax.training import WeightedLoss

from ._explicit import run_on_auto_axes
from ._inputs import check_shape, integers, mask_of, tokens_of
from ._layout import LAYOUTS
from ._rows import keep_rows_apart
from ._vocabulary import token_losses

if TYPE_CHECKING:
    from jaxtyping import Array, Int

    from ._pretrained import PretrainedModel

IGNORED = -100


def causal_lm_loss(
    model: PretrainedModel,
    params: Any,
    input_ids: Any,
    labels: Any = None,
    *,
    attention_mask: Any = None,
    position_ids: Any = None,
    segment_ids: Any = None,
    dropout_rng: Any = None,
    chunk: int = 8192,
    weighted: bool = False,
) -> Any:
    """Give the mean loss of predicting each token from the ones before it, in float32.

    Args:
        model: a model with the task "CAUSAL_LM".
        params: its weights, whole.
        input_ids: (batch, length), integers.
        labels: (batch, length), the tokens to predict, in their own columns: the shift by one is
            made here. Where it is -100 nothing is predicted; any other number outside the
            vocabulary gives NaN. `None` for `input_ids`, less what `attention_mask` leaves out
            and, with `segment_ids`, what has the id 0.
        attention_mask: as in `model.apply`.
        position_ids: as in `model.apply`.
        segment_ids: as in `model.apply`; the first token of a segment is not predicted.
        dropout_rng: as in `model.apply`.
        chunk: entries of the vocabulary at a time, at most.
        weighted: gives the sum and the number of predicted tokens, as a `WeightedLoss`: for
            `make_train_step(accumulate=)`, whose microbatches may predict unlike numbers of tokens.

    Returns:
        The mean over the predicted tokens; NaN where there is none. With `weighted` a
        `WeightedLoss`.

    Its derivative is one of reverse mode (`jax.grad`, `jax.vjp`, a `jvp` of these), not for
    `jax.jvp` of the loss itself.

    Raises:
        ModelError: the model has another task, or an input the wrong shape.

    Example:
        >>> import jax
        >>> from transformers import LlamaConfig
        >>> from lntune_jax.models import causal_lm_loss, from_config
        >>> tiny = LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
        >>> model = from_config(tiny, task="CAUSAL_LM")
        >>> tokens = jax.ShapeDtypeStruct((2, 16), "int32")
        >>> loss = lambda params, tokens: causal_lm_loss(model, params, tokens)
        >>> jax.eval_shape(loss, model.params, tokens)
        ShapeDtypeStruct(shape=(), dtype=float32)
    """
    if model.task != "CAUSAL_LM":
        raise ModelError(f"the model's task is {model.task!r}; the loss needs 'CAUSAL_LM'")
    if not isinstance(chunk, int) or chunk < 1:
        raise ModelError(f"chunk is {chunk!r}; expected an integer of at least 1")
    tokens = tokens_of(input_ids)
    targets = _targets(tokens, labels, attention_mask, segment_ids)
    inputs = tokens, attention_mask, position_ids, segment_ids, dropout_rng

    def run(params: Any, targets: Any, *inputs: Any) -> WeightedLoss:
        tokens, mask, positions, segments, key = inputs
        hidden = model.apply(
            params,
            tokens,
            mask,
            positions,
            segment_ids=segments,
            dropout_rng=key,
            with_logits=False,
        ).last_hidden_state
        assert hidden is not None
        states = keep_rows_apart(hidden[:, :-1].reshape(-1, hidden.shape[-1]))
        wanted = targets[:, 1:].reshape(-1)
        counted = wanted != IGNORED
        weights, axis = _output(model, params)
        cap = model.settings.final_cap
        losses = token_losses(states, weights, wanted, axis=axis, cap=cap, chunk=chunk)
        total = jnp.where(counted, losses, 0).sum()
        return WeightedLoss(total, counted.sum().astype(jnp.float32))

    loss = run_on_auto_axes(run, params, targets, *inputs)
    return loss if weighted else loss.total / loss.weight


def _targets(
    tokens: Int[Array, "batch length"], labels: Any, attention_mask: Any, segment_ids: Any
) -> Int[Array, "batch length"]:
    if labels is not None:
        targets = integers("labels", labels)
        check_shape("labels", targets, tokens.shape)
    else:
        targets = tokens
        if attention_mask is not None:
            # Nor the first token after padding: there is nothing to predict it from.
            counts = mask_of(attention_mask)
            before = jnp.pad(counts[:, :-1], ((0, 0), (1, 0)))
            targets = jnp.where(counts & before, targets, IGNORED)
    if segment_ids is not None:
        segments = integers("segment_ids", segment_ids)
        check_shape("segment_ids", segments, tokens.shape)
        begins = jnp.pad(jnp.diff(segments, axis=1) != 0, ((0, 0), (1, 0)))
        left_out = begins if labels is not None else begins | (segments == 0)
        targets = jnp.where(left_out, IGNORED, targets)
    return targets


def _output(model: PretrainedModel, params: Any) -> tuple[Array, int]:
    """Give the output weights as they are, and the axis along which the vocabulary lies."""
    if not model.settings.tie_word_embeddings:
        return jnp.asarray(params["lm_head"]["kernel"]), 1
    layout = LAYOUTS[model.settings.model_type]
    table = params[layout.prefix][layout.embeddings.split(".")[0]]["embedding"]
    return jnp.asarray(table), 0
