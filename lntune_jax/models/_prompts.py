"""The prompts of `generate`: checked on the host, where looking at values compiles nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lntune_jax.errors import ModelError

from ._inputs import check_shape

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

    from ._pretrained import PretrainedModel


class Prompts(NamedTuple):
    """Tokens, padded on the left with zeros, and what of them counts."""

    tokens: Int[np.ndarray, "batch length"]
    mask: Bool[np.ndarray, "batch length"]


def check_prompts(model: PretrainedModel, input_ids: Any, attention_mask: Any, new: int) -> Prompts:
    """Give the prompts as numpy arrays, or refuse them.

    Args:
        model: the model that is to continue them.
        input_ids: as in `generate`.
        attention_mask: as in `generate`.
        new: how many tokens may follow.

    Raises:
        ModelError: ids outside the vocabulary, a row padded on another side than the left or
            without tokens, or too many tokens for the model.
    """
    tokens = _on_host("input_ids", input_ids, "iu")
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise ModelError(
            f"input_ids has the shape {tokens.shape}; expected (batch, length), both at least 1"
        )
    mask = np.ones(tokens.shape, np.bool_)
    if attention_mask is not None:
        mask = _on_host("attention_mask", attention_mask, "iub") != 0
        check_shape("attention_mask", mask, tokens.shape)
    for row in np.flatnonzero(~mask[:, -1]):
        fault = "is padded on the right" if mask[row].any() else "holds no token"
        raise ModelError(
            f"row {row} of input_ids {fault}; pad prompts on the left (padding_side='left' in "
            "the tokenizer)"
        )
    holes = np.flatnonzero((mask[:, :-1] & ~mask[:, 1:]).any(axis=1))
    if holes.size:
        raise ModelError(
            f"row {holes[0]} of attention_mask has padding between its tokens; expected zeros, "
            "then ones"
        )
    vocabulary = model.settings.vocab_size
    wrong = tokens[mask & ((tokens < 0) | (tokens >= vocabulary))]
    if wrong.size:
        raise ModelError(f"input_ids holds {wrong[0]}; expected ids from 0 to {vocabulary - 1}")
    longest, limit = int(mask.sum(axis=1).max()), model.config.max_position_embeddings
    if longest + new > limit:
        raise ModelError(
            f"a prompt of {longest} tokens and max_new_tokens of {new} are {longest + new}, more "
            f"than the config's max_position_embeddings of {limit}; shorten the prompt, or lower "
            "max_new_tokens"
        )
    return Prompts(np.where(mask, tokens, 0).astype(np.int32), mask)


def _on_host(name: str, value: Any, kinds: str) -> np.ndarray:
    """Give an input in numpy, where checks of values compile nothing; kinds as numpy has them."""
    array = np.asarray(value)
    if array.dtype.kind not in kinds:
        raise ModelError(f"{name} holds {array.dtype} numbers; expected integers")
    return array
