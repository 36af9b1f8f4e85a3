"""The results page, written from what each environment left. Nothing on it is written by hand."""

from __future__ import annotations

from pathlib import Path

HEAD = """# Compatibility

`make compat` installs each package in an environment of its own, runs its own model classes with
small random weights, and writes this page. For every model below, unless a note says otherwise:

- the selected leaves are exactly those of the package's own norm types, and `discover_norms` finds
  the same;
- training lowers the loss and changes no other leaf in any bit;
- the adapter, saved and restored into a fresh model, gives equal outputs.

"""


def write_page(target: Path, results: dict[str, dict]) -> None:
    """Writes the page; `results` are those of `compat/results/`, by environment."""
    lines = ["| packages | tested with | result |", "|---|---|---|"]
    for result in results.values():
        versions = result["versions"]
        own = ", ".join(f"{p} {versions.get(p)}" for p in result["packages"])
        beside = ", ".join(f"{p} {versions.get(p)}" for p in ("jax", "flax", "optax", "python"))
        models = ", ".join(map(_name, result["seen"]))
        outcome = result["error"] or f"passed: {models}"
        lines.append(f"| {own} | {beside}; {result['date']} | {outcome.replace('|', ' ')} |")
    notes = [f"- {note}" for result in results.values() for note in result["notes"]]
    lines += ["", *notes] if notes else []
    target.write_text(HEAD + "\n".join(lines) + "\n")


def _name(line: dict) -> str:
    restored = "" if line["restored"] == "equal" else f" (outputs {line['restored']})"
    return f"`{line['model']}`{restored}"
