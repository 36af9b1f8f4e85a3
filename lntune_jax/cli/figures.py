"""The figures of runs, sweeps and comparisons, each on one screen.

They take plain values and lines of `metrics.jsonl`, and know no task: what is shown is a `Metric`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..tasks.base import LOSS, Metric
from .movement import Movement, group_by_layer

_WIDTH, _HEIGHT, _DPI = 10.5, 5.0, 130  # inches: 1,365 x 650 pixels
_SMALL = 8  # font size of ticks and legends
_LETTER = 0.065  # inches that a letter of this size takes
# Okabe and Ito's colours, which those who see few colours tell apart; no yellow on white.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_MARKERS, _GREY, _ABSENT = "os^Dv", "#6a6a6a", "#e4e4e4"
_LOOKS: dict[str, dict[str, Any]] = {
    "scale": {"linewidth": 1.4},
    "bias": {"linewidth": 1.4, "linestyle": "--", "markerfacecolor": "white"},
}
_MOST_ROWS = 24  # adapters whose names fit below one another


def _write(metric: Metric, value: float) -> str:
    """A value as `_read` gives it, with its unit."""
    return f"{value:.1f} %" if metric.is_share else f"{value:.4g}"


def _read(metric: Metric, lines: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """The values of lines, shares in per cent; NaN where a line has none."""
    values = (line.get(metric.name) for line in lines)
    known = np.array([np.nan if value is None else value for value in values], float)
    return known * (100 if metric.is_share else 1)


def _axis(metric: Metric) -> str:
    """The label of an axis."""
    return f"evaluation {metric.label}{', %' if metric.is_share else ''}"


_LOSS = replace(LOSS, label="loss")


@dataclass(frozen=True)
class Curves:
    """The metrics of one run: lines of its `metrics.jsonl`, and the step whose leaves were kept."""

    name: str
    lines: Sequence[dict[str, Any]]
    best_step: int


def draw_figure(
    path: Path, title: str, runs: Sequence[Curves], movements: Sequence[Movement], metric: Metric
) -> None:
    """Draw the curves of one or several runs, and the movement of the norms of one.

    Args:
        path: The file to write.
        title: Heading of the figure.
        runs: The runs; the first one is the one whose norms are shown.
        movements: One entry a norm, in model order; may be empty.
        metric: What is shown beside the loss. The loss itself is shown once.
    """
    figure = _new_figure(title)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.0, 1.05))[0]
    both = left.subplots(1 if metric.name == "loss" else 2, 1, sharex=True, squeeze=False)[:, 0]
    for number, run in enumerate(runs):
        colour = _COLOURS[number % len(_COLOURS)]
        _draw_run(both[0], both[-1], run, colour, metric, f"{run.name}, " if runs[1:] else "")
    if runs[1:]:
        both[0].plot([], [], "o--", color=_GREY, markersize=4, label="evaluation")
    for axes, shown in zip(both, (_LOSS, metric), strict=False):
        axes.set_ylabel("loss" if shown is _LOSS else _axis(shown))
        _finish(axes, shown)
        _add_legend(axes)
    both[-1].set_xlabel("step")
    _draw_movements(right, movements)
    figure.savefig(path)


def _draw_run(loss: Any, score: Any, run: Curves, colour: str, metric: Metric, whose: str) -> None:
    # A step that was skipped may have a loss that is no number.
    training = [line for line in run.lines if line["split"] == "train" and line["loss"] is not None]
    steps, losses = [line["step"] for line in training], _read(_LOSS, training)
    # A mean of full windows that end at their step is as smooth at its ends as in its middle.
    window = max(len(losses) // 20, 1)
    mean = "" if whose or window == 1 else f" (mean of {window} steps)"
    look = {"color": colour, "marker": "" if losses[1:].size else "o"}
    if window > 1:
        loss.plot(steps, losses, color=colour, alpha=0.22, linewidth=0.8)
        losses, steps = np.convolve(losses, np.ones(window) / window, "valid"), steps[window - 1 :]
    loss.plot(steps, losses, linewidth=1.8, label=f"{whose}training{mean}", **look)
    evaluations = [line for line in run.lines if line["split"] == "eval"]
    at, scores = [line["step"] for line in evaluations], _read(metric, evaluations)
    look = {"color": colour, "marker": "o"}
    label = None if whose else "evaluation"
    loss.plot(at, _read(_LOSS, evaluations), "--", linewidth=1.2, markersize=4, label=label, **look)
    if score is not loss:
        score.plot(at, scores, linewidth=1.6, markersize=4, **look)
    if run.best_step in at:
        kept = scores[at.index(run.best_step)]
        label = f"{whose}kept: {_write(metric, kept)}{'' if whose else f' (step {run.best_step})'}"
        look |= {"markersize": 10, "markerfacecolor": "none", "linestyle": "none"}
        score.plot([run.best_step], [kept], label=label, **look)


def _draw_movements(figure: Any, movements: Sequence[Movement]) -> None:
    """A line for each kind of norm against the layer; norms outside layers stand beside them."""
    if not movements:
        axes = figure.subplots()
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no norm trained", ha="center", transform=axes.transAxes)
        return
    found = group_by_layer([each.module for each in movements])
    values = {each.module: {"scale": each.scale, "bias": each.bias} for each in movements}
    roles = [role for role in _LOOKS if any(each[role] is not None for each in values.values())]
    beside = min(0.85 + 0.3 * len(found.others), 3.0 if found.kinds else 5.0)
    widths = [5.0] * bool(found.kinds) + [beside] * bool(found.others)
    shape: dict[str, Any] = {"sharey": True, "squeeze": False, "width_ratios": widths}
    places = figure.subplots(1, len(widths), **shape)[0]

    def draw(axes: Any, at: Sequence[int], modules: Sequence[Any], **look: Any) -> None:
        for role in roles:
            heights = [values[each][role] if each in values else None for each in modules]
            axes.plot(at, np.array(heights, float), **{**_LOOKS[role], **look})

    for number, (kind, layers) in enumerate(found.kinds.items()):
        look = {"color": _COLOURS[number % 7], "marker": _MARKERS[number // 7 % 5]}
        at = range(min(layers), max(layers) + 1)
        modules = [layers.get(layer) for layer in at]
        draw(places[0], at, modules, markersize=4.5 if len(at) <= 32 else 2.5, **look)
        places[0].plot([], [], markersize=4.5, label=kind, **look)
    places[0].set_xlabel("layer")
    if found.others:
        names = list(found.others)
        look = {"color": _GREY, "marker": "o", "linestyle": "none"}
        draw(places[-1], range(len(names)), list(found.others.values()), **look)
        places[-1].set_xlim(-0.6, len(names) - 0.4)
        _name_columns(places[-1], names, 4.6 * beside / sum(widths))
        places[-1].set_xlabel("outside" if found.kinds else "")
    for role in roles if roles[1:] else ():
        places[0].plot([], [], color=_GREY, marker="o", label=role, **_LOOKS[role])
    places[0].set_ylabel("RMS change" if roles[1:] else f"RMS change of the {roles[0]}")
    moved = [value for each in values.values() for value in each.values() if value is not None]
    places[0].set_ylim(0, 1.06 * max(moved) or 1.0)
    for axes in places:
        _finish(axes)
    _add_legend(places[0], "How far each norm moved", figure)


def draw_sweep(
    path: Path,
    title: str,
    trials: Mapping[str, Mapping[str, float | str]],
    lines: Sequence[dict[str, Any]],
    metric: Metric,
) -> None:
    """Draw the curve of each adapter on the left, and the best figure of each on the right.

    Args:
        path: The file to write.
        title: Name of the model.
        trials: For each adapter what was set for it, as in `sweep.json`.
        lines: Lines of the run's `metrics.jsonl`.
        metric: What is compared.
    """
    from matplotlib import colormaps

    figure = _new_figure(f"{title}: {len(trials)} adapters trained at once")
    left, right = figure.subplots(1, 2)
    names = list(next(iter(trials.values()))) or ["seed"]
    counts = {name: len({values.get(name) for values in trials.values()}) for name in names}
    # The number with the most values; of several, a learning rate rather than a seed.
    axis = max(names, key=lambda name: (name != "seed", counts[name]))
    levels = sorted({values.get(axis, 0.0) for values in trials.values()})
    words = [level if isinstance(level, str) else f"{level:g}" for level in levels]
    shades = colormaps["viridis"](np.linspace(0.0, 0.88, len(levels)))
    heights: list[list[float]] = [[] for _ in levels]
    for name, values in trials.items():
        # Evenly spaced: the values of a sweep differ by factors.
        place = levels.index(values.get(axis, 0.0))
        own = [line for line in lines if line.get("trial") == name and line["split"] == "eval"]
        scores = _read(metric, own)
        look = {"color": shades[place], "alpha": 0.8}
        left.plot([line["step"] for line in own], scores, "o-", markersize=3, linewidth=1.2, **look)
        if (known := scores[np.isfinite(scores)]).size:
            heights[place].append(known.max() if metric.higher_is_better else known.min())
            right.plot(place, heights[place][-1], "o", markersize=6, **look)
    for place in sorted({int(each) for each in np.linspace(0, len(levels) - 1, 8).round()}):
        left.plot([], [], "o-", color=shades[place], label=words[place] if levels[1:] else None)
    if axis not in ("data", "seed"):
        means = [np.mean(each) if each else np.nan for each in heights]
        label = "mean" if any(each[1:] for each in heights) else None
        right.plot(range(len(levels)), means, "-", color=_GREY, linewidth=1, zorder=0, label=label)
    others = ", ".join(name for name in names if name != axis)
    others = f" (the adapters of a column differ in {others})" if others else ""
    _name_columns(right, words, 4.2)
    right.set_xlim(-0.5, len(levels) - 0.5)
    right.set_xlabel(f"{axis}{others}".replace("_", " "))
    right.set_ylabel(f"best {_axis(metric)}")
    left.set_xlabel("step")
    left.set_ylabel(_axis(metric))
    for axes, heading in ((left, axis.replace("_", " ")), (right, None)):
        _finish(axes, metric)
        _add_legend(axes, heading)
    figure.savefig(path)


def draw_comparison(
    path: Path,
    names: Sequence[str],
    modules: Sequence[str],
    scales: np.ndarray,
    biases: np.ndarray,
    cosine: np.ndarray,
    distance: np.ndarray,
) -> None:
    """Draw how far each norm of several adapters moved, and how the adapters relate.

    Args:
        path: The file to write; its suffix says in which format.
        names: The adapters.
        modules: Paths of the norms, in model order.
        scales: (adapters, norms), RMS changes, NaN where there is none.
        biases: The same; all NaN where norms have no bias.
        cosine: (adapters, adapters), NaN for an adapter that did not move.
        distance: (adapters, adapters).
    """
    if len(names) == 1:
        figure = _new_figure(f"{names[0]} beside its base")
        pairs = zip(modules, scales[0], biases[0], strict=True)
        known = [Movement(m, *(None if np.isnan(v) else v for v in pair)) for m, *pair in pairs]
        _draw_movements(figure.subfigures(1, 1), known)
    else:
        figure = _new_figure(f"{len(names)} adapters over one base")
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(3.0, 1.0))[0]
        parts = {"scale": scales, "bias": biases}
        parts = {role: part for role, part in parts.items() if np.isfinite(part).any()}
        _draw_maps(left, names, modules, parts)
        upper, lower = right.subplots(2, 1)
        furthest = float(distance.max()) or 1.0
        _draw_relation(right, upper, "cosine between changes", cosine, "RdBu_r", -1.0, 1.0)
        _draw_relation(right, lower, "distance", distance, "YlOrBr", 0.0, furthest)
    figure.savefig(path)


def _draw_maps(
    figure: Any, names: Sequence[str], modules: Sequence[str], parts: dict[str, np.ndarray]
) -> None:
    """A row of maps for scales and one for biases: an adapter a row, a layer a column."""
    found, place = group_by_layer(modules), {name: at for at, name in enumerate(modules)}
    columns = dict[str, list[tuple[str, str | None]]]()
    for kind, layers in found.kinds.items():
        span = range(min(layers), max(layers) + 1)
        columns[kind] = [(str(layer), layers.get(layer)) for layer in span]
    if found.others:
        columns["outside" if found.kinds else "norms"] = list(found.others.items())
    widths = [max(len(each), 0.4 * max(map(len, columns.values()))) for each in columns.values()]
    shape: dict[str, Any] = {"squeeze": False, "sharex": "col", "sharey": True}
    grid = figure.subplots(len(parts), len(columns), width_ratios=widths, **shape)
    top = max(np.nanmax(part) for part in parts.values()) or 1.0
    for (number, kind), axes in np.ndenumerate(grid):
        role, title = list(parts)[number], list(columns)[kind]
        inches = 5.0 * widths[kind] / sum(widths)
        cells = np.full((len(names), len(columns[title])), np.nan)
        for column, (_, module) in enumerate(columns[title]):
            if module is not None:
                cells[:, column] = parts[role][:, place[module]]
        fits = inches / cells.shape[1] > 0.33 and len(names) * len(parts) <= _MOST_ROWS
        form = (".3f" if top < 0.1 else ".2f") if fits else None
        image = _draw_map(axes, cells, "YlGnBu", 0.0, top, form)
        if number == 0:
            lines = textwrap.wrap(title.replace("_", "_ "), max(int(inches / _LETTER), 7))
            axes.set_title("\n".join(lines).replace("_ ", "_"), fontsize=_SMALL)
        if kind == 0:
            axes.set_ylabel(role)
            # The ends of long names, which tell paths apart better.
            ends = [name if len(name) <= 20 else f"…{name[-19:]}" for name in names]
            shown = range(0, len(names), -(-len(names) * len(parts) // _MOST_ROWS))
            axes.set_yticks(shown, [f"{ends[row]}  {row + 1}" for row in shown])
        if number == len(parts) - 1:
            _name_columns(axes, [name for name, _ in columns[title]], inches)
            axes.set_xlabel("layer" if title in found.kinds else "", fontsize=_SMALL)
    image = grid[0, 0].images[0]
    bar = figure.colorbar(image, ax=list(grid.flat), fraction=0.03, pad=0.01, aspect=40)
    absent = "; grey: not tuned" if any(np.isnan(part).any() for part in parts.values()) else ""
    bar.set_label(f"RMS change from the base{absent}", fontsize=_SMALL)
    _finish_bar(bar)


def _draw_relation(
    figure: Any, axes: Any, title: str, values: np.ndarray, colours: str, low: float, high: float
) -> None:
    """Adapters by adapters, under the numbers that stand beside their names on the left."""
    image = _draw_map(axes, values, colours, low, high, "z.2f" if len(values) <= 5 else None)
    axes.set_aspect("equal")
    axes.set_title(title, fontsize=_SMALL)
    shown = range(0, len(values), -(-len(values) // 12))
    axes.set_xticks(shown, [str(number + 1) for number in shown])
    axes.set_yticks(shown, [str(number + 1) for number in shown])
    _finish_bar(figure.colorbar(image, ax=axes, fraction=0.05, pad=0.03))


def _draw_map(
    axes: Any, values: np.ndarray, colours: str, low: float, high: float, form: str | None
) -> Any:
    """Cells with white lines between them where they are large, and their values in `form`."""
    look: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest"}
    image = axes.imshow(np.ma.masked_invalid(values), colours, vmin=low, vmax=high, **look)
    axes.set_facecolor(_ABSENT)
    axes.spines[:].set_visible(False)
    for axis, count in ((axes.yaxis, values.shape[0]), (axes.xaxis, values.shape[1])):
        axis.set_ticks(np.arange(count + 1) - 0.5 if count <= 12 else [], minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0, labelsize=_SMALL)
    for (row, column), value in np.ndenumerate(values):
        if form and np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            colour = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else "#202020"
            look = {"ha": "center", "va": "center", "fontsize": 7, "color": colour}
            axes.text(column, row, format(value, form), **look)
    return image


def _name_columns(axes: Any, names: Sequence[str], inches: float) -> None:
    """Names along an axis of this length: turned where they would touch, not all where many."""
    longest = _LETTER * (max(map(len, names)) + 2)
    turned = longest > 0.4 and longest * len(names) > inches
    shown = range(0, len(names), int(-(-len(names) * (0.18 if turned else longest) // inches)))
    look = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if turned else {}
    axes.set_xticks(shown, [names[column] for column in shown], **look)


def _new_figure(title: str) -> Any:
    # The object interface needs no display and leaves no global state, unlike pyplot.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained", dpi=_DPI)
    size = min(13.0, 1150 / max(len(title), 1))  # as wide as the figure at most
    figure.suptitle(title, fontsize=size, fontweight="bold")
    return figure


def _finish(axes: Any, metric: Metric | None = None) -> None:
    from matplotlib.ticker import MaxNLocator

    if metric is not None:
        # No axis goes to where the metric cannot be: below 0, or above 100 %.
        axes.margins(y=0.12)
        axes.autoscale_view()
        low, high = axes.get_ylim()
        low = max(low, 0.0) if axes.dataLim.y0 >= 0 else low
        axes.set_ylim(low, min(high, 100.0) if metric.is_share else high)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=_SMALL + 0.5)
    axes.xaxis.label.set_size(_SMALL + 1)
    axes.yaxis.label.set_size(_SMALL + 1)
    axes.grid(axis="y", linewidth=0.5, alpha=0.4)
    if isinstance(axes.xaxis.get_major_locator(), MaxNLocator):
        axes.xaxis.get_major_locator().set_params(integer=True)
    for line in axes.get_lines():
        # No marker on an edge is cut; the layout fails over an empty line that may leave the axes.
        line.set_clip_on(not np.isfinite(np.asarray(line.get_ydata(), float)).any())


def _finish_bar(bar: Any) -> None:
    bar.ax.tick_params(labelsize=_SMALL)
    bar.outline.set_visible(False)


def _add_legend(axes: Any, title: str | None = None, figure: Any = None) -> None:
    """A legend above the axes, or above a whole part of the figure, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    columns = max(1, int(4.6 / (_LETTER * max(map(len, labels)) + 0.45)))
    place: dict[str, Any] = {"loc": "outside upper left"}
    if figure is None:
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
    look = {"frameon": False, "fontsize": _SMALL, "title_fontsize": _SMALL + 1, "alignment": "left"}
    (figure or axes).legend(handles, labels, ncols=columns, title=title, **place, **look)
