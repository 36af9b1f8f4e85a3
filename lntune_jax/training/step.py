"""A ready training step: the gradient of the trainable half, one compilation, nothing copied.

The frozen half is an argument of the compiled step, neither donated nor returned; all that the
step owns (optimizer state, EMA, clipping, accumulation) is as small as the trainable half.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.core import Tracer

from ..config import LNTuningConfig
from ..errors import LNTuningError, TreeError, ZeroGradientWarning
from ..messages import warn
from ..paths import flatten, join
from .compiling import find_platform, options_for, widens_bfloat16
from .gradients import accumulate_gradients, differentiate, value_and_grad
from .many import check_many, choose_state, train_many
from .optimizer import refuse_inference
from .products import replace_products
from .state import TrainState
from .step_numbers import are_finite, average, clip, is_all_zero


def make_train_step(
    loss_fn: Callable[..., Any],
    tx: optax.GradientTransformation,
    config: LNTuningConfig | None = None,
    *,
    has_aux: bool = False,
    accumulate: int = 1,
    clip_norm: float | None = None,
    ema_decay: float | None = None,
    adapters: int | None = None,
    own_batches: bool = False,
    adapters_at_once: int | None = None,
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
    device has finished it. On a CPU the step is compiled with `compiler_options()`, so that remat
    holds there, and goes through `accumulate_in_float32`; inside another `jax.jit` it is the outer
    one's to do both.

    Args:
        loss_fn: `loss_fn(params, *batch)`, a scalar loss on the merged tree; with a state that has
            an `rng` it also takes `rng=`, a key of its own for each step and microbatch.
        tx: the optimizer of the trainable leaves.
        config: refused when it is meant for inference; None is not checked.
        has_aux: whether `loss_fn` returns `(loss, aux)`.
        accumulate: microbatches per step; the batch's first axis is cut into so many equal parts,
            whose losses and gradients are averaged. `aux` is stacked along a new first axis.
        clip_norm: largest global norm of the trainable gradient.
        ema_decay: decay of the moving average `state.ema`.
        adapters: train so many at once over one frozen half: the state is from `stack_states`,
            every metric has the shape (adapters,), and `step(..., active=booleans)` leaves the
            states of the others as they are. The matrix products are those of one adapter on all
            the rows together.
        own_batches: whether each adapter has a batch of its own, along a first axis of every
            batch leaf; else all see the same.
        adapters_at_once: how many share a pass, to bound the memory; `None` for all.
        skip_nonfinite: whether a step that is not `finite` leaves trainable leaves, optimizer
            state and moving average as they were; only `state.step` goes on. With `adapters`,
            each for itself.
        donate: whether the state passed in may be overwritten in place. The frozen half never is.

    Raises:
        ConfigError: the config says `inference_mode=True`.
        LNTuningError: an argument is out of range, or, when called, the loss is no scalar.
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
    refuse_inference(config)
    if not isinstance(accumulate, int) or accumulate < 1:
        raise LNTuningError(f"accumulate must be a whole number of 1 or more, not {accumulate!r}")
    if clip_norm is not None and not clip_norm > 0:
        raise LNTuningError(f"clip_norm must be more than 0, not {clip_norm}")
    check_many(adapters, own_batches, adapters_at_once)
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise LNTuningError(f"ema_decay must be at least 0 and less than 1, not {ema_decay}")
    gradient = value_and_grad(loss_fn, has_aux)
    optimizer = optax.with_extra_args_support(tx)

    def train_step(
        state: TrainState, frozen: Any, *batch: Any, active: Any = None
    ) -> tuple[TrainState, dict[str, Any]]:
        if active is not None:
            raise LNTuningError("active= goes with adapters=: this step trains one adapter")
        key = None if state.rng is None else jax.random.fold_in(state.rng, state.step)
        if accumulate == 1:
            (loss, aux), grads = differentiate(gradient, has_aux, state, frozen, batch, key)
        else:
            (loss, aux), grads = accumulate_gradients(
                gradient, has_aux, state, frozen, batch, key, accumulate
            )
        norm = optax.tree.norm(grads)
        metrics = {"loss": loss, "grad_norm": norm, "zero_gradient": is_all_zero(grads)}
        if has_aux:
            metrics["aux"] = aux
        if clip_norm is not None:
            grads = clip(grads, norm, clip_norm)
        updates, opt_state = optimizer.update(
            grads, state.opt_state, state.trainable, value=loss, grad=grads
        )
        trainable = optax.apply_updates(state.trainable, updates)
        ema = state.ema
        if ema_decay is not None:
            ema = average(ema, trainable, ema_decay)
        new = TrainState(state.step + 1, trainable, opt_state, state.rng, ema)  # type: ignore[arg-type]
        metrics["finite"] = are_finite((loss, norm, trainable))
        if skip_nonfinite:
            kept = choose_state(metrics["finite"], new, state)
            new = dataclasses.replace(kept, step=new.step)
        return new, metrics

    if adapters is None:
        return TrainStep(train_step, donate=donate)
    many = train_many(train_step, adapters, own_batches, adapters_at_once)
    return TrainStep(many, donate=donate)


class TrainStep:
    """A compiled training step; call it with `(state, frozen, *batch)`.

    A class, because it watches for zero gradients: the flags of past steps are looked at when the
    device has them, never before. On a mesh every part of the state keeps its sharding.

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

    def __init__(self, function: Callable[..., Any], *, donate: bool) -> None:
        self._function = function
        self._donated = (0,) if donate else ()
        self._jitted: dict[tuple[Any, ...], Any] = {}  # by the state's structure and shardings
        self._flags: collections.deque[tuple[int, Any]] = collections.deque()
        self._calls = 0
        self._warned = False

    def __call__(
        self, state: TrainState, frozen: Any, *batch: Any, **options: Any
    ) -> tuple[TrainState, Any]:
        """Takes one step; the state passed in is used up (donated).

        With several adapters, `active=` says which of them go on.
        """
        state, metrics = self._jit(state, frozen)(state, frozen, *batch, **options)
        self._calls += 1
        if not self._warned and not isinstance(metrics["zero_gradient"], Tracer):
            self._flags.append((self._calls, metrics["zero_gradient"]))
            # The first step is waited for: it has just been compiled, and tells most.
            while self._flags and (self._calls == 1 or self._flags[0][1].is_ready()):
                self._check(*self._flags.popleft())
        return state, metrics

    def lower(self, state: TrainState, frozen: Any, *batch: Any, **options: Any) -> Any:
        """The step lowered for these arguments, as `jax.jit(...).lower` does."""
        return self._jit(state, frozen).lower(state, frozen, *batch, **options)

    def compilations(self) -> int:
        """How many programs have been compiled: one for each set of batch shapes."""
        return sum(jitted._cache_size() for jitted in self._jitted.values())

    def _jit(self, state: TrainState, frozen: Any) -> Any:
        """The step for a state of these shardings, which it gives back: else it compiles twice."""
        leaves, treedef = jax.tree.flatten(state)
        shardings = tuple(_get_mesh_sharding(leaf) for leaf in leaves)
        # Inside another `jax.jit` the compiler may not be asked for anything, and a gradient may
        # still be taken of the step: both are left to the outer one.
        traced = any(isinstance(leaf, Tracer) for leaf in leaves)
        platform = None if traced else find_platform(leaves)
        kind = (treedef, shardings, platform)
        if kind not in self._jitted:
            _check_frozen(frozen)
            function = self._function
            options: dict[str, Any] = {"donate_argnums": self._donated}
            if platform is not None:
                options["compiler_options"] = options_for(platform)
                if widens_bfloat16(platform):
                    function = replace_products(function)
            if any(shardings):
                options["out_shardings"] = (treedef.unflatten(shardings), None)
            self._jitted[kind] = jax.jit(function, **options)
        return self._jitted[kind]

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


def _get_mesh_sharding(leaf: Any) -> jax.sharding.NamedSharding | None:
    sharding = getattr(leaf, "sharding", None)
    return sharding if isinstance(sharding, jax.sharding.NamedSharding) else None


def _check_frozen(frozen: Any) -> None:
    """Raises for leaves that `jax.jit` does not take, before it does so with a longer message."""
    for leaf in flatten(frozen)[0]:
        if not isinstance(leaf.value, int | float | complex) and not hasattr(leaf.value, "dtype"):
            raise TreeError(
                f"the frozen leaf {join(leaf.path)!r} is no array but a "
                f"{type(leaf.value).__name__}, which jax.jit does not take: split such leaves off "
                "(eqx.partition(frozen, eqx.is_array)) and combine them in loss_fn"
            )
