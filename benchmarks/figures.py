"""Draws docs/images/*.svg from benchmarks/results/*.json: the figures of docs/benchmarks.md.

Each figure is a function that takes results and axes. The data of a figure is kept as text in the
SVG's description, by which a test sees whether a committed figure is that of the committed results.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from page import ROOT, read_results

Found = Mapping[str, dict]

IMAGES = ROOT / "docs" / "images"
BLUE, ORANGE, GREY, GREEN, PURPLE = "#1f6fb4", "#d9822b", "#7a7a7a", "#2f8f5b", "#8a4fa3"
STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.facecolor": "white",
    "font.size": 10,
    "grid.alpha": 0.3,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "path",
    "svg.hashsalt": "lntune_jax",  # the same names in the file each time
}
SHAPES = ("MiniLM-L6", "BERT-base", "SmolLM2-135M", "GPT-2-124M")
METHODS = {
    "LN tuning": ("ours: partition_params", BLUE),
    "LoRA r=8": ("LoRA r=8 (qwix)", ORANGE),
    "full fine-tuning": ("full fine-tuning", GREY),
}
LENGTHS = {
    "full fine-tuning": ("full fine-tuning, none", GREY, "s"),
    "LN tuning": ("LN, none", BLUE, "o"),
    'LN, remat="dots_saveable"': ("LN, dots_saveable", GREEN, "D"),
    'LN, remat="dots_with_no_batch_dims_saveable"': (
        "LN, dots_with_no_batch_dims_saveable",
        PURPLE,
        "^",
    ),
    'LN, remat="full"': ("LN, full", ORANGE, "v"),
}


def read_step(found: Found) -> dict[str, Any]:
    """Time and peak memory by method and shape, full fine-tuning = 1."""
    figures = found["step"]["figures"]
    data: dict[str, Any] = {}
    for name, (row, _) in METHODS.items():
        rows = [(figures[shape][row], figures[shape]["full fine-tuning"]) for shape in SHAPES]
        data[name] = {
            "time": [own["time_to_full"] for own, _ in rows],
            "memory": [own["peak_bytes"] / full["peak_bytes"] for own, full in rows],
        }
    return data


def draw_step(data: Mapping[str, Any], figure: Figure) -> None:
    """Bars: time at the left, memory at the right."""
    both = figure.subplots(1, 2, sharey=True)
    titles = {"time": "Time of a step", "memory": "Peak memory of a step"}
    for axes, (key, title) in zip(both, titles.items(), strict=True):
        for number, (name, (_, colour)) in enumerate(METHODS.items()):
            places = [place + 0.27 * (number - 1) for place in range(len(SHAPES))]
            bars = axes.barh(places, data[name][key], 0.25, color=colour, label=name)
            axes.bar_label(bars, fmt="%.2f", fontsize=8, padding=2)
        axes.set_title(title)
        axes.set_xlabel("full fine-tuning = 1")
        axes.set_xlim(0, 1.13)
        axes.grid(visible=False, axis="y")
    both[0].set_yticks(range(len(SHAPES)), SHAPES)
    both[0].invert_yaxis()
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


def read_lengths(found: Found) -> dict[str, Any]:
    """Lengths and gigabytes of each method."""
    figures = found["memory_by_length"]["figures"]
    return {
        name: [
            [int(key.split()[0].replace(",", "")), held / 1e9] for key, held in figures[row].items()
        ]
        for name, (row, _, _) in LENGTHS.items()
        if row in figures
    }


def draw_lengths(data: Mapping[str, Any], figure: Figure) -> None:
    """A line for each method, both axes logarithmic."""
    axes = figure.subplots()
    for name, points in data.items():
        _, colour, mark = LENGTHS[name]
        axes.plot(*zip(*points, strict=True), color=colour, marker=mark, markersize=5, label=name)
    lengths = sorted({length for points in data.values() for length, _ in points})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    ticks = [0.5, 1, 2, 4, 8, 16, 32]
    axes.set_yticks(ticks, [f"{tick:g} GB" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("tokens in one row")
    axes.set_title("Peak memory of a step: SmolLM2-135M's shape, float32, AdamW")
    axes.legend(loc="upper left")


def read_many(found: Found) -> dict[str, Any]:
    """Adapters, and the time of one step for all, by tokens a step and adapter."""
    data: dict[str, Any] = {}
    for name, rows in found["many_adapters"]["figures"].items():
        adapters, tokens = (int(part.split()[0]) for part in name.split(", "))
        point = [adapters, rows["in one step"]["time_ratio"]]
        data.setdefault(f"{tokens} tokens", []).append(point)
    return data


def draw_many(data: Mapping[str, Any], figure: Figure) -> None:
    """A line for each number of tokens; below 1 one step for all is faster."""
    axes = figure.subplots()
    for (name, points), colour, mark in zip(
        data.items(), (BLUE, GREEN, ORANGE), "o^s", strict=True
    ):
        axes.plot(*zip(*points, strict=True), color=colour, marker=mark, label=name)
        axes.annotate(f"{points[-1][1]:.2f}", points[-1], (8, -3), textcoords="offset points")
    axes.axhline(1, color=GREY, linestyle="--", linewidth=1.2, label="one after the other")
    adapters = [count for count, _ in next(iter(data.values()))]
    axes.set_xscale("log", base=2)
    axes.set_xticks(adapters, [str(count) for count in adapters])
    axes.minorticks_off()
    axes.set_xlim(0.9, 90)
    axes.set_ylim(0, 2)
    axes.set_xlabel("adapters trained in one step")
    axes.set_ylabel("time (one after the other = 1)")
    axes.set_title("Time of one step for all adapters")
    axes.legend(loc="upper left", title="a step and adapter:", alignment="left", title_fontsize=9)


def read_accuracy(found: Found) -> dict[str, Any]:
    """Test accuracy and trainable parameters by method."""
    figures = found["accuracy"]["figures"]
    return {
        name: {"accuracy": row["accuracy"], "trainable": row["trainable"]}
        for name, row in figures.items()
        if "accuracy" in row
    }


def draw_accuracy(data: Mapping[str, Any], figure: Figure) -> None:
    """Bars from one half, which is chance."""
    axes = figure.subplots()
    colours = {"frozen head": GREEN, "LN tuning": BLUE, "full": GREY}
    names = {"frozen head": "head on a frozen encoder", "full": "full fine-tuning"}
    labels = [f"{names.get(name, name)}\n{row['trainable']:,} train" for name, row in data.items()]
    values = [100 * row["accuracy"] for row in data.values()]
    bars = axes.barh(range(len(data)), values, 0.6, color=[colours[name] for name in data])
    axes.bar_label(bars, fmt="%.2f %%", padding=3)
    axes.set_yticks(range(len(data)), labels)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(50, 90)
    axes.set_xlabel("test accuracy in %, from chance (50)")
    axes.set_title("MiniLM on film reviews, 2,000 test rows")


def read_estimates(found: Found) -> dict[str, Any]:
    """The compiler's bytes and the estimate's, by group: one device, or a mesh."""
    data: dict[str, Any] = {"one device": [], "a mesh of devices": []}
    for each in found["memory_estimate"]["figures"]["each"]:
        meshed = "fsdp" in each["group"] or "tensor" in each["group"]
        point = [each["compiler"] / 1e6, each["estimate"] / 1e6]
        data["a mesh of devices" if meshed else "one device"].append(point)
    return data


def draw_estimates(data: Mapping[str, Any], figure: Figure) -> None:
    """A point for each case; on the line the estimate is right."""
    axes = figure.subplots()
    for (name, points), colour, mark in zip(data.items(), (BLUE, ORANGE), "o^", strict=True):
        xs, ys = zip(*points, strict=True)
        axes.scatter(xs, ys, s=18, color=colour, marker=mark, alpha=0.7, label=name, linewidths=0)
    flat = [number for points in data.values() for point in points for number in point]
    ends = [min(flat) * 0.8, max(flat) * 1.25]
    axes.plot(ends, ends, color=GREY, linewidth=1.2, label="equal")
    axes.fill_between(ends, [0.9 * end for end in ends], [1.1 * end for end in ends],
                      color=GREY, alpha=0.2, linewidth=0, label="within 10 %")  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    axes.set_aspect("equal")
    for set_ticks in (axes.set_xticks, axes.set_yticks):
        set_ticks([10, 30, 100, 300], ["10", "30", "100", "300"])
    axes.minorticks_off()
    axes.set_xlabel("the compiler's account, MB")
    axes.set_ylabel("estimate_memory, MB")
    axes.set_title("Peak memory of a step")
    axes.legend(loc="upper left")


# By the file's name: what is drawn, from which data, in which size.
FIGURES: dict[str, tuple[Callable, Callable, tuple[float, float]]] = {
    "step": (read_step, draw_step, (8, 3.8)),
    "memory-by-length": (read_lengths, draw_lengths, (7, 4.4)),
    "many-adapters": (read_many, draw_many, (7, 4)),
    "accuracy": (read_accuracy, draw_accuracy, (7, 2.6)),
    "memory-estimate": (read_estimates, draw_estimates, (5.2, 5)),
}


def describe(data: Any) -> str:
    """What a figure's data is, in one word that fits into the file."""
    return "data " + hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def draw(name: str, found: Found, path: Path) -> None:
    """Draws one figure."""
    read, write, size = FIGURES[name]
    data = read(found)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        write(data, figure)
        metadata = {"Date": None, "Creator": "benchmarks/figures.py", "Description": describe(data)}
        figure.savefig(path, metadata=metadata)


def main() -> None:
    found = read_results()
    IMAGES.mkdir(exist_ok=True)
    for name in FIGURES:
        draw(name, found, IMAGES / f"{name}.svg")
    print(f"written to {IMAGES.relative_to(ROOT)}: {', '.join(FIGURES)}")


if __name__ == "__main__":
    main()
