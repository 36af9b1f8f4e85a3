"""Write the table of extras in docs/install.md from pyproject.toml.

python docs/extras_table.py          # writes it
python docs/extras_table.py --check  # fails where the page differs
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "install.md"
FOR_DEVELOPERS = ("test", "docs")
BEGIN, END = "<!-- extras: begin -->", "<!-- extras: end -->"


def make_table(project: dict) -> str:
    """Give a row for the core and for each extra: the lowest versions, and the caps."""
    lines = ["| extra | brings |", "|---|---|"]
    for extra, wanted in {"": project["dependencies"], **project["optional-dependencies"]}.items():
        if extra in FOR_DEVELOPERS:
            continue
        brings = ", ".join(describe(line, project["name"]) for line in wanted)
        lines.append(f"| {f'`{extra}`' if extra else 'none: the core'} | {brings} |")
    return "\n".join(lines)


def describe(line: str, own: str) -> str:
    """Say one requirement in words: its lowest version, its cap, or our extras in brackets."""
    if line.startswith(f"{own}["):
        return ", ".join(f"[`{name}`]" for name in re.findall(r"[\w-]+", line[len(own) :]))
    name, floor, cap = re.fullmatch(r"([\w.-]+)>=([\w.]+)(?:,<([\w.]+))?", line).groups()
    return f"{name} {floor}" + (f" (below {cap})" if cap else "")


def main() -> None:
    """Write the page, or compare it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    new = f"{before}{BEGIN}\n{make_table(project)}\n{END}{after}"
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(new, encoding="utf-8")
    elif new != text:
        sys.exit("docs/install.md: run python docs/extras_table.py")


if __name__ == "__main__":
    main()
