"""The steps that are planned, lowered for shapes: LN tuning, LoRA and full fine-tuning.

LN tuning is `make_train_step` as users call it. The other two are there to compare: with AdamW,
LoRA's factors in float32, and for full fine-tuning float32 masters that the model reads in its own
dtype.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from lntune_jax.config import TASK_HEADS, LNTuningConfig
from lntune_jax.paths import flatten
from lntune_jax.selection import partition_params
from lntune_jax.sharding import shard_params
from lntune_jax.training import TrainState, make_train_step

from ..estimating.lora import add_lora, lora_shapes
from ..families.registry import model_specs
from ..loss import causal_lm_loss
from ..nn.sharding import ROW_AXES
from ..nn.skeleton import by_path, nest

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..model import PretrainedModel


def lower_step(
    model: PretrainedModel, method: str, mesh: Any, batch: int, length: int, *, rank: int = 8
) -> Any:
    """Lower a step of a model on a mesh, `jax.stages.Lowered`; nothing is computed.

    Args:
        model: from `from_config`.
        method: "ln", "lora" (on the query and value projections) or "full".
        mesh: a `jax.sharding.Mesh`, perhaps of devices that are only described.
        batch: rows of all devices together.
        length: tokens in a row.
        rank: of LoRA's factors.
    """
    rows = NamedSharding(mesh, PartitionSpec(tuple(x for x in ROW_AXES if x in mesh.shape)))

    def place(shape: tuple[int, ...]) -> Any:
        return jax.ShapeDtypeStruct(shape, "int32", sharding=rows)

    given = [place((batch, length))]
    if model.task != "CAUSAL_LM":
        given.append(place((batch, length) if model.task == "TOKEN_CLS" else (batch,)))
    loss, tx, specs = make_loss(model), optax.adamw(1e-3), model_specs(model, mesh)
    if method == "ln":
        heads = [name for name in TASK_HEADS.get(model.task or "", ()) if name in model.params]
        config = LNTuningConfig(modules_to_save=heads or None)
        halves = partition_params(model.params, config, name_map=model.name_map)
        halves = shard_params(halves, mesh, specs)
        state = TrainState.create(halves.trainable, tx)
        return make_train_step(loss, tx).lower(state, halves.frozen, *given)
    step, kept = make_other_step(model, method, loss, tx, rank)
    # LoRA's factors are on every device, as norms are.
    whole = (lambda path, leaf: PartitionSpec()) if method == "lora" else specs
    kept = (*shard_params(kept[:2], mesh, whole), shard_params(kept[2], mesh, specs))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, kept)
    out = shardings if method == "full" else (*shardings[:2], None)
    donated = (0, 1, 2) if method == "full" else (0, 1)
    jitted = jax.jit(step, donate_argnums=donated, out_shardings=(*out, None))
    return jitted.lower(*kept, *given)


def make_loss(model: PretrainedModel) -> Callable[..., Any]:
    """Give the loss that the tasks of this library train with: of words, or of classes."""
    if model.task == "CAUSAL_LM":
        return lambda params, tokens: causal_lm_loss(model, params, tokens)

    def classify(params: Any, tokens: Any, labels: Any) -> Any:
        logits = model.apply(params, tokens, jnp.ones_like(tokens)).logits
        assert logits is not None
        exact = logits.astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(exact, labels).mean()

    return classify


def make_other_step(
    model: PretrainedModel, method: str, loss: Callable[..., Any], tx: Any, rank: int = 8
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Give a step that does not tune norms, and the shapes of what it takes besides the batch.

    Args:
        model: whose weights train, or are adapted.
        method: "lora" or "full".
        loss: of weights and a batch.
        tx: the optimizer.
        rank: of LoRA's factors.

    Returns:
        `step(trainable, opt_state, frozen, *batch)`, which gives back the first three and the
        loss, and the shapes of these three.
    """
    if method == "lora":
        trainable: Any = lora_shapes(by_path(model.params), rank)

        def adapt(factors: Any, state: Any, frozen: Any, *batch: Any) -> Any:
            base = by_path(frozen)
            adapted = add_lora(lambda leaves, *rest: loss(nest(leaves), *rest), base, *batch)
            value, gradients = jax.value_and_grad(adapted)(factors, base, *batch)
            updates, state = tx.update(gradients, state, factors)
            return optax.apply_updates(factors, updates), state, None, value

        return adapt, (trainable, jax.eval_shape(tx.init, trainable), model.params)
    masters = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, "float32"), model.params)
    frozen = model.params if model.dtype != "float32" else None

    def train(masters: Any, state: Any, frozen: Any, *batch: Any) -> Any:
        held = masters if frozen is None else frozen
        value, gradients = jax.value_and_grad(loss)(held, *batch)
        gradients = jax.tree.map(lambda x: x.astype("float32"), gradients)
        updates, state = tx.update(gradients, state, masters)
        masters = optax.apply_updates(masters, updates)
        if frozen is not None:
            frozen = jax.tree.map(lambda x, y: x.astype(y.dtype), masters, frozen)
        return masters, state, frozen, value

    return train, (masters, jax.eval_shape(tx.init, masters), frozen)


def count_products(model: PretrainedModel) -> int:
    """Give how many entries a token is multiplied with: of all kernels and of the words' output."""
    leaves = flatten(model.params)[0]
    kernels = [leaf for leaf in leaves if "kernel" in leaf.path]
    tied = model.task == "CAUSAL_LM" and not any("lm_head" in leaf.path for leaf in kernels)
    if tied:
        tables = [leaf for leaf in leaves if leaf.path[-1] == "embedding"]
        kernels.append(max(tables, key=lambda leaf: math.prod(leaf.value.shape)))
    return sum(math.prod(leaf.value.shape) for leaf in kernels)
