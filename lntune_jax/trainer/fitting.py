"""Train without writing the loop: `fit` for one adapter, `fit_many` for many at once."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax

from ..adapters import Adapter
from ..errors import ConfigError
from ..messages import Argument, shorten
from ..storage.directories import resolve_path
from ..tasks.base import Task
from .callbacks import Callback, JsonLines
from .history import Evaluation, History
from .loop import Outcome, run_loop
from .recipe import Recipe, Trial, check_recipe
from .run import RunFiles, check_run, finish_run, locked, start_run
from .schedules import metric_of, share_steps
from .stopping import Stops


@dataclass(frozen=True)
class Result:
    """What `fit` gives.

    Attributes:
        adapter: The trained leaves and their config; `trainable, config = result.adapter`.
        history: All evaluations.
        metrics: The figures of the evaluation whose leaves were kept; empty where none was made.
        step: The last step done.
        finished: Whether the run came to its end; `False` where `stops` or SIGTERM ended it.
        diverged: The step at which the loss was no number, in a run of many; else `None`.

    Example:
        >>> import numpy as np, lntune_jax as lnt
        >>> adapter = lnt.Adapter({"norm.scale": np.ones(2)}, lnt.LNTuningConfig(), None)
        >>> trainable, config = Result(adapter, (), {"loss": 0.5}, step=3, finished=True).adapter
        >>> list(trainable)
        ['norm.scale']
    """

    adapter: Adapter
    history: tuple[Evaluation, ...]
    metrics: Mapping[str, float]
    step: int
    finished: bool
    diverged: int | None = None


def fit(
    task: Task,
    recipe: Recipe | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    overwrite: bool = False,
    stops: Stops | None = None,
) -> Result:
    """Train one adapter, evaluate, and keep the best.

    Args:
        task: What is trained and how it is measured: of `lntune_jax.tasks`, or a `FunctionTask`.
        recipe: How training goes.
        output: Directory that receives the adapter, checkpoints, `metrics.jsonl` and
            `summary.json`; `None` writes nothing.
        callbacks: Who hears of steps and evaluations.
        resume: Go on from the last checkpoint in `output`, or start where there is none. A resumed
            run gives the same bits as one that was never stopped.
        overwrite: Replace the run in `output`.
        stops: When this call also saves, and ends before the run does.

    Returns:
        The adapter, its evaluations, and the figures of the best.

    Raises:
        ConfigError: `output` holds a run and neither flag is given, or one with another recipe; or
            the recipe's `best_by` is no figure of the task.
        LNTuningError: A loss or gradient is no finite number, unless the recipe skips such steps.

    Example:
        >>> import jax.numpy as jnp, lntune_jax as lnt
        >>> from lntune_jax import tasks, trainer
        >>> params = {"norm": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}}
        >>> def loss(params, batch):
        ...     x = batch * params["norm"]["scale"] + params["norm"]["bias"]
        ...     return jnp.mean((x - 2 * batch) ** 2)
        >>> task = tasks.FunctionTask(
        ...     params, lnt.LNTuningConfig(), loss, lambda step: jnp.ones((2, 4)),
        ...     steps_per_epoch=20,
        ...     evaluate=lambda params: {"loss": loss(params, jnp.ones((2, 4)))},
        ... )
        >>> result = trainer.fit(task, trainer.Recipe(epochs=2, learning_rate=0.1))
        >>> result.metrics["loss"] < 0.1, len(result.history), sorted(result.adapter.trainable)
        (True, 2, ['norm.bias', 'norm.scale'])
    """
    recipe = Recipe() if recipe is None else recipe
    check_recipe(recipe)
    _check([task], recipe, callbacks)
    trial = Trial(None, {}, recipe)
    outcome = _run([task], [trial], recipe, output, callbacks, resume, overwrite, stops, None)
    return _results([task], [trial], recipe, outcome)[0]


def fit_many(
    tasks: Task | Sequence[Task],
    recipes: Sequence[Recipe] | Mapping[str, Recipe],
    *,
    output: str | os.PathLike[str] | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    overwrite: bool = False,
    stops: Stops | None = None,
    at_once: int | None = None,
) -> dict[str, Result]:
    """Train many adapters over one base in one compiled step, each with a recipe of its own.

    Recipes may differ in `learning_rate`, `head_learning_rate`, `weight_decay` and `seed`. Several
    tasks share the tree and the config, and have rows of their own: every recipe trains on each.

    Args:
        tasks: One task, or one for each table.
        recipes: One an adapter, by name; a list gives the names `0`, `1`, ...
        output: As for `fit`; every adapter is in `adapters/NAME`, the best one in `adapter`.
        callbacks: As for `fit`; they are told the adapter's name.
        resume: As for `fit`.
        overwrite: As for `fit`.
        stops: As for `fit`.
        at_once: Adapters that share a step, to bound the memory; `None` for all.

    Returns:
        A result for each adapter, by name; of several tasks `NAME-0`, `NAME-1`, ...

    Raises:
        ConfigError: As for `fit`, or the recipes differ in something that a step cannot share.

    Example:
        >>> import jax.numpy as jnp, lntune_jax as lnt
        >>> from lntune_jax import tasks, trainer
        >>> task = tasks.FunctionTask(
        ...     {"norm": {"scale": jnp.ones(4)}}, lnt.LNTuningConfig(),
        ...     lambda params, batch: jnp.mean((params["norm"]["scale"] - batch) ** 2),
        ...     lambda step: jnp.float32(2), steps_per_epoch=9,
        ... )
        >>> slow, fast = (trainer.Recipe(epochs=1, learning_rate=rate) for rate in (1e-3, 1e-1))
        >>> results = trainer.fit_many(task, {"slow": slow, "fast": fast})
        >>> [f"{each.adapter.trainable['norm.scale'][0]:.2f}" for each in results.values()]
        ['1.00', '1.44']
    """
    every = list(tasks) if isinstance(tasks, Sequence) else [tasks]
    named = recipes if isinstance(recipes, Mapping) else {str(n): r for n, r in enumerate(recipes)}
    if not named or not every:
        raise ConfigError("recipes or tasks is empty; expected one adapter or more")
    first = next(iter(named.values()))
    for name, recipe in named.items():
        check_recipe(recipe, f"recipes[{name!r}]")
        for field, value in asdict(recipe).items():
            if field not in SWEPT and value != getattr(first, field):
                raise ConfigError(
                    f"recipes[{name!r}] has {field} = {value!r} and the first one "
                    f"{getattr(first, field)!r}: adapters that share a step may differ in "
                    f"{', '.join(SWEPT)}"
                )
    _check(every, first, callbacks)
    shared = share_steps(every, first)
    steps = {each: getattr(shared, each) for each in ("max_steps", "epochs", "eval_every")}
    trials = [
        Trial(
            name if len(every) == 1 else f"{name}-{table}",
            {"data": str(table)} if len(every) > 1 else {},
            replace(recipe, **steps),
            table,
        )
        for table in range(len(every))
        for name, recipe in named.items()
    ]
    outcome = _run(every, trials, shared, output, callbacks, resume, overwrite, stops, at_once)
    results = _results(every, trials, shared, outcome)
    return {str(trial.name): result for trial, result in zip(trials, results, strict=True)}


def _check(tasks: Sequence[Any], recipe: Recipe, callbacks: Sequence[Any]) -> None:
    """Refuse what is no task or no callback, before anything is traced."""
    for task in tasks:
        if not hasattr(task, "planner"):
            raise ConfigError(
                f"task is {type(task).__name__}; expected one of lntune_jax.tasks, such as a "
                "FunctionTask"
            )
        if not task.epoch_steps(recipe.batch_size):
            raise ConfigError("the task has no batch in an epoch: is its data empty?")
        if recipe.dropout and not _takes_rng(task.loss_fn()):
            raise ConfigError(
                "recipe.dropout gives the loss a key for each step, and the task's loss takes no "
                "rng: write loss(params, batch, rng=None), or leave dropout out"
            )
        try:
            json.dumps(task.record)
        except TypeError as error:
            raise ConfigError(f"the task's record is not JSON: {error}") from None
    for each in callbacks:
        if not isinstance(each, Callback):
            raise ConfigError(
                f"callbacks has {shorten(repr(each), 80)}; expected a trainer.Callback"
            )


def _takes_rng(loss: Any) -> bool:
    kinds = inspect.signature(loss).parameters.values()
    return any(each.name == "rng" or each.kind is each.VAR_KEYWORD for each in kinds)


# What may differ between adapters that share a compiled step.
SWEPT = ("learning_rate", "head_learning_rate", "weight_decay", "seed")


def _run(
    tasks: Sequence[Task],
    trials: Sequence[Trial],
    recipe: Recipe,
    output: str | os.PathLike[str] | None,
    callbacks: Sequence[Callback],
    resume: bool,
    overwrite: bool,
    stops: Stops | None,
    at_once: int | None,
) -> Outcome:
    if output is None:
        if resume or overwrite:
            raise ConfigError(
                "resume and overwrite go with ", Argument("output"), ", the directory of a run"
            )
        return run_loop(tasks, trials, recipe, callbacks=callbacks, stops=stops, at_once=at_once)
    files = RunFiles.at(resolve_path(output, error=ConfigError))
    names = [trial.name for trial in trials]
    settings = {**asdict(recipe), **({} if names == [None] else {"trials": names})}
    check_run(files, settings, resume=resume, overwrite=overwrite)
    # Of several processes the first one holds it for all.
    with locked(files) if jax.process_index() == 0 else contextlib.nullcontext():
        # Another process may have come here first, and left again.
        grows = check_run(files, settings, resume=resume, overwrite=overwrite)
        start_run(files, settings, overwrite=overwrite, grows=grows)
        outcome = run_loop(
            tasks,
            trials,
            recipe,
            checkpoints=files.checkpoints,
            callbacks=[JsonLines(files.metrics), *callbacks],
            stops=stops,
            at_once=at_once,
        )
        if outcome.finished:
            order = rank_trials(outcome, tasks[0], recipe)
            if names != [None]:
                save_all(tasks, trials, outcome, files)
            if order:
                best = order[0]
                finish_run(tasks[trials[best].table], recipe, outcome, files, number=best)
    return outcome


def rank_trials(outcome: Outcome, task: Task, recipe: Recipe) -> list[int]:
    """The adapters that came through, best first; in their order where nothing was evaluated."""
    from .history import rank

    metric = metric_of(task, recipe)
    if not task.evaluation_rows:
        return [n for n, each in enumerate(outcome.fitted) if each.diverged is None]
    known = [n for n, each in enumerate(outcome.fitted) if each.history.evaluations]
    bests = {number: outcome.fitted[number].history.best(metric) for number in known}
    return sorted(known, key=lambda number: rank(bests[number], metric))


def save_all(
    tasks: Sequence[Task], trials: Sequence[Trial], outcome: Outcome, files: RunFiles
) -> None:
    """Save every adapter that has something to show, each in a directory of its name."""
    import lntune_jax as lnt

    files.adapters.mkdir(exist_ok=True)
    for trial, fitted in zip(trials, outcome.fitted, strict=True):
        task = tasks[trial.table]
        if fitted.history.evaluations or (not task.evaluation_rows and fitted.diverged is None):
            lnt.save_adapter(
                files.adapters / str(trial.name),
                fitted.best,
                task.config,
                base=task.params,
                name_map=task.name_map,
                overwrite=True,
                task=task.record or None,
            )


def _results(
    tasks: Sequence[Task], trials: Sequence[Trial], recipe: Recipe, outcome: Outcome
) -> list[Result]:
    results = []
    for trial, fitted in zip(trials, outcome.fitted, strict=True):
        task, history = tasks[trial.table], fitted.history
        adapter = Adapter(dict(fitted.best), task.config, task.record or None)
        best = _figures(history, task, recipe)
        results.append(
            Result(
                adapter, history.evaluations, best, outcome.step, outcome.finished, fitted.diverged
            )
        )
    return results


def _figures(history: History, task: Task, recipe: Recipe) -> dict[str, float]:
    if not history.evaluations:
        return {}
    return dict(history.best(metric_of(task, recipe)).figures)
