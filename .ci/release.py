"""Check that a tag may be released, and print its notes: the tag's section of CHANGELOG.md.

python .ci/release.py v0.1.0 https://github.com/OWNER/NAME
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Compare the tag and the address with what the project says of itself."""
    tag, address = sys.argv[1:]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    faults = []
    if tag != f"v{project['version']}":
        faults.append(f"the tag is {tag}, and pyproject.toml has version {project['version']}")
    if f"\nversion: {project['version']}\n" not in citation:
        faults.append(f"CITATION.cff has not version {project['version']}")
    if project["urls"].get("Repository", "(none)") != address:
        faults.append(
            f"pyproject.toml's project.urls has Repository = "
            f"{project['urls'].get('Repository', '(none)')!r}, and this repository is {address}"
        )
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version = re.escape(project["version"])
    found = re.search(
        rf"^## \[?{version}\b.*?\n(.*?)(?=^## |\Z)", changes, re.MULTILINE | re.DOTALL
    )
    if found is None:
        faults.append(f"CHANGELOG.md has no section {project['version']}")
    if faults or found is None:
        sys.exit("\n".join(faults))
    print(found[1].strip())


if __name__ == "__main__":
    main()
