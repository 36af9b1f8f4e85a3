"""The programs that decode: one reads the prompts, the other takes one token of each row further.

The first reads all but the last token of each prompt, the second reads one token and chooses the
next. Prompts and caches are padded to powers of two, so that other lengths rarely need other
programs; other sampling values never do.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ._cache import empty_cache
from ._sampling import pick

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jaxtyping import Array, Bool, Int

    from ._cache import Cache
    from ._pretrained import PretrainedModel
    from ._prompts import Prompts
    from ._sampling import Sampling

# Prompts and caches are at least this long.
_SHORTEST = 16


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
    width = _round_up(tokens.shape[1] - 1)
    missing = ((0, 0), (width + 1 - tokens.shape[1], 0))
    cache = empty_cache(model, len(tokens), _round_up(width + new))
    last, position, cache = _read(
        model.apply, params, np.pad(tokens, missing), np.pad(mask, missing), cache
    )
    before = None
    for number in range(new):
        last, position, cache = _step(
            model.apply, params, last, position, cache, sampling, key, np.uint32(number)
        )
        if before is not None:
            yield before
        before = last
    if before is not None:
        yield before


# Its cache is not donated: the layers of an empty one are the same array.
@partial(jax.jit, static_argnames=("apply",))
def _read(
    apply: Callable[..., Any],
    params: Any,
    tokens: Int[Array, "batch length"],
    mask: Bool[Array, "batch length"],
    cache: Cache,
) -> tuple[Int[Array, " batch"], Int[Array, " batch"], Cache]:
    """Read all but the last token of each row; give that one and its position.

    They come from here so that they lie where the cache does, and the first step is the same
    program as the others.
    """
    positions = jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), axis=1) - 1, 0)
    before = (tokens[:, :-1], mask[:, :-1], positions[:, :-1])
    cache = apply(params, *before, cache=cache, with_logits=False).cache
    return tokens[:, -1], positions[:, -1], cache


@partial(jax.jit, static_argnames=("apply",), donate_argnames=("cache",))
def _step(
    apply: Callable[..., Any],
    params: Any,
    last: Int[Array, " batch"],
    position: Int[Array, " batch"],
    cache: Cache,
    sampling: Sampling | None,
    key: Any,
    number: Any,
) -> tuple[Int[Array, " batch"], Int[Array, " batch"], Cache]:
    output = apply(params, last[:, None], None, position[:, None], cache=cache)
    own = None if sampling is None else jax.random.fold_in(key, number)
    return pick(output.logits[:, 0], sampling, own), position + 1, output.cache


def _round_up(count: int) -> int:
    """Give the power of two that is not below `count`."""
    return max(_SHORTEST, 1 << max(count - 1, 0).bit_length())
