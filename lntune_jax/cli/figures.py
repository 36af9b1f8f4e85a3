"""The figures of runs, sweeps and comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..trainer.metrics import read_metrics
from ..trainer.trials import Trial, write_value
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
    path: Path, title: str, runs: Sequence[Curves], movements: Sequence[Movement]
) -> None:
    """Draw the curves of one or several runs, and the movement of the norms of one.

    Args:
        path: The `.png` file to write.
        title: Heading of the figure.
        runs: The runs; the first one is the one whose norms are shown.
        movements: One entry a norm, in model order; may be empty.
    """
    # The object interface needs no display and leaves no global state, unlike pyplot.
    from matplotlib.figure import Figure

    height = max(4.8, 1.8 + 0.21 * len(movements))
    figure = Figure(figsize=(10.5, height), layout="constrained", dpi=130)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.0, 1.05))[0]
    loss, accuracy = left.subplots(2, 1, sharex=True, height_ratios=(1.15, 1.0))
    for run, colour in zip(runs, _RUN_COLOURS, strict=False):
        _draw_run(loss, accuracy, run, colour)
    _finish_curves(loss, accuracy)
    _draw_movements(right.subplots(), movements)
    figure.savefig(path)


def _draw_run(loss: Any, accuracy: Any, run: Curves, colour: str) -> None:
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
    # A language model has no accuracy; what falls there is its perplexity.
    is_language = "perplexity" in evaluations[0]
    scores = [line["perplexity"] if is_language else 100 * line["accuracy"] for line in evaluations]
    accuracy.set_ylabel("evaluation perplexity" if is_language else "evaluation accuracy, %")
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
            f"kept: {best:.2f}" if is_language else f"kept: {best:.1f} %",
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


_WORDS = {
    "accuracy": "evaluation accuracy",
    "macro_f1": "evaluation macro F1",
    "loss": "evaluation loss",
    "perplexity": "evaluation perplexity",
}


def draw_sweep(
    path: Path,
    title: str,
    trials: Sequence[Trial],
    rows: Sequence[dict[str, Any]],
    metric: str,
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
        steps, values = [line["step"] for line in own], [line[metric] for line in own]
        colour = colours[trial.values.get(axis, 0.0)]
        left.plot(steps, values, "o-", color=colour, markersize=3, linewidth=1.2, alpha=0.8)
    left.xaxis.get_major_locator().set_params(integer=True)
    left.set_xlabel("step")
    left.set_ylabel(_WORDS[metric])
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
    metric: str,
    colours: dict[Any, Any],
) -> None:
    results: dict[Any, list[float]] = {}
    level_of = {trial.name: trial.values.get(axis, 0.0) for trial in trials}
    for row in rows:
        if metric in row:
            results.setdefault(level_of[row["name"]], []).append(row[metric])
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
    axes.set_ylabel(f"best {_WORDS[metric]}")


_MOVED, _COSINE, _DISTANCE = "YlGnBu", "RdBu_r", "YlOrBr"
_LONGEST_NAME = 24
_MOST_WRITTEN = 14  # adapters whose numbers are still legible in the cells


def draw_comparison(
    path: Path,
    names: Sequence[str],
    norms: Sequence[str],
    scales: np.ndarray,
    biases: np.ndarray,
    cosine: np.ndarray,
    distance: np.ndarray,
) -> None:
    """Draw the movement on the left, a column an adapter; cosine and distance on the right.

    Args:
        path: The file to write; its suffix says in which format.
        names: The adapters.
        norms: Readable names of the norms, in model order.
        scales: (adapters, norms), RMS changes, NaN where there is none.
        biases: The same; all NaN where norms have no bias.
        cosine: (adapters, adapters), NaN for an adapter that did not move.
        distance: (adapters, adapters).
    """
    from matplotlib.figure import Figure

    count = len(names)
    parts = [("scales", scales), ("biases", biases)]
    parts = [(title, values) for title, values in parts if np.isfinite(values).any()]
    left_width = 1.9 + len(parts) * max(1.5, 0.42 * count) + 0.9
    right_width = 2.0 + max(2.4, 0.52 * count) if count > 1 else 0.0
    panel = max(2.9, 0.5 * count + 1.6)  # of one of the two maps on the right
    height = max(2.4 + 0.2 * len(norms), 2 * panel if count > 1 else 3.6)
    figure = Figure(figsize=(left_width + right_width, height), layout="constrained", dpi=130)
    figure.suptitle(_title(count), fontsize=13, fontweight="bold")
    if count > 1:
        ratios = (left_width, right_width)
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=ratios)[0]
        _draw_relations(right, _shorten(names), cosine, distance, height / panel)
    else:
        left = figure.subfigures(1, 1)
    _draw_movement(left, _shorten(names), norms, parts)
    figure.savefig(path)


def _title(count: int) -> str:
    return "How far the adapter moved" if count == 1 else f"{count} adapters over one base"


def _draw_movement(
    figure: Any, names: Sequence[str], norms: Sequence[str], parts: list[tuple[str, np.ndarray]]
) -> None:
    """One row a norm, one column an adapter, one colour scale for scales and biases."""
    axes = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
    top = max(np.nanmax(values) for _, values in parts) or 1.0
    image = None
    for place, (title, values) in zip(axes, parts, strict=True):
        image = place.imshow(
            np.ma.masked_invalid(values.T), _MOVED, vmin=0, vmax=top, aspect="auto"
        )
        place.set_facecolor("#ececec")  # an adapter without this leaf
        place.set_title(title, fontsize=11)
        _name_columns(place, names)
        _separate(place, len(names), len(norms))
        if len(names) <= 6 and len(norms) <= 64:
            _write_values(place, image, values.T, "z.3f" if top < 0.2 else "z.2f", 6.5)
    if any(np.isnan(values).any() for _, values in parts):
        axes[0].annotate(
            "grey: not tuned", (0, 0), (-6, -6), "axes fraction", "offset points",
            ha="right", va="top", fontsize=7.5, color="#606060",
        )  # fmt: skip
    axes[0].set_yticks(range(len(norms)), norms, fontsize=8)
    bar = figure.colorbar(image, ax=list(axes), fraction=0.05, pad=0.02, aspect=40, anchor=(0, 1))
    bar.set_label("RMS change from the base", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def _draw_relations(
    figure: Any, names: Sequence[str], cosine: np.ndarray, distance: np.ndarray, height: float
) -> None:
    """Two maps at the top, however high the figure is; `height` is in maps."""
    filler = [height - 2] if height > 2.3 else []
    upper, lower, *rest = figure.subplots(2 + len(filler), 1, height_ratios=[1, 1, *filler])
    for empty in rest:
        empty.set_axis_off()
    furthest = float(distance.max()) or 1.0
    for place, values, title, colours, low, high, form in (
        (upper, cosine, "Cosine between their changes", _COSINE, -1.0, 1.0, "z.2f"),
        (lower, distance, "Distance between them", _DISTANCE, 0.0, furthest, "z.2f"),
    ):
        image = place.imshow(np.ma.masked_invalid(values), colours, vmin=low, vmax=high)
        place.set_facecolor("#ececec")
        place.set_title(title, fontsize=11)
        place.set_yticks(range(len(names)), names, fontsize=8)
        _name_columns(place, names)
        _separate(place, len(names), len(names))
        if len(names) <= _MOST_WRITTEN:
            size = 8.5 if len(names) <= 8 else 6.5
            _write_values(place, image, values, form, size)
        bar = figure.colorbar(image, ax=place, fraction=0.05, pad=0.03)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)


def _name_columns(axes: Any, names: Sequence[str]) -> None:
    turned = len(names) > 4 or max(map(len, names)) > 8
    options = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if turned else {}
    axes.set_xticks(range(len(names)), names, fontsize=8, **options)


def _separate(axes: Any, columns: int, rows: int) -> None:
    """White lines between the cells, and no frame."""
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)


def _write_values(axes: Any, image: Any, values: np.ndarray, form: str, size: float) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            is_dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
            colour = "white" if is_dark else "#202020"
            text = format(value, form)
            axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)


def _shorten(names: Sequence[str]) -> list[str]:
    """The ends of long names, which tell paths apart better than their beginnings."""
    return [n if len(n) <= _LONGEST_NAME else "…" + n[1 - _LONGEST_NAME :] for n in names]
