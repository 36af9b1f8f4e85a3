"""What every completed run leaves behind: the adapter, a summary, the figure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from ..cli.console import byte_count
from ..cli.figure import Curves, draw_figure
from ..cli.movement import Movement, measure_movement
from ..cli.options import Recipe
from ..errors import ConfigError
from ..messages import warn
from ..storage.directories import write_text
from ..tasks.base import Work, metric_of, total_steps
from .fit import Fitted
from .metrics import read_metrics
from .run_files import RunFiles, read_fields


@dataclass(frozen=True)
class Summary:
    """The figures of a finished run, as `summary.json` holds those that the task has."""

    trainable: int
    total: int
    percent: float
    training_rows: int
    evaluation_rows: int
    steps: int
    planned_steps: int
    best_step: int
    best_loss: float
    seconds: float
    adapter_bytes: int
    lengths: tuple[int, ...]
    compilations: int
    best_accuracy: float | None = None
    best_macro_f1: float | None = None
    best_perplexity: float | None = None
    first_perplexity: float | None = None


def finish(
    work: Work,
    recipe: Recipe,
    fitted: Fitted,
    files: RunFiles,
    *,
    name: str,
    title: str,
    trial: str | None = None,
) -> Summary:
    """Save the adapter, draw the figure and write the summary, in this order.

    Args:
        work: What was trained.
        recipe: How.
        fitted: The outcome.
        files: Where everything goes.
        name: What the figure's legend calls the run.
        title: Heading of the figure.
        trial: Which lines of the metrics are the run's, where several adapters trained at once.

    Returns:
        The figures that were written to `summary.json`.
    """
    import lntune_jax as lnt

    model = work.model
    lnt.save_adapter(
        files.adapter,
        fitted.best,
        work.config,
        base=model.params,
        overwrite=True,
        name_map=model.name_map,
        task=work.task,
    )
    best = fitted.history.best(metric_of(work, recipe))
    curves = Curves(name, read_metrics(files.metrics, trial), best.step)
    draw_figure(files.figure, title, [curves], movements_of(work, fitted))
    report = lnt.report_params(model.params, work.config, name_map=model.name_map)
    summary = Summary(
        trainable=report.trainable,
        total=report.total,
        percent=report.percent,
        training_rows=len(work.training.tokens),
        evaluation_rows=len(work.evaluation.tokens),
        steps=fitted.step,
        planned_steps=total_steps(work, recipe),
        best_step=best.step,
        best_loss=best.loss,
        seconds=round(fitted.history.seconds, 2),
        adapter_bytes=byte_count(files.adapter),
        lengths=work.buckets,
        compilations=sum(fitted.compilations),
        best_accuracy=best.accuracy,
        best_macro_f1=best.macro_f1,
        best_perplexity=best.perplexity,
        first_perplexity=fitted.history.evaluations[0].perplexity,
    )
    figures = {name: value for name, value in asdict(summary).items() if value is not None}
    write_text(files.summary, json.dumps(figures, indent=2) + "\n")
    if best.step == 0 < fitted.step:
        whose = "" if trial is None else f"{trial}: "
        warn(
            f"{whose}no evaluation was better than the untouched base: the adapter is the base's; "
            "lower --learning-rate, or train longer",
            UserWarning,
        )
    return summary


def load_summary(files: RunFiles) -> Summary:
    """Read what `finish` wrote.

    Raises:
        ConfigError: If it is damaged.
    """
    try:
        return Summary(**read_fields(files.summary))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{files.summary} is damaged ({error}): delete it and give --resume to write it again"
        ) from error


def movements_of(work: Work, fitted: Fitted) -> list[Movement]:
    """How far each norm moved in a run."""
    from ..names.layers import split_arrays
    from ..selection.roles import NORM_ROLE
    from ..selection.select import select_views

    model = work.model
    views = select_views(model.params, work.config, None, model.name_map, warn=False)
    start, best = fitted.start, fitted.best
    if views.parts is not None:
        start, best = split_arrays(start, views.parts), split_arrays(best, views.parts)
    norms = views.named.list_paths(NORM_ROLE)
    return measure_movement(
        {path: start[path] for path in norms}, {path: best[path] for path in norms}
    )
