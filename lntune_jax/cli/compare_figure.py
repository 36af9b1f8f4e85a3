"""The figure of `compare`: heat maps of how far each norm moved, and of how adapters relate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

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
