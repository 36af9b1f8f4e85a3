"""The table that the page opens with: each way to tune a model, and what a step of it costs."""

from collections.abc import Mapping
from typing import Any

from _tables import write_table

SHAPE = "MiniLM-L6"
OURS, FULL = "ours: partition_params", "full fine-tuning"
# What readers call the rows of step.json.
WAYS = {
    OURS: "**LN tuning here**: `partition_params`",
    "ours: make_optimizer": "LN tuning here, whole tree: `make_optimizer`",
    "multi_transform": "ten lines of Optax: `multi_transform`",
    "mistake: clip before the partition": "ten lines, clipping outside",
    "mistake: MultiSteps outside": "ten lines, `MultiSteps` outside",
    "LoRA r=8 (qwix)": "LoRA r=8 (qwix)",
    FULL: "full fine-tuning",
}
COLUMNS = {
    "flops_to_forward": "FLOPs (forward = 1)",
    "peak_bytes": "memory_bytes",
    "output_bytes": "new outputs_bytes",
    "state_bytes": "optimizer state_bytes",
    "saved_bytes": "saved_bytes",
    "compile_seconds": "compile_seconds",
}
PEFT_SHAPE = "minilm"
KEPT = "ours, memory kept"
TIME = "time (LN tuning here = 1)"
INTRO = """\
One step of AdamW on the shape of all-MiniLM-L6-v2 with a classifier of two classes, float32,
{rows} x {length} tokens: each way to tune it, on the same machine. Memory is the compiler's peak,
arguments included; saved is what one keeps of a run. Other shapes, and what is behind each figure,
are below.
"""


def write_opening(found: Mapping[str, dict]) -> list[str]:
    """The table's lines; none as long as there are no figures for it."""
    figures = found.get("step", {}).get("figures", {})
    rows = figures.get(SHAPE, {})
    if OURS not in rows:
        return []
    table = [([name], _read_step(rows, key)) for key, name in WAYS.items() if key in rows]
    table += _read_peft(found.get("peft_step", {}).get("figures", {}))
    limits = figures.get("limits", {}).get(SHAPE, {"rows": "8", "length": "64"})
    return [INTRO.format(**limits), *write_table(table, ["one step"], {})]


def write_short(found: Mapping[str, dict]) -> list[str]:
    """The README's table: the same rows, time beside full fine-tuning's."""
    rows = found["step"]["figures"][SHAPE]
    columns = {"time_to_full": "time (full fine-tuning = 1)", **COLUMNS}
    del columns["compile_seconds"]
    table = [
        ([name], {own: rows[key][old] for old, own in columns.items() if old in rows[key]})
        for key, name in WAYS.items()
        if key in rows
    ]
    return write_table(table, ["one step"], {})


def _read_step(rows: Mapping[str, dict], key: str) -> dict[str, Any]:
    row = rows[key]
    cells = {TIME: row["time_to_ours"]} if "time_to_ours" in row else {}
    return cells | {own: row[old] for old, own in COLUMNS.items() if old in row}


def _read_peft(figures: Mapping[str, Any]) -> list[tuple[list[str], dict[str, Any]]]:
    """Ours with memory kept, and PEFT's faster way, by the first table of the opening's model."""
    rows = next((rows for name, rows in figures.items() if name.startswith(PEFT_SHAPE)), {})
    found = []
    if "ratio_to_ours" in rows.get(KEPT, {}):
        name = "LN tuning here, with freed memory kept"
        found.append(([name], {TIME: rows[KEPT]["ratio_to_ours"]}))
    for way in ("eager", "compiled"):
        own = {
            name: row["ratio_to_ours"]
            for name, row in rows.items()
            if name.startswith(f"PEFT {way}") and "ratio_to_ours" in row
        }
        if own:
            best = min(own, key=lambda name: own[name])
            found.append(([f"LN tuning by {best}, PyTorch"], {TIME: own[best]}))
    return found
