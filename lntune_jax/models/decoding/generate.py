"""New tokens from a language model, one after the other, with a cache of the ones before.

What a caller asks for is checked on the host, where looking at values compiles nothing. Two
programs do the work: the first makes the cache, reads the prompts and chooses a token for each, the
second reads these and chooses the next. Prompts and caches are padded a little, so that other
lengths rarely need other programs; other sampling values never do.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lntune_jax.errors import ModelError

from ..inputs import check_shape
from ..nn.layers import WideWeights
from .cache import cache_shapes, widen, zeros
from .sampling import check_sampling, pick

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jaxtyping import Array, Bool, Int

    from ..model import PretrainedModel
    from ..types import Cache
    from .sampling import Sampling


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
    stop_tokens: Sequence[int] | None = None,
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
        stop_tokens: ids that end a row; they are its last token. `None` for the model's own
            (`model.stop_tokens`), `()` for none.
        key: a JAX random key, to draw tokens with. The same key gives the same tokens.
        pad_token: what fills a row that ended before others.

    Returns:
        The new tokens, without the prompts, and how many of them count in each row. There are
        `max_new_tokens` columns, or fewer where every row stopped before.

    Raises:
        ModelError: the model is no language model; an argument is out of its range; a row is
            padded on the right, empty, or together with its new tokens longer than the config's
            `max_position_embeddings`; a text grows past the length where "longrope" turns all
            tokens otherwise; the model computes NaN.

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
    stop_tokens: Sequence[int] | None = None,
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
    stops = _check_stops(model.stop_tokens if stop_tokens is None else stop_tokens, vocabulary)
    columns = decode(model, params, prompts, int(max_new_tokens), sampling, key)
    return _until_stopped(columns, stops)


def _check_stops(stop_tokens: Any, vocabulary: int) -> Int[np.ndarray, " stops"]:
    stops = np.asarray(list(stop_tokens) if isinstance(stop_tokens, Iterable) else stop_tokens)
    if stops.ndim != 1 or (stops.size and stops.dtype.kind not in "iu"):
        raise ModelError(
            f"stop_tokens is {stop_tokens!r}; expected a list of token ids, or None for the "
            "model's own"
        )
    unknown = stops[(stops < 0) | (stops >= vocabulary)]
    if unknown.size:
        raise ModelError(f"stop_tokens holds {unknown[0]}; expected ids from 0 to {vocabulary - 1}")
    return stops.astype(np.int32)


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
    border = model.settings.turning_point
    # The prompt is read at once, and all new tokens but the last one by one, from a cache.
    if border is not None and longest <= border < longest + new - 1:
        raise ModelError(
            f"a prompt of {longest} tokens and max_new_tokens of {new} go from below to above "
            f"{border} tokens, config field 'original_max_position_embeddings'; there 'longrope' "
            "turns earlier tokens otherwise, and the cache would be wrong. Lower max_new_tokens, "
            f"or pass a prompt of at least {border + 1} tokens"
        )
    return Prompts(np.where(mask, tokens, 0).astype(np.int32), mask)


def _on_host(name: str, value: Any, kinds: str) -> np.ndarray:
    """Give an input in numpy, where checks of values compile nothing; kinds as numpy has them."""
    array = np.asarray(value)
    if array.dtype.kind not in kinds:
        raise ModelError(f"{name} holds {array.dtype} numbers; expected integers")
    return array


def decode(
    model: PretrainedModel,
    params: Any,
    prompts: Prompts,
    new: int,
    sampling: Sampling | None,
    key: Any,
) -> Iterator[Int[Array, " batch"]]:
    """Give the new tokens without end but `new`; the device may be a token ahead of the reader."""
    tokens, mask = prompts
    width = round_up(tokens.shape[1])
    missing = ((0, 0), (width - tokens.shape[1], 0))
    shapes = cache_shapes(model, len(tokens), width)
    # The last token is read by nobody.
    slots = round_up(width + new - 1)
    if model.dtype == "bfloat16" and _lie_on_cpu(params):
        params = widen_weights(params)
    given = np.pad(tokens, missing), np.pad(mask, missing), shapes, slots, sampling, key
    last, position, cache = read_prompts(model.apply, params, *given)
    for number in range(1, new):
        before = last
        last, position, cache = take_step(
            model.apply, params, last, position, cache, sampling, key, np.uint32(number)
        )
        yield before
    yield last


def _lie_on_cpu(params: Any) -> bool:
    arrays = [leaf for leaf in jax.tree.leaves(params) if isinstance(leaf, jax.Array)]
    kinds = {device.platform for leaf in arrays for device in leaf.devices()}
    return kinds == {"cpu"} if kinds else jax.default_backend() == "cpu"


@jax.jit
def widen_weights(params: Any) -> Any:
    """Give kernels and tables in float32, twice a bfloat16 model's memory: see `WideWeights`."""

    def widen_leaf(path: Any, leaf: Any) -> Any:
        if getattr(path[-1], "key", None) not in ("kernel", "embedding"):
            return leaf
        # Rounded to bfloat16, as the model does with weights that are wider.
        return WideWeights(jax.lax.reduce_precision(leaf.astype(jnp.float32), 8, 7))

    return jax.tree_util.tree_map_with_path(widen_leaf, params)


@partial(jax.jit, static_argnames=("apply", "shapes", "slots"))
def read_prompts(
    apply: Callable[..., Any],
    params: Any,
    tokens: Int[Array, "batch length"],
    mask: Bool[Array, "batch length"],
    shapes: Cache,
    slots: int,
    sampling: Sampling | None,
    key: Any,
) -> tuple[Int[Array, " batch"], Int[Array, " batch"], Cache]:
    """Read each row and choose its first new token; give that, its position and the cache.

    The cache is made here. While tokens are read it holds slots for them alone, so that attention
    goes over no others.
    """
    positions = jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), axis=1) - 1, 0)
    output = apply(params, tokens, mask, positions, cache=zeros(shapes), with_logits="last")
    first = _choose(output.logits, sampling, key, np.uint32(0))
    return first, positions[:, -1] + 1, widen(output.cache, slots)


@partial(jax.jit, static_argnames=("apply",), donate_argnames=("cache",))
def take_step(
    apply: Callable[..., Any],
    params: Any,
    last: Int[Array, " batch"],
    position: Int[Array, " batch"],
    cache: Cache,
    sampling: Sampling | None,
    key: Any,
    number: Any,
) -> tuple[Int[Array, " batch"], Int[Array, " batch"], Cache]:
    """Read a token of each row and choose the next; the cache is written in place."""
    output = apply(params, last[:, None], None, position[:, None], cache=cache)
    return _choose(output.logits, sampling, key, number), position + 1, output.cache


def _choose(logits: Any, sampling: Sampling | None, key: Any, number: Any) -> Any:
    own = None if sampling is None else jax.random.fold_in(key, number)
    return pick(logits[:, -1], sampling, own)


# Prompts and caches are at least this long, and lengths are multiples of it.
_SHORTEST = 16


def round_up(count: int) -> int:
    """Give the next length that programs are made for, four for each doubling.

    At most a quarter is added to a count above 64, and 15 to one below.
    """
    step = max(_SHORTEST, (1 << max(count - 1, 0).bit_length()) // 8)
    return max(_SHORTEST, -(-count // step) * step)
