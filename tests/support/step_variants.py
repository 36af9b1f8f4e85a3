"""One training step in the ways that people write it: ours, by hand, and the common mistakes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import lntune_jax as lnt
from tests.support.step_problems import Problem

RATE = 1e-3
NORM_NAMES = ("LayerNorm", "layernorm", "norm", "ln_1", "ln_2", "ln_f", "classifier")


class Variant(NamedTuple):
    """A step `step(trainable, state, frozen, batch) -> (trainable, state, loss)`.

    Attributes:
        step: jitted.
        arguments: trainable, state and frozen to begin with.
        lower: gives the programs of a step, lowered for a batch.
        saved: what a user of it saves.
        state: the optimizer's state, where it is no argument of its own.
    """

    step: Callable[..., Any]
    arguments: tuple[Any, Any, Any]
    lower: Callable[[Any], list[Any]]
    saved: Any
    state: Any = None


def adamw() -> optax.GradientTransformation:
    return optax.adamw(RATE, weight_decay=0.0)


def jit_step(step: Callable[..., Any], trainable: Any, state: Any, frozen: Any) -> Variant:
    """A variant of one jitted program that donates what it gives back."""
    jitted = jax.jit(step, donate_argnums=(0, 1))
    trainable = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), trainable)
    arguments = (trainable, state, frozen)
    return Variant(jitted, arguments, lambda batch: [jitted.lower(*arguments, batch)], trainable)


def split(problem: Problem, tx: Any = None, **extra: Any) -> Variant:
    """Ours: `partition_params` and `value_and_grad`."""
    tx = tx or adamw()
    trainable, frozen = lnt.partition_params(problem.params, problem.config, **extra)
    gradient = lnt.value_and_grad(problem.loss)

    def step(trainable, state, frozen, batch):
        loss, grads = gradient(trainable, frozen, batch)
        updates, state = tx.update(grads, state, trainable)
        return optax.apply_updates(trainable, updates), state, loss

    return jit_step(step, trainable, tx.init(trainable), frozen)


def ready(problem: Problem, **options: Any) -> Variant:
    """Ours: `make_train_step`, with its metrics and flags."""
    tx = adamw()
    trainable, frozen = lnt.partition_params(problem.params, problem.config)
    made = lnt.make_train_step(problem.loss, tx, problem.config, **options)
    state = lnt.TrainState.create(trainable, tx)

    def step(state, nothing, frozen, batch):
        state, metrics = made(state, frozen, batch)
        return state, nothing, metrics["loss"]

    def lower(batch):
        return [made.lower(state, frozen, batch)]

    return Variant(step, (state, None, frozen), lower, trainable, state.opt_state)


def by_hand(problem: Problem) -> Variant:
    """The best split without this library: two plain dicts, the gradient of one of them."""
    tx = adamw()
    leaves, treedef = jax.tree_util.tree_flatten_with_path(problem.params)
    names = [".".join(key.key for key in path) for path, _ in leaves]
    trains = [name.split(".")[-2].endswith(NORM_NAMES) for name in names]
    own = {name: leaf for name, (_, leaf), one in zip(names, leaves, trains, strict=True) if one}
    rest = {n: leaf for n, (_, leaf), one in zip(names, leaves, trains, strict=True) if not one}

    def loss_fn(own, rest, batch):
        both = own | rest
        return problem.loss(treedef.unflatten([both[name] for name in names]), batch)

    def step(own, state, rest, batch):
        loss, grads = jax.value_and_grad(loss_fn)(own, rest, batch)
        updates, state = tx.update(grads, state, own)
        return optax.apply_updates(own, updates), state, loss

    return jit_step(step, own, tx.init(own), rest)


def whole_tree(problem: Problem, tx: Any, metric: Callable[..., Any] | None = None) -> Variant:
    """Gradients of the whole tree, and an optimizer that is to leave most of it alone."""

    def step(params, state, _, batch):
        loss, grads = jax.value_and_grad(problem.whole_loss)(params, batch)
        updates, state = tx.update(grads, state, params)
        seen = loss if metric is None else (loss, metric(grads))
        return optax.apply_updates(params, updates), state, seen

    return jit_step(step, problem.params, tx.init(problem.params), None)


def two_programs(problem: Problem) -> Variant:
    """The gradient in a jit of its own, the update in another."""
    tx = multi_transform(problem)
    gradient = jax.jit(jax.value_and_grad(problem.whole_loss))

    def apply(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    update = jax.jit(apply, donate_argnums=(0, 1))
    params = jax.tree.map(jnp.copy, problem.params)
    state = tx.init(params)

    def step(params, state, _, batch):
        loss, grads = gradient(params, batch)
        return *update(params, state, grads), loss

    def lower(batch):
        return [gradient.lower(params, batch), update.lower(params, state, params)]

    return Variant(step, (params, state, None), lower, params)


def multi_transform(problem: Problem) -> optax.GradientTransformation:
    def label(tree):
        return lnt.label_params(tree, problem.config)

    return optax.multi_transform({"trainable": adamw(), "frozen": optax.set_to_zero()}, label)


def masked(problem: Problem) -> optax.GradientTransformation:
    labels = lnt.label_params(problem.params, problem.config)
    return optax.masked(adamw(), jax.tree.map(lambda label: label == "trainable", labels))


def lora(problem: Problem) -> Variant:
    from tests.support.step_lora import make_lora  # qwix is an extra

    loss, factors, rest = make_lora(problem, rank=8)
    tx = adamw()

    def step(factors, state, rest, batch):
        value, grads = jax.value_and_grad(loss)(factors, rest, batch)
        updates, state = tx.update(grads, state, factors)
        return optax.apply_updates(factors, updates), state, value

    return jit_step(step, factors, tx.init(factors), rest)


OURS, BY_HAND, FULL = "ours: partition_params", "split by hand", "full fine-tuning"
VARIANTS: dict[str, Callable[[Problem], Variant]] = {
    OURS: split,
    "ours: make_train_step": ready,
    "ours: make_optimizer": lambda p: whole_tree(p, lnt.make_optimizer(adamw(), p.config)),
    BY_HAND: by_hand,
    "multi_transform": lambda p: whole_tree(p, multi_transform(p)),
    "LoRA r=8 (qwix)": lora,
    FULL: lambda p: whole_tree(p, adamw()),
    "mistake: clip before the partition": lambda p: whole_tree(
        p, optax.chain(optax.clip_by_global_norm(1.0), multi_transform(p))
    ),
    "mistake: log the full gradient norm": lambda p: whole_tree(
        p, multi_transform(p), optax.tree.norm
    ),
    "mistake: MultiSteps outside": lambda p: whole_tree(
        p, optax.MultiSteps(multi_transform(p), every_k_schedule=2)
    ),
    "mistake: optax.masked alone": lambda p: whole_tree(p, masked(p)),
    "mistake: weight decay outside": lambda p: whole_tree(
        p, optax.chain(multi_transform(p), optax.add_decayed_weights(-1e-4))
    ),
    "mistake: apply_if_finite outside": lambda p: whole_tree(
        p, optax.apply_if_finite(multi_transform(p), max_consecutive_errors=3)
    ),
    "mistake: gradient in its own jit": two_programs,
}
MAIN = (OURS, BY_HAND, "multi_transform", "LoRA r=8 (qwix)", FULL)


def make_run(variant, batch):
    held = list(variant.arguments)

    def run():
        held[0], held[1], seen = variant.step(*held, batch)
        jax.block_until_ready((held[0], held[1], seen))

    return run
