"""Makes docs/benchmarks/torchax_types.md: what became of each type of transformers."""

from collections.abc import Mapping
from typing import Any

# A group of refusals, and words of its message.
GROUPS = {
    "`forward` branches on the values of a tensor": "forward depends on the values of a tensor",
    "A shape depends on the values of a tensor": "a shape depends on the values of a tensor",
    "`forward` draws random numbers, and wants a key": "draws random numbers",
    "A causal mask before attention that is not causal": "sees later tokens",
    "A `torch.autograd.Function` that has no counterpart": "torch.autograd.Function",
    "An operator that torchax lacks": "torchax cannot run this module",
}
OTHERS = "Other reasons"
FAULTS = {"WRONG": "Wrong", "foreign error": "An error that is not ours", "hangs": "No end within "
          "the time given", "crashes": "The process died"}  # fmt: skip


def make_types_page(figures: Mapping[str, Any]) -> str:
    """The page's text, from the figures of `torchax_types.py`."""
    types: Mapping[str, Any] = figures["types"]
    summary = figures["summary"]["types"]
    exact = [name for name, row in types.items() if row["outcome"] == "exact"]
    lines = [
        "# Which types of transformers run through torchax",
        "",
        "Written by `benchmarks/page.py` from `benchmarks/results/torchax_types.json`. Each type "
        "is a small model with random weights; values and all gradients are compared with "
        "PyTorch's.",
        "",
        f"Of {summary['PyTorch runs']} types, `torch.export` traces "
        f"{summary['torch.export traces']}; {summary['of these exact']} of these are exact "
        f"({summary['share'] * 100:.1f} %).",
        "",
        f"## Exact: {len(exact)}",
        "",
        _join(exact),
    ]
    in_float64 = [name for name, row in types.items() if row["outcome"] == "exact in float64"]
    if in_float64:
        lines += [
            "",
            f"## Exact in float64: {len(in_float64)}",
            "",
            "In float32 they differ from PyTorch by rounding, as a run of both in float64 shows.",
            "",
            "| type | gradient error in float32 | in float64 |",
            "| --- | --- | --- |",
        ]
        for name in in_float64:
            row = types[name]
            apart = row["in float64"]["gradient error"]
            lines.append(f"| {name} | {row['gradient error']:.1e} | {apart:.1e} |")
    lines += _write_faults(types) + _write_refused(types)
    rest = figures["not built"]
    lines += [
        "",
        f"## Not reached: {len(rest)}",
        "",
        "Of these no small model could be built that PyTorch runs on random inputs. The reasons "
        "are in `benchmarks/results/torchax_types.json`.",
        "",
        _join(sorted(rest)),
    ]
    if figures["not tried"]:
        lines += ["", f"## Not tried, for want of time: {len(figures['not tried'])}", ""]
        lines += [_join(figures["not tried"])]
    return "\n".join(lines) + "\n"


def _write_faults(types: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for outcome, title in FAULTS.items():
        names = [name for name, row in types.items() if row["outcome"] == outcome]
        if names:
            lines += ["", f"## {title}: {len(names)}", "", _join(names)]
    return lines


def _write_refused(types: Mapping[str, Any]) -> list[str]:
    """The refused types by reason, each with its own message."""
    reasons = {name: row["reason"] for name, row in types.items() if row["outcome"] == "refused"}
    lines = ["", f"## Refused: {len(reasons)}"]
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        group = next((title for title, words in GROUPS.items() if words in reason), OTHERS)
        groups.setdefault(group, []).append(name)
    for title in (*GROUPS, OTHERS):
        if title in groups:
            lines += ["", f"### {title}", "", "| type | torch.export traces it | message |"]
            lines += ["| --- | --- | --- |"]
            for name in groups[title]:
                traced = "yes" if types[name].get("exports") else "no"
                lines.append(f"| {name} | {traced} | {_escape(reasons[name])} |")
    return lines


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _join(names: list[str]) -> str:
    return ", ".join(names) + "." if names else "None."
