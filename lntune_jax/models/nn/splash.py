"""Attention on a TPU without the matrix of scores: the splash kernel that comes with JAX.

The kernel knows the order of positions, a window, a soft cap, grouped heads, and segments: a token
sees its own segment only. It takes one row of a batch on one device, so that rows and heads that
lie on several devices go through `jax.shard_map`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from .sharding import find_rows_and_heads

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

# Lengths and sizes of heads are filled up to a multiple of a register's lanes.
LANES = 128
# Positions of a block, the first that divides the length: larger ones take fewer turns.
_BLOCKS = (512, 384, 256, 128)
# What the backward pass reads of a kernel's results is called, for policies of `jax.checkpoint`.
RESULT = "splash_attention"


def attend_splash(
    query: Float[Array, "batch length heads size"],
    key: Float[Array, "batch length shared size"],
    value: Float[Array, "batch length shared size"],
    segments: Int[Array, "batch length"] | None = None,
    *,
    window: int | None = None,
    scale: Any = 1.0,
    cap: float | None = None,
    interpret: bool = False,
) -> Float[Array, "batch length heads size"]:
    """Mix the values of a position and the ones before it in its segment.

    Args:
        query: what each position looks for.
        key: what each position offers, each of its heads to a group of the query's.
        value: what each position passes on.
        segments: a number for each position, which sees others of the same number only; `None`
            where all are of one.
        window: how many positions a query sees, its own included; `None` for all before.
        scale: what the products are multiplied by.
        cap: the bound that the scores approach through tanh, or `None`.
        interpret: runs the kernel anywhere, in plain operations, to test it.
    """
    mesh, rows, heads = find_rows_and_heads(query, key)
    query = (query.astype(jnp.float32) * scale).astype(query.dtype)

    def attend(query: Any, key: Any, value: Any, *marks: Any) -> Any:
        return _attend_rows(query, key, value, *marks, window=window, cap=cap, interpret=interpret)

    given = (query, key, value, *(() if segments is None else (segments,)))
    if mesh is None:
        return attend(*given)
    spec = PartitionSpec(rows, None, heads, None)
    specs = (spec, spec, spec, PartitionSpec(rows, None))[: len(given)]
    # The kernel does not say over which axes its result varies.
    return jax.shard_map(attend, mesh=mesh, in_specs=specs, out_specs=spec, check_vma=False)(*given)


def _attend_rows(
    query: Any,
    key: Any,
    value: Any,
    segments: Any = None,
    *,
    window: int | None,
    cap: float | None,
    interpret: bool,
) -> Any:
    """Attend in the rows and heads of one device."""
    # Imported where it is needed: JAX's kernels take a third of a second.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    _, length, heads, size = query.shape
    # Positions behind the last are seen by none before them; features of zero add nothing.
    more, wider = -length % LANES, -size % LANES
    filled = [
        jnp.pad(x.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, more), (0, wider)))
        for x in (query, key, value)
    ]
    places = (length + more, length + more)
    each = splash.CausalMask(places)
    if window is not None:
        each = splash.LocalMask(places, (window - 1, 0), offset=0)
    block = next(block for block in _BLOCKS if places[0] % block == 0)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    kernel: Any = splash.make_splash_mha(
        splash.MultiHeadMask([each] * heads),
        block_sizes=sizes,
        attn_logits_soft_cap=cap,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=RESULT,
        interpret=interpret,
    )
    # JAX's kernel promotes inside; the caller's strict mode is not meant for it.
    with jax.numpy_dtype_promotion("standard"):
        if segments is None:
            mixed = jax.vmap(kernel)(*filled)
        else:
            marks = jnp.pad(segments, ((0, 0), (0, more)), constant_values=-1)
            mixed = jax.vmap(kernel)(*filled, splash.SegmentIds(marks, marks))
    return mixed[:, :, :length, :size].transpose(0, 2, 1, 3)
