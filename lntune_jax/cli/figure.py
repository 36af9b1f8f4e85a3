"""The figure of a run: its curves on the left, how far each norm moved on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..tasks.base import Metric
from .movement import Movement, readable_names

_SCALE_COLOUR, _BIAS_COLOUR = "#1f6fb4", "#e07b24"
_RUN_COLOURS = ("#1f6fb4", "#7a7a7a", "#2b9348", "#b23a48")


@dataclass(frozen=True)
class Curves:
    """The metrics of one run.

    Attributes:
        name: For the legend.
        lines: Lines of its `metrics.jsonl`.
        best_step: The step whose leaves were kept.
    """

    name: str
    lines: Sequence[dict[str, Any]]
    best_step: int


def draw_figure(
    path: Path,
    title: str,
    runs: Sequence[Curves],
    movements: Sequence[Movement],
    metric: Metric,
) -> None:
    """Draw the curves of one or several runs, and the movement of the norms of one.

    Args:
        path: The `.png` file to write.
        title: Heading of the figure.
        runs: The runs; the first one is the one whose norms are shown.
        movements: One entry a norm, in model order; may be empty.
        metric: What the second panel shows.
    """
    # The object interface needs no display and leaves no global state, unlike pyplot.
    from matplotlib.figure import Figure

    height = max(4.8, 1.8 + 0.21 * len(movements))
    figure = Figure(figsize=(10.5, height), layout="constrained", dpi=130)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.0, 1.05))[0]
    loss, accuracy = left.subplots(2, 1, sharex=True, height_ratios=(1.15, 1.0))
    for run, colour in zip(runs, _RUN_COLOURS, strict=False):
        _draw_run(loss, accuracy, run, colour, metric)
    _finish_curves(loss, accuracy)
    _draw_movements(right.subplots(), movements)
    figure.savefig(path)


def _draw_run(loss: Any, accuracy: Any, run: Curves, colour: str, metric: Metric) -> None:
    # A step that was skipped may have a loss that is no number.
    known = (line for line in run.lines if line["loss"] is not None)
    training = [line for line in known if line["split"] == "train"]
    evaluations = [line for line in run.lines if line["split"] == "eval"]
    steps = np.array([line["step"] for line in training])
    losses = np.array([line["loss"] for line in training])
    if len(losses) > 4:
        loss.plot(steps, losses, color=colour, alpha=0.22, linewidth=0.8)
    loss.plot(steps, _smooth(losses), color=colour, linewidth=1.8, label=f"{run.name}, training")
    if not evaluations:
        return
    at = [line["step"] for line in evaluations]
    markers = {"marker": "o", "markersize": 4.5, "color": colour}
    loss.plot(
        at,
        [line["loss"] for line in evaluations],
        linestyle="--",
        linewidth=1.2,
        label=f"{run.name}, evaluation",
        **markers,
    )
    scale, unit = (100, " %") if metric.is_share else (1, "")
    scores = [scale * line[metric.name] for line in evaluations]
    accuracy.set_ylabel(f"evaluation {metric.label}" + (", %" if unit else ""))
    accuracy.plot(at, scores, linewidth=1.6, label=run.name, **markers)
    if run.best_step in at:
        best = scores[at.index(run.best_step)]
        accuracy.plot(
            [run.best_step],
            [best],
            marker="o",
            markersize=11,
            markerfacecolor="none",
            markeredgecolor=colour,
            linestyle="none",
        )
        near_right_edge = run.best_step > 0.75 * max(at)
        accuracy.annotate(
            f"kept: {best:.1f} %" if unit else f"kept: {best:.2f}",
            (run.best_step, best),
            xytext=(-10 if near_right_edge else 10, -13),
            textcoords="offset points",
            ha="right" if near_right_edge else "left",
            va="top",
            fontsize=8.5,
            color=colour,
        )


def _finish_curves(loss: Any, accuracy: Any) -> None:
    loss.set_ylabel("loss")
    loss.set_title("Training", fontsize=11)
    loss.legend(frameon=False, fontsize=8)
    accuracy.set_xlabel("step")
    accuracy.margins(y=0.25)
    if len(accuracy.get_lines()) > 2:
        accuracy.legend(frameon=False, fontsize=8)
    for axes in (loss, accuracy):
        _plain_axes(axes)
        axes.grid(axis="y", linewidth=0.5, alpha=0.4)


def _draw_movements(axes: Any, movements: Sequence[Movement]) -> None:
    """One row a norm, embeddings at the top, with a dot for its scale and one for its bias."""
    axes.set_title("How far each norm moved", fontsize=11)
    _plain_axes(axes)
    if not movements:
        axes.text(0.5, 0.5, "no norm trained", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    rows = np.arange(len(movements))
    for name, colour, values in (
        ("scale", _SCALE_COLOUR, [each.scale for each in movements]),
        ("bias", _BIAS_COLOUR, [each.bias for each in movements]),
    ):
        known = [(row, value) for row, value in zip(rows, values, strict=True) if value is not None]
        if known:
            at, lengths = zip(*known, strict=True)
            axes.plot(lengths, at, "o", color=colour, markersize=5, label=name)
    pairs = [[value for value in each[1:] if value is not None] for each in movements]
    axes.hlines(
        rows,
        [min(each) for each in pairs],
        [max(each) for each in pairs],
        color="#c4c4c4",
        zorder=0,
    )
    axes.set_yticks(rows, readable_names([each.module for each in movements]), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("RMS change from the pretrained value")
    axes.grid(axis="both", linewidth=0.5, alpha=0.4)
    axes.legend(frameon=False, fontsize=9, loc="best")


def _plain_axes(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8.5)


def _smooth(values: np.ndarray) -> np.ndarray:
    """A centred mean over about a twentieth of the run, shorter at both ends."""
    reach = max(len(values) // 40, 1)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    positions = np.arange(len(values))
    first = np.maximum(positions - reach, 0)
    last = np.minimum(positions + reach + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)
