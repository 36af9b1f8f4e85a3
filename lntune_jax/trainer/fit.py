"""The training loop, used by `train` for either task and by `demo`.

A batch is a pure function of its step, the loader's position is in the checkpoint beside the rest,
and so a resumed run goes on bit for bit. Metrics are fetched one step late, which lets the
next step start before the host has looked at the last one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.console import Console

from ..adapters.fingerprint import make_fingerprint
from ..cli.console import TrainingProgress
from ..cli.options import Recipe
from ..tasks.base import Work, metric_of, peak_learning_rate, steps_per_epoch, total_steps
from .history import History
from .loader import make_item, open_loader
from .metrics import MetricsWriter
from .nonfinite import find_checkpoint
from .recorder import Recorder
from .resume import check_extra, frozen_leaves
from .run_files import RunFiles
from .schedules import learning_rate_schedule
from .stopping import Stops, Watch, heed_sigterm


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
        terminated: Whether SIGTERM ended it.
    """

    finished: bool
    step: int
    start: Mapping[str, Any]
    best: Mapping[str, Any]
    history: History
    compilations: tuple[int, int]
    terminated: bool = False


def fit(
    work: Work,
    recipe: Recipe,
    files: RunFiles,
    console: Console,
    *,
    title: str = "training",
    stops: Stops | None = None,
) -> Fitted:
    """Train, evaluate, keep the best, and leave checkpoints to go on from.

    Args:
        work: Model, config and rows.
        recipe: How training goes.
        files: Where metrics and checkpoints go; a checkpoint that is there is resumed.
        console: Where progress is shown.
        title: What the progress line calls the run.
        stops: When this call saves besides evaluations, and ends before the run does.

    Returns:
        The outcome; `finished` is false if `stops` or SIGTERM ended it.

    Raises:
        LNTuningError: If a loss or gradient is no finite number, unless such steps are skipped.
    """
    import jax

    import lntune_jax as lnt

    from ..training import finish_saves, open_checkpoints, restore_state, save_state
    from .snapshot import Snapshot

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
    leaves = frozen_leaves(work)
    base = make_fingerprint(leaves)

    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(open_checkpoints(files.checkpoints))
        restored = restore_state(checkpoints, snapshot)
        history, position, skipped = History(), None, 0
        if restored is not None:
            snapshot, extra = restored
            extra = check_extra(extra, ("history", "skipped"), leaves, files.directory)
            history, position = History.from_json(extra["history"]), extra["data"]
            skipped = extra["skipped"]
        state, best, step = snapshot.train, snapshot.best, int(snapshot.step)
        began = time.monotonic() - history.seconds
        watch = Watch(stops or Stops(), step, stack.enter_context(heed_sigterm(step)))
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
            skipped=skipped,
        )
        if work.evaluates_first and restored is None:
            evaluation = evaluator.evaluate(state.trainable, frozen, step, recipe)
            recorder.evaluated(evaluation)
            history = history.add(evaluation, metric, recipe.patience)
        loader = open_loader(make_item(work, recipe), total, position)
        ends = False
        while not (step == total or history.stopped or ends):
            item = next(loader)
            state, figures = step_fn(state, frozen, item.batch)
            step += 1
            recorder.record_previous_and_keep(step, figures, item.tokens, item.rows)
            evaluates = step == total or step % (recipe.eval_every or recorder.epoch_steps) == 0
            if evaluates:
                recorder.flush()
                evaluation = evaluator.evaluate(state.trainable, frozen, step, recipe)
                recorder.evaluated(evaluation)
                history = history.add(evaluation, metric, recipe.patience)
                if history.best(metric).step == step:
                    best = jax.tree.map(np.array, state.trainable)
            ends = watch.ends(step)
            if evaluates or ends or watch.is_due(step):
                # The file must hold every line that a run resumed from here will not write.
                recorder.flush()
                history = replace(history, seconds=time.monotonic() - began)
                writer.sync()
                extra = {
                    "data": loader.get_state(),
                    "base": base,
                    "history": history.to_json(),
                    "skipped": recorder.skipped,
                }
                save_state(checkpoints, Snapshot(state, best), extra, wait=False)
                watch.saved()
        finish_saves(checkpoints)
    return Fitted(
        finished=history.stopped or step == total,
        step=step,
        start=start,
        best=best,
        history=history,
        compilations=(step_fn.compilations(), evaluator.compilations),
        terminated=watch.terminated,
    )


def _make_optimizer(schedule: Any, work: Work, recipe: Recipe) -> Any:
    import lntune_jax as lnt

    head = learning_rate_schedule(recipe, recipe.head_learning_rate, total_steps(work, recipe))
    return lnt.adamw(
        work.config,
        schedule,
        head_learning_rate=head,
        weight_decay=recipe.weight_decay,
        clip_norm=recipe.clip_norm,
        name_map=work.model.name_map,
    )
