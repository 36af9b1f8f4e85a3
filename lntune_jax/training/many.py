"""Many adapters over one base in one training step: a state each, one frozen half for all.

A norm enters the network through elementwise products only, so the steps of all adapters share
their matrix products: the work is that of one adapter on all their rows together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..arguments import check_count, check_flag
from ..config import LNTuningConfig
from ..errors import TreeError
from ..paths import flatten, join
from ..selection.selection import Selection
from .state import TrainState
from .step import TrainStep, build_step, choose_state


def make_multi_step(
    loss_fn: Callable[..., Any],
    tx: optax.GradientTransformation,
    config: LNTuningConfig | Selection | None = None,
    *,
    adapters: int,
    own_batches: bool = False,
    adapters_at_once: int | None = None,
    has_aux: bool = False,
    accumulate: int = 1,
    clip_norm: float | None = None,
    ema_decay: float | None = None,
    skip_nonfinite: bool = False,
    donate: bool = True,
) -> TrainStep:
    """Makes a jitted step of many adapters over one frozen half.

    Called with `(state, frozen, *batch)`, the state from `stack_states`. Every metric has the shape
    (adapters,), and `step(..., active=booleans)` leaves the states of the others as they are. The
    matrix products are those of one adapter on all the rows together.

    Args:
        loss_fn: as of `make_train_step`, for one adapter.
        tx: the optimizer of each; what differs is in its state (`optax.inject_hyperparams`).
        config: as of `make_train_step`.
        adapters: how many there are.
        own_batches: whether each adapter has a batch of its own, along a first axis of every
            batch leaf; else all see the same.
        adapters_at_once: how many share a pass, to bound the memory; `None` for all.
        has_aux: as of `make_train_step`.
        accumulate: as of `make_train_step`.
        clip_norm: as of `make_train_step`, each adapter's for itself.
        ema_decay: as of `make_train_step`.
        skip_nonfinite: as of `make_train_step`, each adapter's step for itself.
        donate: as of `make_train_step`.

    Raises:
        ConfigError: the config says `inference_mode=True`.
        ArgumentError: an argument is out of range or of a wrong type.
        TreeError: when called, the state, `active` or a batch has not so many adapters along its
            first axis.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import lntune_jax as lnt
        >>> trainable, frozen = lnt.partition_params({"ln": {"scale": jnp.ones(2)}},
        ...                                          lnt.LNTuningConfig())
        >>> tx = optax.sgd(0.1)
        >>> many = lnt.stack_states([lnt.TrainState.create(trainable, tx)] * 3)
        >>> step = lnt.make_multi_step(lambda p, x: (p["ln"]["scale"] * x).sum(), tx, adapters=3)
        >>> many, metrics = step(many, frozen, 1.0)
        >>> metrics["loss"].tolist()
        [2.0, 2.0, 2.0]
    """
    check_count("adapters", adapters)
    check_flag("own_batches", own_batches)
    if adapters_at_once is not None:
        check_count("adapters_at_once", adapters_at_once)
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
    return TrainStep(_train_many(function, adapters, own_batches, adapters_at_once), donate=donate)


def stack_states(states: Sequence[TrainState]) -> TrainState:
    """Puts the states of several adapters into one, each leaf with the adapters' axis first.

    Args:
        states: one of each adapter, from `TrainState.create` with the same optimizer. Leaves may
            differ in their values only: starting points, keys, and the hyperparameters that
            `optax.inject_hyperparams` keeps in the optimizer's state.

    Returns:
        What `make_multi_step(..., adapters=len(states))` trains.

    Raises:
        TreeError: there is none, or two differ in structure, shapes or dtypes; names the leaf.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import lntune_jax as lnt
        >>> def optimizer(learning_rate):
        ...     return optax.inject_hyperparams(optax.sgd)(learning_rate=learning_rate)
        >>> trainable = {"ln.scale": jnp.ones(4)}
        >>> rates = (0.1, 0.2, 0.3)
        >>> states = [lnt.TrainState.create(trainable, optimizer(rate)) for rate in rates]
        >>> many = lnt.stack_states(states)
        >>> many.trainable["ln.scale"].shape, many.opt_state.hyperparams["learning_rate"].shape
        ((3, 4), (3,))
    """
    if isinstance(states, TrainState) or not states:
        raise TreeError("stack_states needs a list of states, one of each adapter")
    for state in states:
        if not isinstance(state, TrainState):
            raise TreeError(f"stack_states needs TrainStates, not {type(state).__name__}")
    first = _shapes(states[0])
    for number, state in enumerate(states[1:], start=1):
        own = _shapes(state)
        different = [path for path in first | own if first.get(path) != own.get(path)]
        if different or jax.tree.structure(state) != jax.tree.structure(states[0]):
            where = f": {_differs(first, own, different[0])}" if different else ""
            raise TreeError(
                f"the states of adapters 0 and {number} differ in structure{where}; create all of "
                "them with the same leaves and the same optimizer"
            )
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *states)


def unstack_states(state: TrainState) -> list[TrainState]:
    """Gives each adapter's own state, the inverse of `stack_states`.

    Args:
        state: of K adapters.

    Raises:
        TreeError: its leaves have no common first axis.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import lntune_jax as lnt
        >>> one = lnt.TrainState.create({"ln.scale": jnp.ones(4)}, optax.sgd(0.1))
        >>> [state.trainable["ln.scale"].shape for state in lnt.unstack_states(
        ...     lnt.stack_states([one, one]))]
        [(4,), (4,)]
    """
    if not isinstance(state, TrainState):
        raise TreeError(f"unstack_states needs a TrainState, not {type(state).__name__}")
    count = jnp.shape(state.step)[0] if jnp.ndim(state.step) else 0
    _check_stacked(state, count)
    return [jax.tree.map(lambda leaf, place=place: leaf[place], state) for place in range(count)]


def _check_stacked(state: TrainState, count: int) -> None:
    """Checks that every leaf of a state has an axis of `count` adapters first.

    Raises:
        TreeError: one has not; names it.
    """
    for path, (shape, _) in _shapes(state).items():
        if not count or shape[:1] != (count,):
            raise TreeError(
                f"the state's leaf {path!r} has the shape {shape}, not {count or 'several'} "
                "adapters along its first axis: make the state with stack_states, and pass "
                "adapters= as many as it has"
            )


def _train_many(
    train_step: Callable[..., Any], count: int, own_batches: bool, at_once: int | None
) -> Callable[..., Any]:
    """Makes a step of one adapter one of `count`, `at_once` of them in one go.

    Args:
        train_step: `train_step(state, frozen, *batch) -> (state, metrics)`.
        count: adapters.
        own_batches: whether the batch's leaves have the adapters' axis first too.
        at_once: adapters that share a pass; the others follow. `None` for all.

    Returns:
        A step that also takes `active=`, booleans of shape (count,): where it is false the state
        stays as it is.
    """

    def step(state: TrainState, frozen: Any, *batch: Any, active: Any = None) -> Any:
        _check_stacked(state, count)
        active = None if active is None else jnp.asarray(active)
        if active is not None and active.shape != (count,):
            raise TreeError(
                f"active has the shape {active.shape}; expected ({count},), a boolean each adapter"
            )
        if own_batches:
            _check_batches(batch, count)

        def take_one(item: tuple[TrainState, Any, Any]) -> Any:
            before, own, is_active = item
            after, metrics = train_step(before, frozen, *(own if own_batches else batch))
            return (after if is_active is None else choose_state(is_active, after, before)), metrics

        items = (state, batch if own_batches else (), active)
        if at_once is None or at_once >= count:
            return jax.vmap(take_one)(items)
        return jax.lax.map(take_one, items, batch_size=at_once)

    return step


def _check_batches(batch: Any, count: int) -> None:
    for leaf in flatten(batch)[0]:
        if jnp.shape(leaf.value)[:1] != (count,):
            raise TreeError(
                f"the batch's leaf {join(leaf.path)!r} has the shape {jnp.shape(leaf.value)}, but "
                f"own_batches=True needs {count} adapters along the first axis"
            )


def _shapes(state: TrainState) -> dict[str, tuple[tuple[int, ...], Any]]:
    pairs, _ = jax.tree_util.tree_flatten_with_path(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): (
            np.shape(leaf),
            jnp.result_type(leaf),
        )
        for path, leaf in pairs
    }


def _differs(first: dict[str, Any], own: dict[str, Any], path: str) -> str:
    found = (
        f"{entry[0]} of {entry[1]}" if entry is not None else "not there"
        for entry in (first.get(path), own.get(path))
    )
    return f"{path!r} is {' and '.join(found)}"
