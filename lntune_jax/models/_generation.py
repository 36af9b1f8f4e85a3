"""New tokens from a language model, one after the other, with a cache of the ones before.

What a caller may ask for is checked here; the programs that do the work are in `_decode`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lntune_jax.errors import ModelError

from ._decode import decode
from ._prompts import check_prompts
from ._sampling import check_sampling

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jaxtyping import Array, Int

    from ._pretrained import PretrainedModel


class Generated(NamedTuple):
    """What `generate` returns, as numpy arrays.

    Attributes:
        tokens: the new ones of each row; after its stop token, the padding token.
        lengths: how many of them count, the stop token included.

    Example:
        >>> import numpy as np
        >>> from lntune_jax.models import Generated
        >>> result = Generated(np.array([[5, 6, 2], [7, 2, 0]]), np.array([3, 2]))
        >>> [row[:length].tolist() for row, length in zip(*result)]
        [[5, 6, 2], [7, 2]]
    """

    tokens: Int[np.ndarray, "batch new"]
    lengths: Int[np.ndarray, " batch"]


def generate(
    model: PretrainedModel,
    params: Any,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_tokens: Sequence[int] = (),
    key: Any = None,
    pad_token: int = 0,
) -> Generated:
    """Continue each row of tokens.

    Args:
        model: a decoder with the task "CAUSAL_LM".
        params: its weights, an adapter's norms in place or not.
        input_ids: (batch, length), the prompts, shorter ones padded on the left.
        attention_mask: (batch, length), 0 where there is padding; `None` for none.
        max_new_tokens: the most new tokens in a row.
        temperature: 0 for the likeliest token each time; above 0 tokens are drawn, with logits
            divided by it.
        top_k: draw from so many of the likeliest tokens; `None` for all.
        top_p: draw from the fewest likeliest tokens with together this probability; `None` for
            all.
        stop_tokens: ids that end a row; they are its last token.
        key: a JAX random key, to draw tokens with. The same key gives the same tokens.
        pad_token: what fills a row that ended before others.

    Returns:
        The new tokens, without the prompts, and how many of them count in each row. There are
        `max_new_tokens` columns, or fewer where every row stopped before.

    Raises:
        ModelError: the model is no language model; an argument is out of its range; a row is
            padded on the right, empty, or together with its new tokens longer than the config's
            `max_position_embeddings`; the model computes NaN.

    Example:
        >>> import jax
        >>> from transformers import LlamaConfig
        >>> from lntune_jax.models import from_config, generate
        >>> tiny = LlamaConfig(
        ...     vocab_size=10, hidden_size=8, intermediate_size=8, num_attention_heads=2,
        ...     num_hidden_layers=1
        ... )
        >>> model = from_config(tiny, task="CAUSAL_LM")
        >>> params = jax.tree.map(lambda leaf: jax.numpy.ones(leaf.shape), model.params)
        >>> generate(model, params, [[1, 2, 3]], max_new_tokens=4).tokens.shape
        (1, 4)
    """
    columns = list(
        stream(
            model,
            params,
            input_ids,
            attention_mask,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            stop_tokens=stop_tokens,
            key=key,
        )
    )
    tokens = np.stack(columns, axis=1)
    kept = tokens >= 0
    return Generated(np.where(kept, tokens, np.int32(pad_token)), kept.sum(axis=1))


def stream(
    model: PretrainedModel,
    params: Any,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_tokens: Sequence[int] = (),
    key: Any = None,
) -> Iterator[Int[np.ndarray, " batch"]]:
    """Continue each row of tokens, and give each new column as soon as it is there.

    Args:
        model: as in `generate`.
        params: as in `generate`.
        input_ids: as in `generate`.
        attention_mask: as in `generate`.
        max_new_tokens: as in `generate`.
        temperature: as in `generate`.
        top_k: as in `generate`.
        top_p: as in `generate`.
        stop_tokens: as in `generate`.
        key: as in `generate`.

    Returns:
        An iterator over arrays of the shape (batch,): the next token of each row, -1 in rows
        that have ended. It ends when all have.

    Raises:
        ModelError: as in `generate`; for arguments at once, before the first token is asked for.

    Example:
        >>> import jax
        >>> from transformers import LlamaConfig
        >>> from lntune_jax.models import from_config, stream
        >>> tiny = LlamaConfig(
        ...     vocab_size=10, hidden_size=8, intermediate_size=8, num_attention_heads=2,
        ...     num_hidden_layers=1
        ... )
        >>> model = from_config(tiny, task="CAUSAL_LM")
        >>> params = jax.tree.map(lambda leaf: jax.numpy.ones(leaf.shape), model.params)
        >>> for column in stream(model, params, [[1, 2], [3, 4]], max_new_tokens=2):
        ...     print(column.shape)
        (2,)
        (2,)
    """
    if model.task != "CAUSAL_LM":
        raise ModelError(
            f"the model's task is {model.task!r}; only a decoder with the task 'CAUSAL_LM' "
            "generates"
        )
    if not isinstance(max_new_tokens, int | np.integer) or max_new_tokens < 1:
        raise ModelError(f"max_new_tokens is {max_new_tokens!r}; expected an integer of at least 1")
    vocabulary = model.settings.vocab_size
    sampling = check_sampling(temperature, top_k, top_p, vocabulary, key)
    prompts = check_prompts(model, input_ids, attention_mask, int(max_new_tokens))
    stops = np.asarray(list(stop_tokens), np.int32)
    unknown = stops[(stops < 0) | (stops >= vocabulary)]
    if unknown.size:
        raise ModelError(f"stop_tokens holds {unknown[0]}; expected ids from 0 to {vocabulary - 1}")
    columns = decode(model, params, prompts, int(max_new_tokens), sampling, key)
    return _until_stopped(columns, stops)


def _until_stopped(
    columns: Iterator[Int[Array, " batch"]], stops: Int[np.ndarray, " stops"]
) -> Iterator[Int[np.ndarray, " batch"]]:
    running: Any = np.True_
    for number, column in enumerate(columns):
        tokens = np.where(running, np.asarray(column), np.int32(-1))
        broken = np.flatnonzero(running & (tokens < 0))
        if broken.size:
            raise ModelError(
                f"the model computes NaN for new token {number} of row {broken[0]}; look for "
                "NaN in the weights, or for values too large for their dtype"
            )
        yield tokens
        running = running & ~np.isin(tokens, stops)
        if not running.any():
            return
