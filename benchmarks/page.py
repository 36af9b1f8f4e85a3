"""Writes every figure on the pages from benchmarks/results/*.json.

The appendix, docs/benchmarks/appendix-*.md, is written whole: a section for each question of
`_sections.py`, with the first paragraph of its script, the tables of its results file, with what
they were measured, and the command that measures again. On pages that people write, only what
stands between markers is made anew (`_prose.py`).
"""

import ast
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _prose import describe_machine, fill, find_missing, find_pages
from _sections import APPENDICES, BEFORE, Appendix, Section
from _tables import write_tables

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
ROOT = Path(__file__).resolve().parents[1]
HEAD = """\
# Appendix: {title}

Written by `benchmarks/page.py` from the files in `benchmarks/results/`. Times are the medians of
runs that take turns, unless a section says otherwise. FLOPs and bytes are the compiler's.
[The benchmarks](../benchmarks.md) say what matters of it.
"""


class UnrecordedError(Exception):
    """A results file that does not say when, from which commit or under which load it was made."""


def read_results(folder: Path = ROOT) -> dict[str, dict]:
    """The results files by name.

    Raises:
        UnrecordedError: If one lacks its date, commit or load, and is not from before they were
            kept.
    """
    found = {}
    for path in sorted((folder / "benchmarks" / "results").glob("*.json")):
        record = found[path.stem] = json.loads(path.read_text())
        missing = find_missing(record)
        if missing and path.stem not in BEFORE:
            raise UnrecordedError(
                f"benchmarks/results/{path.name} lacks {' and '.join(missing)}: measure it again, "
                "in a Git checkout; write_results in benchmarks/_results.py records them"
            )
    return found


def make_pages(folder: Path = ROOT) -> dict[Path, str]:
    """Every page that has figures, by its path, as it should be."""
    found = read_results(folder)
    pages = {page: fill(page.read_text(encoding="utf-8"), found) for page in find_pages(folder)}
    for appendix in APPENDICES:
        path = folder / "docs" / "benchmarks" / f"appendix-{appendix.name}.md"
        pages[path] = make_appendix(appendix, found, folder)
    if "torchax_types" in found:
        path = folder / "docs" / "benchmarks" / "torchax_types.md"
        pages[path] = make_types_page(found["torchax_types"]["figures"])
    return pages


def make_appendix(appendix: Appendix, found: dict[str, dict], folder: Path = ROOT) -> str:
    """One page of the appendix."""
    lines = [HEAD.format(title=appendix.title)]
    for section in appendix.sections:
        record = found.get(section.name)
        if record is not None:
            lines += [f"\n## {section.title}\n", *_write_section(section, record, folder)]
        elif section.absent:
            lines += [f"\n## {section.title}\n", section.absent]
    return "\n".join(lines).rstrip() + "\n"


def read_question(script: Path) -> str:
    """The first paragraph of a script's docstring; where it is one line, the second too."""
    text = ast.get_docstring(ast.parse(script.read_text())) or ""
    paragraphs = text.split("\n\n")
    return "\n\n".join(paragraphs[: 2 if "\n" not in paragraphs[0] else 1])


def _write_section(section: Section, record: dict, folder: Path) -> list[str]:
    figures, script = record["figures"], section.script or section.name
    if section.keep is not None:
        figures = {name: figures[name] for name in section.keep if name in figures}
    lines = [read_question(folder / "benchmarks" / f"{script}.py")]
    lines += write_tables(figures, section.columns, section.left_out)
    pages = folder / "docs" / "benchmarks"
    if (pages / f"{section.name}.png").exists():
        lines += ["", f"![{section.title}]({section.name}.png)"]
    part = " Some of its rows; all are in the file." if section.keep or section.left_out else ""
    lines += ["", f"{_describe(record)}{part} {_link(section, script, record)}"]
    if (pages / f"{section.name}.md").exists():
        lines += ["", f"What was found, and why: [{section.title}]({section.name}.md)."]
    return lines


def _describe(record: dict) -> str:
    """When, with which packages and on what."""
    versions = {k: v for k, v in record["versions"].items() if k not in ("jaxlib", "numpy")}
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    missing = find_missing(record)
    parts = [record["date"]] if "date" in record else []
    parts += [f"commit {record['commit']}"] if record.get("commit") else []
    parts += [f"Python {record['python']}, {packages}", describe_machine(record["machine"])]
    parts += [_describe_load(record["load"])] if record.get("load") else []
    parts += [f"measured before {' and '.join(missing)} were kept"] if missing else []
    return "; ".join(parts) + "."


def _describe_load(load: dict) -> str:
    words = [] if load["at_start"] is None else [f"load {load['at_start']:.1f} at the start"]
    if load["others"] is not None:
        words.append(f"other programs took {load['others']:.1f} processors meanwhile")
    return ", ".join(words) or "load unknown"


def _link(section: Section, script: str, record: dict) -> str:
    given = shlex.join(record["arguments"]) if "arguments" in record else section.arguments
    command = f"python benchmarks/{script}.py {given}".strip()
    return f"[The figures](../../benchmarks/results/{section.name}.json) are from `{command}`."


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


def main() -> None:
    try:
        pages = make_pages()
    except UnrecordedError as error:
        sys.exit(str(error))
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
    print("written: " + ", ".join(str(path.relative_to(ROOT)) for path in pages))


if __name__ == "__main__":
    main()
