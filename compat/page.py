"""The results page, written from what each environment left. Nothing on it is written by hand."""

from __future__ import annotations

from pathlib import Path

HEAD = """# Compatibility

What `make compat` saw: each package below in an environment of its own, its real modules with
random weights, small. For each model, the leaves that were selected are exactly those of the
package's own norm types (a test of its own for each), and `discover_norms` finds the same ones by
tracing; training them lowered the loss and changed no other leaf in one bit; the adapter was saved,
restored into a fresh model, and gave equal outputs, unless the notes say otherwise. Written by
`compat/run.py`; the pinned versions are in `compat/requirements/`. The times are of the tests and
examples: seconds of one processor.

"""


def write_page(target: Path, results: dict[str, dict]) -> None:
    """Writes the page; `results` are those of `compat/results/`, by environment."""
    lines = [
        "| environment | packages | beside | Python | date | result |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        versions = result["versions"]
        own = ", ".join(f"{p} {versions.get(p)}" for p in result["packages"])
        beside = ", ".join(f"{p} {versions.get(p)}" for p in ("jax", "flax", "optax"))
        outcome = result["error"] or f"passed, {result['seconds']} s"
        lines.append(
            f"| {name} | {own} | {beside} | {versions.get('python')} | {result['date']} "
            f"| {outcome.replace('|', ' ')} |"
        )
    lines += ["", "| model | norms | leaves selected | of | loss before | after | restored |"]
    lines.append("|---|---|---|---|---|---|---|")
    for result in results.values():
        lines += [_write_row(line) for line in result["seen"]]
    notes = [f"- {note}" for result in results.values() for note in result["notes"]]
    lines += ["", *notes] if notes else []
    target.write_text(HEAD + "\n".join(lines) + "\n")


def _write_row(line: dict) -> str:
    losses = [f"{line[key]:.3f}" for key in ("before", "after")]
    cells = [line[key] for key in ("model", "norms", "selected", "leaves")]
    return "| " + " | ".join(map(str, [*cells, *losses, line["restored"]])) + " |"
