"""The figure of a sweep: every adapter's curve, and what the swept numbers do to the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..tasks.base import Metric
from ..trainer.callbacks import read_metrics
from ..trainer.recipe import Trial
from ..trainer.sweep import write_value


def draw_sweep(
    path: Path,
    title: str,
    trials: Sequence[Trial],
    rows: Sequence[dict[str, Any]],
    metric: Metric,
    metrics: Path,
) -> None:
    """Draw the curves on the left, and the best figure of each adapter on the right.

    Args:
        path: The `.png` file to write.
        title: Name of the model.
        trials: The trials.
        rows: What `sweep.json` says of each.
        metric: What is compared.
        metrics: The run's `metrics.jsonl`.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.6), layout="constrained", dpi=130)
    figure.suptitle(f"{title}: {len(trials)} adapters trained at once", fontweight="bold")
    left, right = figure.subplots(1, 2)
    axis = _axis_of(trials)
    levels = sorted({trial.values.get(axis, 0.0) for trial in trials})
    shades = colormaps["viridis"](np.linspace(0.0, 0.9, len(levels)))
    colours = dict(zip(levels, shades, strict=True))
    lines = read_metrics(metrics)
    for trial in trials:
        own = [
            line for line in lines if line.get("trial") == trial.name and line["split"] == "eval"
        ]
        steps, values = [line["step"] for line in own], [line[metric.name] for line in own]
        colour = colours[trial.values.get(axis, 0.0)]
        left.plot(steps, values, "o-", color=colour, markersize=3, linewidth=1.2, alpha=0.8)
    left.xaxis.get_major_locator().set_params(integer=True)
    left.set_xlabel("step")
    left.set_ylabel(_label(metric))
    if len(levels) > 1:
        for level in levels:
            label = f"{axis.replace('_', ' ')} {write_value(level)}"
            left.plot([], [], "o-", color=colours[level], label=label)
        left.legend(frameon=False, fontsize=8)
    _draw_results(right, axis, trials, rows, metric, colours)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8.5)
        axes.grid(axis="y", linewidth=0.5, alpha=0.4)
    figure.savefig(path)


def _axis_of(trials: Sequence[Trial]) -> str:
    """The swept number with the most values; of several, a learning rate rather than a seed."""
    names = trials[0].values or {"seed": 0.0}
    counts = {name: len({trial.values.get(name) for trial in trials}) for name in names}
    return max(counts, key=lambda name: (name != "seed", counts[name]))


def _draw_results(
    axes: Any,
    axis: str,
    trials: Sequence[Trial],
    rows: Sequence[dict[str, Any]],
    metric: Metric,
    colours: dict[Any, Any],
) -> None:
    results: dict[Any, list[float]] = {}
    level_of = {trial.name: trial.values.get(axis, 0.0) for trial in trials}
    for row in rows:
        if metric.name in row:
            results.setdefault(level_of[row["name"]], []).append(row[metric.name])
    levels = sorted(results)
    # Evenly spaced: the values of a sweep differ by factors.
    places = {level: place for place, level in enumerate(levels)}
    for level in levels:
        values = results[level]
        at = [places[level]] * len(values)
        axes.plot(at, values, "o", color=colours[level], markersize=6, alpha=0.75)
    means = [float(np.mean(results[level])) for level in levels]
    is_spread = any(len(values) > 1 for values in results.values())
    if len(levels) > 1 and axis != "data":
        label = "mean" if is_spread else None
        axes.plot(
            range(len(levels)), means, "-", color="#7a7a7a", linewidth=1, zorder=0, label=label
        )
        if is_spread:
            axes.legend(frameon=False, fontsize=8)
    axes.set_xticks(range(len(levels)), [write_value(level) for level in levels])
    axes.set_xlim(-0.5, len(levels) - 0.5)
    axes.set_xlabel(axis.replace("_", " "))
    axes.set_ylabel(f"best {_label(metric)}")


def _label(metric: Metric) -> str:
    return f"evaluation {metric.label.removeprefix('evaluation ')}"
