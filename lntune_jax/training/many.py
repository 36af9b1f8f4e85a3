"""Many adapters over one base in one training step: a state each, one frozen half for all.

A norm enters the network through elementwise products only, so the steps of all adapters share
their matrix products: the work is that of one adapter on all their rows together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..errors import LNTuningError, TreeError
from ..paths import flatten, join
from .state import TrainState


def stack_states(states: Sequence[TrainState]) -> TrainState:
    """Puts the states of several adapters into one, each leaf with the adapters' axis first.

    Args:
        states: one of each adapter, from `TrainState.create` with the same optimizer. Leaves may
            differ in their values only: starting points, keys, and the hyperparameters that
            `optax.inject_hyperparams` keeps in the optimizer's state.

    Returns:
        What `make_train_step(..., adapters=len(states))` trains.

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
    if not states:
        raise TreeError("stack_states was given no state: pass one of each adapter")
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
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


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
    count = jnp.shape(state.step)[0] if jnp.ndim(state.step) else 0
    check_stacked(state, count)
    return [jax.tree.map(lambda leaf, place=place: leaf[place], state) for place in range(count)]


def check_stacked(state: TrainState, count: int) -> None:
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


def train_many(
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
        check_stacked(state, count)
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


def choose_state(takes_new: Any, after: TrainState, before: TrainState) -> TrainState:
    """The new state, or the old one; its key never changes, and may be no number."""
    chosen = jax.tree.map(
        lambda new, old: jnp.where(takes_new, new, old),
        dataclasses.replace(after, rng=None),
        dataclasses.replace(before, rng=None),
    )
    return dataclasses.replace(chosen, rng=after.rng)


def check_many(adapters: int | None, own_batches: bool, at_once: int | None) -> None:
    """Checks the arguments of `make_train_step` that are about several adapters.

    Raises:
        LNTuningError: one is out of range, or goes with `adapters` and that is not given.
    """
    for name, value in (("adapters", adapters), ("adapters_at_once", at_once)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise LNTuningError(f"{name} must be a whole number of 1 or more, not {value!r}")
    if adapters is None and (own_batches or at_once is not None):
        raise LNTuningError(
            "own_batches and adapters_at_once go with adapters=: say how many there are"
        )


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
        jax.tree_util.keystr(path, simple=True, separator="."): (jnp.shape(leaf), leaf.dtype)
        for path, leaf in pairs
    }


def _differs(first: dict[str, Any], own: dict[str, Any], path: str) -> str:
    found = (
        f"{entry[0]} of {entry[1]}" if entry is not None else "not there"
        for entry in (first.get(path), own.get(path))
    )
    return f"{path!r} is {' and '.join(found)}"
