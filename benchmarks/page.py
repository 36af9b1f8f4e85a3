"""Makes docs/benchmarks.md, and the README's table, from benchmarks/results/*.json.

Nothing on the page is written by hand.

A section for each question, in the order of `_sections.py`: the first paragraph of its script, the
tables of its results file, with what they were measured, and the command that measures again.
"""

import ast
import json
import shlex
from pathlib import Path

from _opening import write_opening, write_short
from _sections import SECTIONS, Section
from _tables import write_tables
from _torchax_page import make_types_page

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
TYPES_PAGE = ROOT / "docs" / "benchmarks" / "torchax_types.md"
README = ROOT / "README.md"
HEAD = """# Benchmarks

What LayerNorm tuning costs, beside what one would use in its place. Written by
`benchmarks/page.py` from the files in `benchmarks/results/`; `make bench` measures again what takes
minutes and writes this page anew, `make bench-long` the rest. Times are the medians of runs that
take turns, unless a section says otherwise, and ratios where two things are compared: the machines
are small and shared, so a ratio says more than a time. FLOPs and bytes are the compiler's, and the
same on any machine of a kind.
"""


START, END = "<!-- by benchmarks/page.py -->", "<!-- end -->"


def make_readme(folder: Path = ROOT) -> str:
    """The README with its table made anew."""
    before, _, rest = (folder / "README.md").read_text().partition(START)
    table = "\n".join(write_short(read_results(folder)))
    return f"{before}{START}\n\n{table}\n\n{END}{rest.partition(END)[2]}"


def make_page(folder: Path = ROOT) -> str:
    """The page's text, from the results in a checkout."""
    found = read_results(folder)
    lines = [HEAD, *write_opening(found)]
    for section in SECTIONS:
        record = found.get(section.name)
        if record is not None:
            lines += [f"\n## {section.title}\n", *_write_section(section, record, folder)]
        elif section.absent:
            lines += [f"\n## {section.title}\n", section.absent]
    lines += _link_rest(folder)
    return "\n".join(lines).rstrip() + "\n"


def read_results(folder: Path = ROOT) -> dict[str, dict]:
    """The results files by name."""
    paths = sorted((folder / "benchmarks" / "results").glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in paths}


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
    picture = folder / "docs" / "benchmarks" / f"{section.name}.png"
    if picture.exists():
        lines += ["", f"![{section.title}](benchmarks/{section.name}.png)"]
    selected = section.keep or section.left_out
    part = " Some of its rows; all are in the file." if selected else ""
    lines += ["", f"{_describe(record)}{part} {_link(section, script, record)}"]
    prose = folder / "docs" / "benchmarks" / f"{section.name}.md"
    if prose.exists():
        lines += ["", f"What was found, and why: [{section.title}](benchmarks/{prose.name})."]
    return lines


def _link_rest(folder: Path) -> list[str]:
    """Links to what was written about several questions: pages named after no section."""
    named = {section.name for section in SECTIONS}
    pages = sorted((folder / "docs" / "benchmarks").glob("*.md"))
    links = [
        f"- [{page.read_text().splitlines()[0].lstrip('# ')}](benchmarks/{page.name})"
        for page in pages
        if page.stem not in named
    ]
    return ["\n## What was found\n", *links] if links else []


def _describe(record: dict) -> str:
    """When, with which packages and on what."""
    versions, machine = dict(record["versions"]), record["machine"]
    versions.pop("jaxlib", None)
    versions.pop("numpy", None)
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    date = f"{record['date']}; " if "date" in record else ""
    cpu = machine.get("cpu_model") or machine["cpu"]
    held = f", {machine['memory_gb']} GB" if machine.get("memory_gb") else ""
    return f"{date}Python {record['python']}, {packages}; {machine['cores']} cores of {cpu}{held}."


def _link(section: Section, script: str, record: dict) -> str:
    given = shlex.join(record["arguments"]) if "arguments" in record else section.arguments
    command = f"python benchmarks/{script}.py {given}".strip()
    return f"[The figures](../benchmarks/results/{section.name}.json) are from `{command}`."


def main() -> None:
    record = read_results().get("torchax_types")
    if record:  # before the page that links to it
        TYPES_PAGE.write_text(make_types_page(record["figures"]))
    PAGE.write_text(make_page())
    README.write_text(make_readme())
    print(f"written to docs/{PAGE.name} and {README.name}")


if __name__ == "__main__":
    main()
