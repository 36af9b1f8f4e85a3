"""Print pip's constraints for the lowest version of every dependency that pyproject.toml admits.

python .ci/lowest.py > constraints.txt
"""

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parent.parent / "pyproject.toml"
FLOOR = re.compile(r"(?P<name>[\w.-]+)(\[[\w,]+\])?>=(?P<version>[\w.]+)[^;]*(?P<marker>;.*)?")
# What is not the library's: the tools that test it, which may be the newest.
TOOLS = ("test", "docs", "torchax")


def main() -> None:
    """Turn each floor into a pin."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    wanted = list(project["dependencies"])
    for extra, names in project["optional-dependencies"].items():
        wanted += names if extra not in TOOLS else []
    lines = set()
    for line in wanted:
        if line.startswith(f"{project['name']}["):
            continue  # another extra of ours
        found = FLOOR.fullmatch(line)
        if found is None:
            sys.exit(f"pyproject.toml: {line!r} has no floor; write it as name>=version")
        lines.add(f"{found['name']}=={found['version']}{found['marker'] or ''}")
    print("\n".join(sorted(lines)))


if __name__ == "__main__":
    main()
