"""The training loop, used by `train` for either task and by `demo`.

A position is one number, the step: batches are a pure function of it, the checkpoint holds the
rest, and so a resumed run goes on bit for bit. Metrics are fetched one step late, which lets the
next step start before the host has looked at the last one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.console import Console

from ._batches import PlannedBatch, plan_epoch
from ._history import History
from ._metrics import MetricsWriter
from ._nonfinite import find_checkpoint
from ._progress import TrainingProgress
from ._recorder import Recorder
from ._run_files import RunFiles
from ._schedules import learning_rate_schedule
from ._settings import Recipe
from ._work import Work, metric_of, peak_learning_rate, steps_per_epoch, total_steps


@dataclass(frozen=True)
class Fitted:
    """The outcome of a run, or of the part of it that was asked for.

    Attributes:
        finished: Whether the run came to its end.
        step: The last step done.
        start: Trainable leaves before training.
        best: Trainable leaves of the best evaluation.
        history: All evaluations.
        compilations: Programs compiled for training and for evaluation.
    """

    finished: bool
    step: int
    start: Mapping[str, Any]
    best: Mapping[str, Any]
    history: History
    compilations: tuple[int, int]


def fit(
    work: Work,
    recipe: Recipe,
    files: RunFiles,
    console: Console,
    *,
    title: str = "training",
    stop_after_steps: int | None = None,
    checkpoint_every: int | None = None,
) -> Fitted:
    """Train, evaluate, keep the best, and leave checkpoints to go on from.

    Args:
        work: Model, config and rows.
        recipe: How training goes.
        files: Where metrics and checkpoints go; a checkpoint that is there is resumed.
        console: Where progress is shown.
        title: What the progress line calls the run.
        stop_after_steps: Stop this call after so many steps, with a checkpoint.
        checkpoint_every: Save a checkpoint after every so many steps, besides evaluations.

    Returns:
        The outcome; `finished` is false if `stop_after_steps` ended it.

    Raises:
        LNTuningError: If a loss or gradient is no finite number, unless such steps are skipped.
    """
    import jax

    import lntune_jax as lnt

    from ..checkpoint import open_checkpoints, restore_state, save_state
    from ._snapshot import Snapshot

    total, metric = total_steps(work, recipe), metric_of(work, recipe)
    trainable, frozen = lnt.partition_params(
        work.model.params, work.config, name_map=work.model.name_map
    )
    start = jax.tree.map(np.array, trainable)
    schedule = learning_rate_schedule(recipe, peak_learning_rate(work, recipe), total)
    optimizer = _make_optimizer(schedule, work, recipe)
    rng = jax.random.key(recipe.seed) if recipe.dropout else None
    snapshot = Snapshot(lnt.TrainState.create(trainable, optimizer, rng=rng), start)
    skips = recipe.on_nan == "skip"
    step_fn = lnt.make_train_step(work.loss_fn(), optimizer, work.config, skip_nonfinite=skips)
    evaluator = work.evaluator()

    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(open_checkpoints(files.checkpoints))
        restored = restore_state(checkpoints, snapshot)
        history = History()
        if restored is not None:
            snapshot, history = restored[0], History.from_json(restored[1])
        state, best, step = snapshot.train, snapshot.best, int(snapshot.step)
        first, began = step, time.monotonic() - history.seconds
        # Step 0 has a line only where the model is measured first; then a new run replaces it.
        kept = -1 if restored is None else step
        writer = stack.enter_context(MetricsWriter(files.metrics, files.tensorboard, kept))
        progress = stack.enter_context(TrainingProgress(console, title, total, step))
        rates = np.asarray(jax.vmap(schedule)(np.arange(total)))
        recorder = Recorder(
            writer,
            progress,
            rates,
            steps_per_epoch(work, recipe),
            lambda: find_checkpoint(checkpoints),
            skips=skips,
        )
        if work.evaluates_first and restored is None:
            evaluation = evaluator.evaluate(state.trainable, frozen, step, recipe)
            recorder.evaluated(evaluation)
            history = history.add(evaluation, metric, recipe.patience)
        for planned in batches_from(step, total, work, recipe):
            if history.stopped or step - first == stop_after_steps:
                break
            batch, tokens = work.assemble(planned, recipe.batch_size)
            state, figures = step_fn(state, frozen, batch)
            step += 1
            recorder.record_previous_and_keep(step, figures, tokens, work.list_rows(planned))
            evaluates = step == total or step % (recipe.eval_every or recorder.epoch_steps) == 0
            if evaluates:
                recorder.flush()
                evaluation = evaluator.evaluate(state.trainable, frozen, step, recipe)
                recorder.evaluated(evaluation)
                history = history.add(evaluation, metric, recipe.patience)
                if history.best(metric).step == step:
                    best = jax.tree.map(np.array, state.trainable)
            is_last_of_call = step - first == stop_after_steps
            if evaluates or is_last_of_call or step % (checkpoint_every or total) == 0:
                # The file must hold every line that a run resumed from here will not write.
                recorder.flush()
                history = replace(history, seconds=time.monotonic() - began)
                save_state(checkpoints, Snapshot(state, best), history.to_json())
    return Fitted(
        finished=history.stopped or step == total,
        step=step,
        start=start,
        best=best,
        history=history,
        compilations=(step_fn.compilations(), evaluator.compilations),
    )


def _make_optimizer(schedule: Any, work: Work, recipe: Recipe) -> Any:
    import lntune_jax as lnt

    head = learning_rate_schedule(recipe, recipe.head_learning_rate, total_steps(work, recipe))
    return lnt.adamw(
        schedule,
        head_learning_rate=head,
        weight_decay=recipe.weight_decay,
        clip_norm=recipe.clip_norm,
        config=work.config,
        name_map=work.model.name_map,
    )


def batches_from(step: int, total: int, work: Work, recipe: Recipe) -> Iterator[PlannedBatch]:
    """The batches of steps `step` to `total`, as a run without interruption has them."""
    lengths, per_epoch = work.training.lengths, steps_per_epoch(work, recipe)
    while step < total:
        epoch, position = divmod(step, per_epoch)
        plan = plan_epoch(recipe.seed, epoch, lengths, recipe.batch_size, work.buckets)
        for planned in plan[position : position + total - step]:
            yield planned
            step += 1
