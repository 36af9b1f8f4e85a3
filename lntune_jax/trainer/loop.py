"""The training loop, of one adapter or of many that share a step.

A batch is a pure function of its step, so the position of a run is one number; the checkpoint holds
the rest, and a resumed run goes on bit for bit. Figures are fetched one step late, which lets the
next step start before the host has looked at the last one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ..adapters.fingerprint import list_frozen, make_fingerprint
from ..selection.select import select_views
from ..tasks.base import Evaluator, Task
from ..training.state import TrainState
from .callbacks import Callback, RunInfo, begun
from .history import Evaluation, History, Records
from .recipe import Recipe, Trial
from .recorder import Recorder
from .saves import Saves, Snapshot
from .schedules import (
    list_learning_rates,
    make_many_optimizer,
    make_optimizer,
    metric_of,
    peak_learning_rate,
    total_steps,
)
from .stopping import Stops, Watch, heed_sigterm


@dataclass(frozen=True)
class Fitted:
    """What became of one adapter.

    Attributes:
        start: Trainable leaves before training.
        best: Trainable leaves of the best evaluation; of the last step where none was made.
        history: All its evaluations.
        diverged: The step at which its loss was no number, or `None`.
    """

    start: Mapping[str, Any]
    best: Mapping[str, Any]
    history: History
    diverged: int | None = None


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run, or of the part of it that was asked for.

    Attributes:
        finished: Whether the run came to its end.
        step: The last step done.
        fitted: What became of each adapter, in the trials' order.
        seconds: Time spent in training and evaluation, by all calls together.
        compilations: Programs compiled in this call.
        terminated: Whether SIGTERM ended it.
    """

    finished: bool
    step: int
    fitted: tuple[Fitted, ...]
    seconds: float
    compilations: int
    terminated: bool = False


class Lanes(NamedTuple):
    """A training state of one adapter, or of many in one, and what to do with it.

    Attributes:
        state: Before the first step.
        advance: `advance(state, frozen, batch, active) -> (state, figures)`.
        leaves: `leaves(state, number)`, what is kept of an adapter.
        evaluate: `evaluate(evaluator, state, frozen, numbers, rows, active)`, the figures of the
            adapters with these numbers, if they are active.
        compilations: Programs compiled so far.
    """

    state: TrainState
    advance: Callable[..., Any]
    leaves: Callable[[TrainState, int], dict[str, Any]]
    evaluate: Callable[..., list[dict[str, float]]]
    compilations: Callable[[], int]


def run_loop(
    tasks: Sequence[Task],
    trials: Sequence[Trial],
    recipe: Recipe,
    *,
    checkpoints: Path | None = None,
    callbacks: Sequence[Callback] = (),
    at_once: int | None = None,
    stops: Stops | None = None,
    title: str = "training",
) -> Outcome:
    """Train, evaluate, keep the best, and leave checkpoints to go on from.

    Args:
        tasks: One for each table: the same tree and config, rows of their own, all with the same
            number of steps.
        trials: The adapters. A single one without a name trains as it is, without an axis of
            adapters, and a fault of it ends the run.
        recipe: What the trials share.
        checkpoints: Directory of checkpoints; one that is there is resumed. `None` keeps none.
        callbacks: Who hears of it.
        at_once: Adapters that share a step; `None` for all.
        stops: When this call saves besides evaluations, and ends before the run does.
        title: What progress calls the run.

    Returns:
        The outcome; `finished` is false if `stops` or SIGTERM ended it.

    Raises:
        LNTuningError: If a loss or gradient of a single adapter is no finite number, unless such
            steps are skipped.
    """
    import lntune_jax as lnt

    task, owners = tasks[0], [tasks[trial.table] for trial in trials]
    count, total = len(trials), total_steps(task, recipe)
    metric = metric_of(task, recipe)
    stops = stops or Stops()
    _, frozen = lnt.partition_params(task.params, task.config, name_map=task.name_map)
    starts = [owner.start(trial.recipe.seed) for owner, trial in zip(owners, trials, strict=True)]
    begin = [jax.tree.map(np.array, start) for start in starts]
    own_batches = len({(trial.recipe.seed, trial.table) for trial in trials}) > 1
    alone = count == 1 and trials[0].name is None
    lanes = (
        _make_one(task, recipe, starts[0], total)
        if alone
        else _make_many(task, trials, recipe, starts, total, own_batches, at_once)
    )
    assemble, list_rows = _make_batches(owners, trials, own_batches, recipe)
    evaluator = task.evaluator(recipe.eval_batch_size) if task.evaluation_rows else None
    leaves = list_frozen(
        select_views(task.params, task.config, None, task.name_map, warn=False).named
    )
    peaks = [peak_learning_rate(task, trial.recipe) for trial in trials]
    with contextlib.ExitStack() as stack:
        saves = Saves(stack, checkpoints, make_fingerprint(leaves), [t.record for t in tasks])
        snapshot = Snapshot(np.int32(0), lanes.state, _stack(begin))
        snapshot, records, is_resumed = saves.restore(snapshot, Records.new(count), leaves)
        state, step = snapshot.train, int(snapshot.step)
        best = [{path: leaf[n] for path, leaf in snapshot.best.items()} for n in range(count)]
        began = time.monotonic() - records.seconds
        watch = Watch(stops, step, stack.enter_context(heed_sigterm(step)))
        names, metrics = [trial.name for trial in trials], task.metrics
        info = RunInfo(title, total, step, is_resumed, names, metrics, asdict(recipe))
        stack.enter_context(begun(callbacks, info))
        recorder = Recorder(
            callbacks,
            names,
            [
                (str(trial.values.get("data", "the data")), owner.unit)
                for owner, trial in zip(owners, trials, strict=True)
            ],
            np.outer(peaks, list_learning_rates(recipe, 1.0, total)),
            [owner.epoch_steps(recipe.batch_size) for owner in owners],
            find_checkpoint=saves.find_last,
            list_rows=list_rows,
            skips=recipe.on_nan == "skip",
        )

        def evaluate(records: Records) -> Records:
            found = []
            if evaluator is None:
                return records
            measured: dict[int, dict[str, float]] = {}
            for table, owner in enumerate(tasks):
                # All of a table's, done or not: another number of them would be another program.
                own = [n for n, trial in enumerate(trials) if trial.table == table]
                active = records.active()[own]
                if active.any():
                    rows = owner.evaluation
                    figures = lanes.evaluate(evaluator, state, frozen, own, rows, active)
                    measured |= dict(zip(own, figures, strict=True))
            for number in np.flatnonzero(records.active()).tolist():
                evaluation = Evaluation(step, measured[number])
                if not recorder.check_evaluation(number, evaluation):
                    records = records.diverge([number], step)
                    continue
                history = records.histories[number].add(evaluation, metric, recipe.patience)
                records = records.with_history(number, history)
                found.append((number, evaluation))
                if history.best(metric).step == step:
                    best[number] = jax.tree.map(np.array, lanes.leaves(state, number))
            recorder.evaluated(found, metric, metrics)
            return records

        if task.evaluates_first and not is_resumed:
            records = evaluate(records)
        every = recipe.eval_every or task.epoch_steps(recipe.batch_size)
        ends = False
        while step < total and records.active().any() and not ends:
            batch, tokens = assemble(step)
            state, figures = lanes.advance(state, frozen, batch, records.active())
            step += 1
            records = recorder.keep(step, figures, tokens, records)
            evaluates = step == total or step % every == 0
            if evaluates:
                records = evaluate(recorder.flush(records))
            ends = watch.ends(step)
            if evaluates or ends or watch.is_due(step):
                # The files must hold every line that a run resumed from here will not write.
                records = replace(recorder.flush(records), seconds=time.monotonic() - began)
                for callback in callbacks:
                    callback.sync()
                saves.save(Snapshot(np.int32(step), state, _stack(best)), records)
                watch.saved()
        saves.finish()
        if evaluator is None:
            best = [jax.tree.map(np.array, lanes.leaves(state, number)) for number in range(count)]
    fitted = zip(begin, best, records.histories, records.diverged, strict=True)
    return Outcome(
        finished=step == total or not records.active().any(),
        step=step,
        fitted=tuple(Fitted(*each) for each in fitted),
        seconds=records.seconds,
        compilations=lanes.compilations() + (evaluator.compilations if evaluator else 0),
        terminated=watch.terminated,
    )


def _make_one(task: Task, recipe: Recipe, start: dict[str, Any], total: int) -> Lanes:
    import lntune_jax as lnt

    optimizer = make_optimizer(task, recipe, total)
    rng = jax.random.key(recipe.seed) if recipe.dropout else None
    ema = recipe.ema is not None
    step = lnt.make_train_step(task.loss_fn(), optimizer, task.config, **_step_options(recipe))
    return Lanes(
        TrainState.create(start, optimizer, rng=rng, ema=ema),
        lambda state, frozen, batch, active: step(state, frozen, batch),
        lambda state, number: _kept(state),
        lambda evaluator, state, frozen, numbers, rows, active: [
            evaluator(_kept(state), frozen, rows)
        ],
        step.compilations,
    )


def _make_many(
    task: Task,
    trials: Sequence[Trial],
    recipe: Recipe,
    starts: Sequence[dict[str, Any]],
    total: int,
    own_batches: bool,
    at_once: int | None,
) -> Lanes:
    import lntune_jax as lnt

    make = make_many_optimizer(task, recipe, total)
    ema = recipe.ema is not None
    states = [
        TrainState.create(
            start,
            make(trial.recipe),
            rng=jax.random.key(trial.recipe.seed) if recipe.dropout else None,
            ema=ema,
        )
        for trial, start in zip(trials, starts, strict=True)
    ]
    step = lnt.make_multi_step(
        task.loss_fn(),
        make(trials[0].recipe),
        task.config,
        adapters=len(trials),
        own_batches=own_batches,
        adapters_at_once=at_once,
        **_step_options(recipe),
    )

    def evaluate(
        evaluator: Evaluator,
        state: TrainState,
        frozen: Any,
        numbers: Sequence[int],
        rows: Any,
        active: Sequence[bool],
    ) -> list[dict[str, float]]:
        kept = _kept(state)
        if len(numbers) < len(trials):
            kept = {path: leaf[np.asarray(numbers)] for path, leaf in kept.items()}
        return evaluator.many(kept, frozen, rows, active=active, at_once=at_once)

    return Lanes(
        lnt.stack_states(states),
        lambda state, frozen, batch, active: step(state, frozen, batch, active=active),
        lambda state, number: {path: leaf[number] for path, leaf in _kept(state).items()},
        evaluate,
        step.compilations,
    )


def _step_options(recipe: Recipe) -> dict[str, Any]:
    return {
        "accumulate": recipe.gradient_accumulation,
        "ema_decay": recipe.ema,
        "skip_nonfinite": recipe.on_nan == "skip",
    }


def _kept(state: TrainState) -> dict[str, Any]:
    return state.trainable if state.ema is None else state.ema


def _make_batches(
    owners: Sequence[Task], trials: Sequence[Trial], own_batches: bool, recipe: Recipe
) -> tuple[Callable[[int], tuple[Any, list[int]]], Callable[[int, int], list[int]]]:
    """From a step, from 0, to the batch of all, or each one's own, stacked and of one length.

    The second function gives the rows of the data file in an adapter's step, from 1.
    """
    size = recipe.batch_size
    pairs = list(zip(owners, trials, strict=True))
    planners = [owner.planner(trial.recipe.seed, size) for owner, trial in pairs]

    def assemble(step: int) -> tuple[Any, list[int]]:
        if not own_batches:
            batch, tokens = owners[0].assemble(planners[0](step), size)
            return batch, [tokens] * len(trials)
        planned = [plan(step) for plan in planners]
        length = max(each.length for each in planned)
        parts = [
            owner.assemble(replace(each, length=length), size)
            for owner, each in zip(owners, planned, strict=True)
        ]
        batches = (batch for batch, _ in parts)
        return jax.tree.map(lambda *leaves: _stack_rows(leaves), *batches), [n for _, n in parts]

    def list_rows(number: int, step: int) -> list[int]:
        return owners[number].list_rows(planners[number](step - 1))

    return assemble, list_rows


def _stack(trees: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {path: np.stack([tree[path] for tree in trees]) for path in trees[0]}


def _stack_rows(leaves: Sequence[Any]) -> Any:
    """A leaf of each adapter's batch, in one; on a mesh each adapter's rows stay divided."""
    stacked = np.stack([np.asarray(leaf) for leaf in leaves])
    sharding = getattr(leaves[0], "sharding", None)
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return stacked
    spec = jax.P(None, *sharding.spec)
    return jax.device_put(stacked, jax.sharding.NamedSharding(sharding.mesh, spec))
