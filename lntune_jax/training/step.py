"""A ready training step: the gradient of the trainable half, one compilation, nothing copied.

The frozen half is an argument of the compiled step, neither donated nor returned; all that the
step owns (optimizer state, EMA, clipping, accumulation) is as small as the trainable half.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from ..arguments import check_count, check_flag, check_number, check_optimizer
from ..compat import count_programs
from ..config import LNTuningConfig
from ..errors import ArgumentError, TreeError, ZeroGradientWarning
from ..messages import warn
from ..paths import flatten, join
from ..selection.selection import Selection
from .gradients import Objective, make_loss, make_objective
from .optimizer import refuse_inference
from .state import TrainState
from .xla_cpu import find_platform, keep_freed_memory, options_for


def make_train_step(
    loss_fn: Callable[..., Any],
    tx: optax.GradientTransformation,
    config: LNTuningConfig | Selection | None = None,
    *,
    has_aux: bool = False,
    accumulate: int = 1,
    clip_norm: float | None = None,
    ema_decay: float | None = None,
    skip_nonfinite: bool = False,
    donate: bool = True,
) -> TrainStep:
    """Makes a jitted step, `step(state, frozen, *batch) -> (state, metrics)`.

    The metrics are device scalars: `loss`, `grad_norm` (before clipping), `zero_gradient`,
    `finite`, and `aux` where there is one. `finite` is false where the loss, the gradient's norm
    or a trainable leaf after the update is NaN or infinite; reading it waits for the device, so a
    loop may look at it a step late, or let `skip_nonfinite` act on the device. A gradient that is
    exactly zero for every trainable leaf also gives a `ZeroGradientWarning`, without making the
    host wait for the device: the first step's at once, a later one's on the first call after the
    device has finished it. The step without `jax.jit` is `step.function`. On a CPU the compiled
    step asks XLA to keep barriers, so that remat holds, and the process keeps the memory that a
    step frees; inside another `jax.jit` both are left to the outer one.

    Args:
        loss_fn: `loss_fn(params, *batch)`, a scalar loss on the merged tree, or a `WeightedLoss`;
            with a state that has an `rng` it also takes `rng=`, a key of its own for each step and
            microbatch.
        tx: the optimizer of the trainable leaves. One that takes them is given `value=`, `grad=`,
            `value_fn=` and `grad_fn=` of the same batch, as line searches and SAM do.
        config: refused when it is meant for inference; None is not checked.
        has_aux: whether `loss_fn` returns `(loss, aux)`.
        accumulate: microbatches per step. Row r of the batch is in microbatch r modulo
            `accumulate`, so that each has its share of every device's rows. The losses and
            gradients of a `WeightedLoss` are weighted, which gives those of the whole batch; of a
            plain loss they are averaged, so that a mean over masked tokens counts every microbatch
            alike. `aux` is stacked along a new first axis.
        clip_norm: largest global norm of the trainable gradient.
        ema_decay: decay of the moving average `state.ema`.
        skip_nonfinite: whether a step that is not `finite` leaves trainable leaves, optimizer
            state and moving average as they were; only `state.step` goes on.
        donate: whether the state passed in may be overwritten in place. The frozen half never is.

    Raises:
        ConfigError: the config says `inference_mode=True`.
        ArgumentError: an argument is out of range or of a wrong type; when called, the loss is no
            scalar, or `tx` wants what a step cannot give.
        TreeError: when called, a leaf of `frozen` is no array (an Equinox module holds functions:
            split them off with `eqx.partition(frozen, eqx.is_array)`); a batch cannot be cut into
            `accumulate` parts; or `ema_decay` is given and the state has no `ema`.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import lntune_jax as lnt
        >>> params = {"ln": {"scale": jnp.ones(2)}, "w": jnp.full(2, 3.0)}
        >>> trainable, frozen = lnt.partition_params(params, lnt.LNTuningConfig())
        >>> tx = optax.sgd(0.1)
        >>> step = lnt.make_train_step(lambda p, x: jnp.sum(p["ln"]["scale"] * p["w"] * x), tx)
        >>> state, metrics = step(lnt.TrainState.create(trainable, tx), frozen, 1.0)
        >>> metrics["loss"].item(), [round(x, 4) for x in state.trainable["ln.scale"].tolist()]
        (6.0, [0.7, 0.7])
    """
    function = build_step(
        loss_fn,
        tx,
        config,
        has_aux=has_aux,
        accumulate=accumulate,
        clip_norm=clip_norm,
        ema_decay=ema_decay,
        skip_nonfinite=skip_nonfinite,
    )
    return TrainStep(function, donate=donate)


def build_step(
    loss_fn: Callable[..., Any],
    tx: optax.GradientTransformation,
    config: LNTuningConfig | Selection | None,
    *,
    has_aux: bool,
    accumulate: int,
    clip_norm: float | None,
    ema_decay: float | None,
    skip_nonfinite: bool,
) -> Callable[..., Any]:
    """The step of one adapter as a pure function; arguments as of `make_train_step`."""
    refuse_inference(config)
    check_optimizer(tx)
    check_count("accumulate", accumulate)
    check_flag("skip_nonfinite", skip_nonfinite)
    if clip_norm is not None:
        check_number("clip_norm", clip_norm, above=0)
    if ema_decay is not None:
        check_number("ema_decay", ema_decay, least=0, below=1)
    loss = make_loss(loss_fn, has_aux, is_part=accumulate > 1)

    def train_step(state: TrainState, frozen: Any, *batch: Any) -> tuple[TrainState, Any]:
        key = None if state.rng is None else jax.random.fold_in(state.rng, state.step)
        objective = make_objective(loss, frozen, batch, key, accumulate)
        (value, aux), grads = objective.value_and_grad(state.trainable)
        norm = optax.tree.norm(grads)
        metrics = {"loss": value, "grad_norm": norm, "zero_gradient": _is_all_zero(grads)}
        if has_aux:
            metrics["aux"] = aux
        if clip_norm is not None:
            grads = _clip(grads, norm, clip_norm)
        updates, opt_state = _update(tx, state, grads, value, objective)
        trainable: Any = optax.apply_updates(state.trainable, updates)
        ema = state.ema
        if ema_decay is not None:
            ema = _average(ema, trainable, ema_decay)
        new = TrainState(state.step + 1, trainable, opt_state, state.rng, ema)
        metrics["finite"] = _are_finite((value, norm, trainable))
        if skip_nonfinite:
            kept = choose_state(metrics["finite"], new, state)
            new = dataclasses.replace(kept, step=new.step)
        return new, metrics

    return train_step


class TrainStep:
    """A compiled training step; call it with `(state, frozen, *batch)`.

    A class, because it watches for zero gradients: the flags of past steps are looked at when the
    device has them, never before. On a mesh every part of the state keeps its sharding.

    Attributes:
        function: the pure step, for a `jax.jit` or `jax.lax.scan` of your own.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import lntune_jax as lnt
        >>> tx = optax.sgd(0.1)
        >>> params = {"ln": {"scale": jnp.ones(2)}}
        >>> trainable, frozen = lnt.partition_params(params, lnt.LNTuningConfig())
        >>> step = lnt.make_train_step(lambda params: params["ln"]["scale"].sum(), tx)
        >>> state, _ = step(lnt.TrainState.create(trainable, tx), frozen)
        >>> state, _ = step(state, frozen)
        >>> step.compilations()
        1
    """

    def __init__(self, function: Callable[..., Any], *, donate: bool = True) -> None:
        check_flag("donate", donate)
        self.function = function
        self._donated = (0,) if donate else ()
        self._programs: dict[tuple[Any, ...], Any] = {}  # by the state's structure and shardings
        self._program: Any = None  # the last one
        self._is_steady = False  # whether it gives back states that it takes itself
        self._returned: Callable[[], Any] = _no_state
        self._flags: collections.deque[tuple[int, Any]] = collections.deque()
        self._calls = 0
        self._warned = False

    def __call__(
        self, state: TrainState, frozen: Any, *batch: Any, active: Any = None
    ) -> tuple[TrainState, Any]:
        """Takes one step; the state passed in is used up (donated).

        `active=` is for the step of `make_multi_step`, and says which adapters go on.
        """
        options = {} if active is None else self._as_option(active)
        # In a loop the state is the one that the last call returned: nothing to look at again.
        if not self._is_steady or self._returned() is not state:
            program = self._find_program(state, frozen)
            self._is_steady, self._program = program is self._program, program
        state, metrics = self._program(state, frozen, *batch, **options)
        self._returned = weakref.ref(state)
        self._calls += 1
        if not self._warned and not isinstance(metrics["zero_gradient"], Tracer):
            self._flags.append((self._calls, metrics["zero_gradient"]))
            # The first step is waited for: it has just been compiled, and tells most.
            while self._flags and (self._calls == 1 or self._flags[0][1].is_ready()):
                self._check(*self._flags.popleft())
        return state, metrics

    def lower(self, state: TrainState, frozen: Any, *batch: Any, active: Any = None) -> Any:
        """The step lowered for these arguments, as `jax.jit(...).lower` does."""
        options = {} if active is None else self._as_option(active)
        return self._find_program(state, frozen).lower(state, frozen, *batch, **options)

    def compilations(self) -> int:
        """How many programs have been compiled: one for each set of batch shapes."""
        return sum(map(count_programs, self._programs.values()))

    def _as_option(self, active: Any) -> dict[str, Any]:
        if "active" not in inspect.signature(self.function).parameters:
            raise ArgumentError("active= goes with make_multi_step: this step trains one adapter")
        return {"active": active}

    def _find_program(self, state: Any, frozen: Any) -> Any:
        """The step for a state of these shardings, which it gives back: else it compiles twice."""
        leaves, treedef = jax.tree.flatten(state)
        shardings, platform = [_get_mesh_sharding(leaf) for leaf in leaves], _find_platform(leaves)
        kind = treedef, tuple(shardings), platform
        if kind not in self._programs:
            _check_arguments(state, frozen)
            options: dict[str, Any] = {"donate_argnums": self._donated}
            if platform is not None:
                options["compiler_options"] = options_for(platform)
                if platform == "cpu":
                    keep_freed_memory()
            if any(shardings):
                options["out_shardings"] = (treedef.unflatten(shardings), None)
            function = self.function

            @functools.wraps(function)  # a function of its own: `jax.jit` shares programs of one
            def run(*arguments: Any, **options: Any) -> Any:
                return function(*arguments, **options)

            self._programs[kind] = jax.jit(run, **options)
        return self._programs[kind]

    def _check(self, call: int, flag: Any) -> None:
        zero = np.flatnonzero(np.asarray(flag)).tolist()
        if zero and not self._warned:
            self._warned = True
            whose = f" of adapter {', '.join(map(str, zero))}" if np.ndim(flag) else ""
            warn(
                f"the gradient of every trainable leaf{whose} was exactly zero in step {call}: the "
                "loss does not depend on them. Check that loss_fn uses the params it is given, and "
                "that a quantised forward pass lets gradients through",
                ZeroGradientWarning,
            )


def _no_state() -> None:
    """What a step has returned before its first call."""


def choose_state(takes_new: Any, after: TrainState, before: TrainState) -> TrainState:
    """The new state, or the old one; its key never changes, and may be no number."""
    chosen = jax.tree.map(
        lambda new, old: jnp.where(takes_new, new, old),
        dataclasses.replace(after, rng=None),
        dataclasses.replace(before, rng=None),
    )
    return dataclasses.replace(chosen, rng=after.rng)


def _update(tx: Any, state: TrainState, grads: Any, value: Any, objective: Objective) -> Any:
    """The optimizer's step, with those of the further arguments that it takes."""
    extra: dict[str, Any] = {}
    if isinstance(tx, optax.GradientTransformationExtraArgs):
        extra = {"value": value, "grad": grads, "value_fn": objective.value}
        parameters = inspect.signature(tx.update).parameters
        if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            extra = {name: own for name, own in extra.items() if name in parameters}
        if "grad_fn" in parameters:  # in a chain, a line search would refuse it
            extra["grad_fn"] = lambda trainable, *_: objective.value_and_grad(trainable)[1]
    try:
        return tx.update(grads, state.opt_state, state.trainable, **extra)
    except TypeError as error:
        if "keyword" not in str(error):
            raise
        raise ArgumentError(
            f"tx does not take what a step gives an optimizer: {error}. In an optax.chain each is "
            "given value=, grad= and value_fn=; use one that does not take them "
            "(optax.contrib.sam) outside of a chain, or around it"
        ) from error


def _is_all_zero(grads: Any) -> jax.Array:
    return ~jnp.any(jnp.stack([jnp.any(leaf != 0) for leaf in jax.tree.leaves(grads)]))


def _clip(grads: Any, norm: jax.Array, largest: float) -> Any:
    """Gradients scaled down to a global norm, where theirs is larger."""
    scale = jnp.minimum(1.0, largest / jnp.maximum(norm, 1e-12))
    return jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), grads)


def _average(ema: Any, trainable: Any, decay: float) -> Any:
    """The moving average after one more step."""
    if ema is None:
        raise TreeError(
            "ema_decay is given, but the state has no ema: TrainState.create(..., ema=True)"
        )
    return jax.tree.map(
        lambda mean, new: decay * mean + (1 - decay) * new.astype(mean.dtype), ema, trainable
    )


def _are_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def _find_platform(leaves: list[Any]) -> str | None:
    """Where a step of this state is compiled for; None inside another `jax.jit`.

    There the compiler may not be asked for anything, and a gradient may still be taken of the
    step: both are left to the outer one.
    """
    return None if any(isinstance(leaf, Tracer) for leaf in leaves) else find_platform(leaves)


def _get_mesh_sharding(leaf: Any) -> jax.sharding.NamedSharding | None:
    sharding = getattr(leaf, "sharding", None)
    return sharding if isinstance(sharding, jax.sharding.NamedSharding) else None


def _check_arguments(state: Any, frozen: Any) -> None:
    """Raises for what `jax.jit` does not take, before it does so with a longer message."""
    if not isinstance(state, TrainState):
        raise TreeError(
            f"the first argument of a step must be a TrainState, not {type(state).__name__}: make "
            "it with TrainState.create(trainable, tx)"
        )
    for leaf in flatten(frozen)[0]:
        if not isinstance(leaf.value, int | float | complex) and not hasattr(leaf.value, "dtype"):
            raise TreeError(
                f"the frozen leaf {join(leaf.path)!r} is no array but a "
                f"{type(leaf.value).__name__}, which jax.jit does not take: split such leaves off "
                "(eqx.partition(frozen, eqx.is_array)) and combine them in loss_fn"
            )
