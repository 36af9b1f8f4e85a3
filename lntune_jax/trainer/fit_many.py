"""The training loop of a sweep: one compiled step for all adapters, a history for each.

An adapter whose patience has run out, or whose loss is no longer a number, stays as it is while
the others go on. As in `_fit`, a position is one number and the checkpoint holds the rest.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.console import Console

from ..adapters.fingerprint import make_fingerprint
from ..cli.console import TrainingProgress
from ..cli.options import Recipe
from ..tasks.base import Work, metric_of, peak_learning_rate, steps_per_epoch, total_steps
from .fit import Fitted
from .loader import Item, make_planner, open_loader
from .metrics import MetricsWriter
from .resume import check_extra, frozen_leaves
from .run_files import RunFiles
from .schedules import learning_rate_schedule
from .stopping import Stops, Watch, heed_sigterm
from .sweep_record import Records, Snapshot, SweepRecorder
from .trials import Trial


@dataclass(frozen=True)
class FittedMany:
    """The outcome of a sweep, or of the part of it that was asked for.

    Attributes:
        finished: Whether it came to its end.
        step: The last step done.
        fitted: What became of each adapter, in the trials' order.
        diverged: The step at which an adapter's loss was no number, or `None`.
        seconds: Time spent in all.
        terminated: Whether SIGTERM ended it.
    """

    finished: bool
    step: int
    fitted: tuple[Fitted, ...]
    diverged: tuple[int | None, ...]
    seconds: float
    terminated: bool


def fit_many(
    works: Sequence[Work],
    trials: Sequence[Trial],
    starts: Sequence[dict[str, Any]],
    recipe: Recipe,
    files: RunFiles,
    console: Console,
    *,
    at_once: int | None = None,
    stops: Stops | None = None,
) -> FittedMany:
    """Train all trials together, and keep each one's best.

    Args:
        works: One for each table: the same model and config, rows of their own, all with the
            same number of steps.
        trials: What is tried.
        starts: Trainable leaves that each begins with.
        recipe: What the trials share.
        files: Where metrics and checkpoints go; a checkpoint that is there is resumed.
        console: Where progress is shown.
        at_once: Adapters that share a step; `None` for all.
        stops: As in `fit`.
    """
    import jax

    import lntune_jax as lnt

    from ..training import finish_saves, open_checkpoints, restore_state, save_state

    work, owners = works[0], [works[trial.table] for trial in trials]
    total, metric = total_steps(work, recipe), metric_of(work, recipe)
    model = work.model
    _, frozen = lnt.partition_params(model.params, work.config, name_map=model.name_map)
    make_optimizer = _optimizers(work, recipe, total)
    states = [
        lnt.TrainState.create(
            start,
            make_optimizer(trial),
            rng=jax.random.key(trial.recipe.seed) if recipe.dropout else None,
        )
        for trial, start in zip(trials, starts, strict=True)
    ]
    begin = [jax.tree.map(np.array, start) for start in starts]
    snapshot = Snapshot(np.int32(0), lnt.stack_states(states), _stack(begin))
    own_batches = len({(trial.recipe.seed, trial.table) for trial in trials}) > 1
    step_fn = lnt.make_multi_step(
        work.loss_fn(),
        make_optimizer(trials[0]),
        work.config,
        adapters=len(trials),
        own_batches=own_batches,
        adapters_at_once=at_once,
        skip_nonfinite=recipe.on_nan == "skip",
    )
    evaluator = work.evaluator()
    leaves = frozen_leaves(work)
    base = make_fingerprint(leaves)
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(open_checkpoints(files.checkpoints))
        restored = restore_state(checkpoints, snapshot)
        records, position, skipped = Records.new(len(trials)), None, [0] * len(trials)
        if restored is not None:
            snapshot, extra = restored
            extra = check_extra(extra, ("records", "skipped"), leaves, files.directory)
            records, position = Records.from_json(extra["records"]), extra["data"]
            skipped = extra["skipped"]
        many, step = snapshot.train, int(snapshot.step)
        best = [{path: leaf[n] for path, leaf in snapshot.best.items()} for n in range(len(trials))]
        began = time.monotonic() - records.seconds
        watch = Watch(stops or Stops(), step, stack.enter_context(heed_sigterm(step)))
        kept = -1 if restored is None else step
        writer = stack.enter_context(MetricsWriter(files.metrics, files.tensorboard, kept))
        progress = stack.enter_context(TrainingProgress(console, "sweep", total, step))
        epoch_steps = [steps_per_epoch(owner, recipe) for owner in owners]
        recorder = SweepRecorder(
            writer, progress, trials, epoch_steps, skips=recipe.on_nan == "skip", skipped=skipped
        )

        def evaluate(records: Records) -> Records:
            for number in np.flatnonzero(records.active()).tolist():
                own = {path: leaf[number] for path, leaf in many.trainable.items()}
                rows = owners[number].evaluation
                evaluation = evaluator.evaluate(own, frozen, step, recipe, rows)
                if not np.isfinite(evaluation.loss):
                    what = f"the evaluation loss of step {step} is {evaluation.loss}"
                    recorder.failed(number, what)
                    records = records.diverge([number], step)
                    continue
                recorder.evaluated(number, evaluation)
                history = records.histories[number].add(evaluation, metric, recipe.patience)
                records = records.with_history(number, history)
                if history.best(metric).step == step:
                    best[number] = jax.tree.map(np.array, own)
            recorder.note(records, metric, step)
            return records

        if work.evaluates_first and restored is None:
            records = evaluate(records)
        make = _make_items(owners, trials, own_batches, recipe)
        loader = open_loader(make, total, position)
        ends = False
        while step < total and records.active().any() and not ends:
            item = next(loader)
            many, figures = step_fn(many, frozen, item.batch, active=records.active())
            step += 1
            records = recorder.record_previous_and_keep(
                step, figures, item.tokens, records, item.rows
            )
            evaluates = step == total or step % (recipe.eval_every or epoch_steps[0]) == 0
            if evaluates:
                records = evaluate(recorder.flush(records))
            ends = watch.ends(step)
            if evaluates or ends or watch.is_due(step):
                records = replace(recorder.flush(records), seconds=time.monotonic() - began)
                state = Snapshot(np.int32(step), many, _stack(best))
                writer.sync()
                extra = {
                    "data": loader.get_state(),
                    "base": base,
                    "records": records.to_json(),
                    "skipped": recorder.skipped,
                }
                save_state(checkpoints, state, extra, wait=False)
                watch.saved()
        finish_saves(checkpoints)
    counts = (step_fn.compilations(), evaluator.compilations)
    finished = step == total or not records.active().any()
    fitted = tuple(
        Fitted(finished, step, start, leaves, replace(history, seconds=records.seconds), counts)
        for start, leaves, history in zip(begin, best, records.histories, strict=True)
    )
    return FittedMany(finished, step, fitted, records.diverged, records.seconds, watch.terminated)


def _optimizers(work: Work, recipe: Recipe, total: int) -> Any:
    """A function from a trial to its optimizer; what differs is in the optimizer's state."""
    import optax

    import lntune_jax as lnt

    unit = learning_rate_schedule(recipe, 1.0, total)

    def build(learning_rate: Any, head_learning_rate: Any, weight_decay: Any) -> Any:
        return lnt.adamw(
            work.config,
            lambda count: learning_rate * unit(count),
            head_learning_rate=lambda count: head_learning_rate * unit(count),
            weight_decay=weight_decay,
            clip_norm=recipe.clip_norm,
            name_map=work.model.name_map,
        )

    def make(trial: Trial) -> Any:
        own = trial.recipe
        return optax.inject_hyperparams(build)(
            learning_rate=peak_learning_rate(work, own),
            head_learning_rate=own.head_learning_rate,
            weight_decay=own.weight_decay,
        )

    return make


def _make_items(
    owners: Sequence[Work], trials: Sequence[Trial], own_batches: bool, recipe: Recipe
) -> Callable[[int], Item]:
    """A function from a step to the batch of all, or each one's own, stacked and of one length."""
    import jax

    pairs = list(zip(owners, trials, strict=True))[: None if own_batches else 1]
    planners = [make_planner(owner, trial.recipe) for owner, trial in pairs]

    def make(step: int) -> Item:
        planned = [plan(step) for plan in planners]
        length = max(each.length for each in planned)
        parts, rows = [], []
        for (owner, _), each in zip(pairs, planned, strict=True):
            parts.append(owner.assemble(replace(each, length=length), recipe.batch_size))
            rows.append(owner.list_rows(each))
        tokens = sum(count for _, count in parts)
        if not own_batches:
            return Item(parts[0][0], tokens * len(trials), rows * len(trials))
        batches = (batch for batch, _ in parts)
        return Item(jax.tree.map(lambda *leaves: np.stack(leaves), *batches), tokens, rows)

    return make


def _stack(trees: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {path: np.stack([tree[path] for tree in trees]) for path in trees[0]}
