"""The loss of a causal language model, without its logits ever being there as a whole.

Logits of 128 thousand entries for every token are larger than all else in a step of norm tuning.
Here the vocabulary is gone through in chunks: each chunk's logits are added to a running sum of
exponentials and forgotten.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec

from lntune_jax.errors import ModelError
from lntune_jax.training import WeightedLoss

from .families.decoders import read_output
from .inputs import check_shape, integers, mask_of, tokens_of
from .nn.sharding import (
    find_row_axes,
    is_auto,
    keep_rows_apart,
    run_on_auto_axes,
    spread_lookup,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

    from .model import PretrainedModel
    from .nn.output import LogitRule


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
        weights, rule = read_output(model.settings, params)
        wanted = targets[:, 1:]
        if vocabulary_mesh(weights.shape[rule.axis], hidden) is None:
            states = keep_rows_apart(hidden[:, :-1])
        else:  # in parts of one length
            wanted = jnp.pad(wanted, ((0, 0), (0, 1)), constant_values=IGNORED)
            states = hidden
        counted = wanted != IGNORED
        losses = token_losses(states, weights, wanted, rule=rule, chunk=chunk)
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


_WHOLE = 128  # chunks are a multiple of this, where they can be


class _Plan(NamedTuple):
    """How the vocabulary is gone through.

    Attributes:
        rule: where it lies in the weights, and what makes logits of products.
        rows: how many entries a device goes through.
        size: how many a chunk has.
        dtype: of the states.
        mesh: over whose axis "tensor" the entries are divided, or `None`.
    """

    rule: LogitRule
    rows: int
    size: int
    dtype: str
    mesh: Any = None


def token_losses(
    states: Float[Array, "*tokens hidden"],
    weights: Array,
    wanted: Int[Array, "*tokens"],
    *,
    rule: LogitRule,
    chunk: int,
) -> Float[Array, "*tokens"]:
    """Give each token's negative log-likelihood in float32; NaN outside of the vocabulary.

    Args:
        states: the last hidden states.
        weights: of the output, in any dtype; they are cast to that of the states.
        wanted: the tokens to predict.
        rule: where the vocabulary lies in the weights, and what makes logits of products.
        chunk: entries of the vocabulary at a time, at most.

    On a mesh whose axis "tensor" divides the vocabulary, each device goes through its own part.
    """
    rows = weights.shape[rule.axis]
    mesh = vocabulary_mesh(rows, states) if states.ndim == 3 else None
    own = rows if mesh is None else rows // mesh.shape["tensor"]
    plan = _Plan(rule, own, even_chunks(own, chunk)[1], states.dtype.name, mesh)
    return _losses(plan, states, weights.astype(states.dtype), wanted)


def even_chunks(rows: int, chunk: int) -> tuple[int, int]:
    """How many chunks, and their one size, of which the last shares few rows with its neighbour."""
    size = -(-rows // -(-rows // chunk))
    size = min(-(-size // _WHOLE) * _WHOLE, chunk, rows)
    return -(-rows // size), size


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _losses(plan: _Plan, states: Array, weights: Array, wanted: Array) -> Array:
    return _forward(plan, states, weights, wanted, False)[0]


def _losses_forward(plan: _Plan, states: Any, weights: Any, wanted: Any) -> tuple[Array, Any]:
    if weights.perturbed:

        def losses_of(states: Array, weights: Array) -> Array:
            return _forward(plan, states, weights, wanted.value, False)[0]

        losses, pull = jax.vjp(losses_of, states.value, weights.value)
        return losses, (None, pull)
    losses, gradient = _forward(plan, states.value, weights.value, wanted.value, True)
    return losses, (gradient, None)


def _losses_backward(plan: _Plan, kept: Any, cotangent: Any) -> tuple[Any, Any, None]:
    gradient, pull = kept
    if isinstance(cotangent, SymbolicZero):
        return None, None, None
    if pull is not None:
        return (*pull(cotangent), None)
    return (gradient * cotangent[..., None]).astype(plan.dtype), None, None


_losses.defvjp(_losses_forward, _losses_backward, symbolic_zeros=True)


def _forward(
    plan: _Plan, states: Array, weights: Array, wanted: Array, with_gradient: bool
) -> tuple[Array, Array | None]:
    """The losses, and, if asked for, the gradient of each by its own state."""
    if plan.mesh is None:
        return _sum_up(plan, states, weights, wanted, with_gradient)
    rows = find_row_axes(plan.mesh, wanted.shape[0])
    own = PartitionSpec(rows)
    table = PartitionSpec("tensor") if plan.rule.axis == 0 else PartitionSpec(None, "tensor")
    # The gradient comes as the states do: each device has that of its part of the length.
    part = PartitionSpec(rows, "tensor") if with_gradient else None
    return jax.shard_map(
        partial(_sum_up, plan, with_gradient=with_gradient),
        mesh=plan.mesh,
        in_specs=(own, table, own),
        out_specs=(own, part),
        check_vma=False,
    )(states, weights, wanted)


def _sum_up(
    plan: _Plan, states: Array, weights: Array, wanted: Array, with_gradient: bool
) -> tuple[Array, Array | None]:
    """Go through the entries of one device, and add up what those of all have."""
    shape, divided = wanted.shape, plan.mesh is not None
    states, wanted = keep_rows_apart(states.reshape(-1, states.shape[-1])), wanted.reshape(-1)
    whole = plan.rows * (plan.mesh.shape["tensor"] if divided else 1)
    known = (wanted >= 0) & (wanted < whole)
    if divided:
        wanted = wanted - jax.lax.axis_index("tensor") * plan.rows

    # Where weights train, a chunk's logits are computed again on the way back, and never kept.
    @jax.checkpoint
    def add(carry: Any, index: Array) -> tuple[Any, None]:
        highest, found, others, pulled = carry
        part = _part(plan, weights, index)
        logits = _chunk(plan, states, part)
        found = found + _wanted_logits(plan, logits, wanted, index)
        # The shift only keeps the exponentials in range: its own gradient is none.
        top = jax.lax.stop_gradient(jnp.maximum(highest, logits.max(axis=1)))
        shrink = jnp.exp(highest - top)
        # A zero that only the loop has: a constant's broadcast would be moved out of it, and be
        # there for as long as the loop runs, as large as the logits.
        zero = jnp.minimum(index, 0).astype(jnp.float32)
        more = jnp.where(_is_other(plan, wanted, index), jnp.exp(logits - top[:, None]), zero)
        others = others * shrink + more.sum(axis=1)
        if pulled is not None:
            pulled = pulled * shrink[:, None] + _pull(plan, plan.rule.pull(more, logits), part)
        return (top, found, others, pulled), None

    zeros = jnp.zeros_like(states[:, 0], jnp.float32)
    pulled = jnp.zeros_like(states, jnp.float32) if with_gradient else None
    start = (jnp.full_like(zeros, -jnp.inf), zeros, zeros, pulled)
    (highest, found, others, pulled), _ = jax.lax.scan(add, start, _indices(plan))
    if divided:
        top = jax.lax.pmax(jax.lax.stop_gradient(highest), "tensor")
        shrink = jnp.exp(highest - top)
        highest, found = top, jax.lax.psum(found, "tensor")
        others = jax.lax.psum(others * shrink, "tensor")
        pulled = None if pulled is None else pulled * shrink[:, None]
    # The wanted entry apart: in float32, which accelerators multiply in fewer bits, the difference
    # of two rows that are nearly one would be their rounding.
    total = others + jnp.exp(jnp.where(known, found - highest, 0))
    losses = jnp.where(known, highest + jnp.log(total) - found, jnp.nan).reshape(shape)
    if pulled is None:
        return losses, None
    own = plan.rule.pull(_rows_of(plan, weights, wanted), found[:, None])
    if divided:
        own = jnp.where(((wanted >= 0) & (wanted < plan.rows))[:, None], own, 0)
    pulled = jnp.where(known[:, None], (pulled - others[:, None] * own) / total[:, None], 0)
    pulled = pulled.reshape(*shape, -1)
    if divided:
        pulled = jax.lax.psum_scatter(pulled, "tensor", scatter_dimension=1, tiled=True)
    return losses, pulled


def vocabulary_mesh(rows: int, states: Float[Array, "rows length hidden"]) -> Any:
    """Give the mesh whose axis "tensor" divides the vocabulary and the length, or `None`."""
    mesh = jax.typeof(states).sharding.mesh
    parts = mesh.shape["tensor"] if is_auto(mesh, "tensor") else 1
    return mesh if parts > 1 and rows % parts == 0 and states.shape[1] % parts == 0 else None


def _indices(plan: _Plan) -> Int[Array, " chunks"]:
    return jnp.arange(-(-plan.rows // plan.size), dtype=jnp.int32)


def _first(plan: _Plan, index: Array) -> Array:
    """The first row of a chunk; the last chunk reaches back to be as large as the others."""
    return jnp.minimum(index * plan.size, plan.rows - plan.size)


def _columns(plan: _Plan, index: Array) -> Int[Array, "1 chunk"]:
    return (_first(plan, index) + jnp.arange(plan.size, dtype=jnp.int32))[None]


def _is_other(plan: _Plan, wanted: Array, index: Array) -> Bool[Array, "tokens chunk"]:
    """Which entries of a chunk are neither the wanted one nor of an earlier chunk."""
    columns = _columns(plan, index)
    is_other = columns != wanted[:, None]
    return is_other if plan.rows % plan.size == 0 else is_other & (columns >= index * plan.size)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _wanted_logits(
    plan: _Plan, logits: Array, wanted: Array, index: Array
) -> Float[Array, " tokens"]:
    """The logit of each token's wanted entry, where this chunk is the first to have it; or 0."""
    place = wanted - _first(plan, index)
    found = jnp.take_along_axis(logits, jnp.clip(place, 0, plan.size - 1)[:, None], axis=1)
    return jnp.where((place < plan.size) & (wanted >= index * plan.size), found[:, 0], 0)


def _wanted_logits_forward(plan: _Plan, logits: Array, wanted: Array, index: Array) -> Any:
    return _wanted_logits(plan, logits, wanted, index), (wanted, index)


def _wanted_logits_backward(plan: _Plan, kept: Any, cotangent: Array) -> tuple[Any, None, None]:
    # Elementwise, where JAX's own would add to an array of zeros as large as the logits.
    wanted, index = kept
    here = (_columns(plan, index) == wanted[:, None]) & (wanted >= index * plan.size)[:, None]
    return jnp.where(here, cotangent[:, None], 0), None, None


_wanted_logits.defvjp(_wanted_logits_forward, _wanted_logits_backward)


def _part(plan: _Plan, weights: Array, index: Array) -> Array:
    return jax.lax.dynamic_slice_in_dim(weights, _first(plan, index), plan.size, plan.rule.axis)


@partial(jax.named_call, name="vocabulary_chunk")
def _chunk(plan: _Plan, states: Array, part: Array) -> Float[Array, "tokens chunk"]:
    """One chunk's logits in float32."""
    products = jax.lax.dot_general(
        states, part, (((1,), (1 - plan.rule.axis,)), ((), ())), preferred_element_type=jnp.float32
    )
    return plan.rule.finish(products)


def _pull(plan: _Plan, slopes: Array, part: Array) -> Float[Array, "tokens hidden"]:
    return jax.lax.dot_general(
        slopes.astype(part.dtype),
        part,
        (((1,), (plan.rule.axis,)), ((), ())),
        preferred_element_type=jnp.float32,
    )


def _rows_of(plan: _Plan, weights: Array, wanted: Array) -> Float[Array, "tokens hidden"]:
    rows = jnp.take(weights, wanted, axis=plan.rule.axis, mode="clip")
    return spread_lookup(rows.T if plan.rule.axis else rows).astype(jnp.float32)
