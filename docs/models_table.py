"""Write the tables of architectures in README.md and docs/models.md from the registry.

python docs/models_table.py          # writes them
python docs/models_table.py --check  # fails where a page differs
"""

import sys
from pathlib import Path

from lntune_jax.models.families import FAMILIES

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- models: begin -->", "<!-- models: end -->"


def make_table() -> str:
    """Give a row for each `model_type`: its tasks, and what GGUF files call it."""
    lines = ["| `model_type` | tasks beside the bare model | GGUF |", "|---|---|---|"]
    windowed = {row.gguf.windowed: row.gguf.name for row in FAMILIES.values() if row.gguf}
    for name, row in FAMILIES.items():
        tasks = ", ".join(f"`{task}`" for task in row.kind.tasks if task)
        files = row.gguf.name if row.gguf else windowed.get(name)
        lines.append(f"| `{name}` | {tasks} | {f'`{files}`' if files else ''} |")
    return "\n".join(lines)


def make_list() -> str:
    """Give all of them in one line."""
    return ", ".join(f"`{name}`" for name in FAMILIES)


PAGES = {"README.md": make_list, "docs/models.md": make_table}


def main() -> None:
    """Write the pages, or compare them."""
    stale = []
    for name, make in PAGES.items():
        page = ROOT / name
        text = page.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        new = f"{before}{BEGIN}\n{make()}\n{END}{after}"
        if new != text:
            stale.append(name)
        if "--check" not in sys.argv[1:]:
            page.write_text(new, encoding="utf-8")
    if stale and "--check" in sys.argv[1:]:
        sys.exit(f"{', '.join(stale)}: run python docs/models_table.py")


if __name__ == "__main__":
    main()
