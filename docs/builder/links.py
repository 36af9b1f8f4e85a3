"""Links from a page to a file that is no page of the site: to the repository, or to a copy here."""

import os
import re
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
# Pages that lie at the repository's root, where GitHub looks for them.
ROOT_PAGES = {
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CODE_OF_CONDUCT.md": "project/code-of-conduct.md",
    "SECURITY.md": "project/security.md",
}
# Shown as a page; other files are copied.
_LANGUAGES = {
    ".py": "python",
    ".sh": "bash",
    ".yaml": "yaml",
    ".toml": "toml",
    ".md": "markdown",
    ".txt": "text",
}
_LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
_CODE = re.compile(r"^(```|~~~)(?:.|\n)*?^\1[^\n]*$|`[^`\n]+`", re.MULTILINE)


class BrokenLinkError(Exception):
    """A page links to a file or a heading that is not there."""


@cache
def repository_address() -> str:
    """The address of the repository by pyproject.toml, empty where it names none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project.get("urls", {}).get("Repository", "").rstrip("/")


@dataclass
class Files:
    """The files that pages link to, by their path in the repository: where the site has them."""

    found: dict[str, str] = field(default_factory=dict)

    def place(self, path: Path) -> str:
        """The place of a file on the site, by its path from the site's root."""
        name = path.relative_to(ROOT).as_posix()
        shown = path.is_dir() or path.suffix in _LANGUAGES
        self.found[name] = f"files/{name}.md" if shown else f"files/{name}"
        return self.found[name]

    def write(self, folder: Path) -> None:
        """Write each of them: code as a page, a folder as a list, everything else as it is."""
        for name, place in list(self.found.items()):
            path, target = ROOT / name, folder / place
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                target.write_text(_list_folder(path), encoding="utf-8")
            elif place.endswith(".md"):
                fence = f"````{{code-block}} {_LANGUAGES[path.suffix]}"
                text = path.read_text(encoding="utf-8").rstrip()
                page = f"---\norphan: true\n---\n# `{name}`\n\n{fence}\n{text}\n````\n"
                target.write_text(page, encoding="utf-8")
            else:
                target.write_bytes(path.read_bytes())


def _list_folder(path: Path) -> str:
    names = sorted(each.name for each in path.iterdir() if not each.name.startswith((".", "__")))
    lines = "\n".join(f"- `{name}`" for name in names)
    return f"---\norphan: true\n---\n# `{path.relative_to(ROOT).as_posix()}/`\n\n{lines}\n"


def rewrite(text: str, page: Path, place: str, files: Files) -> str:
    """Make the links of a page work on the site.

    Args:
        text: The page, in Markdown.
        page: Where it lies in the repository.
        place: Where it lies on the site, by its path from the site's root.
        files: Takes the files that are to be copied.

    Raises:
        BrokenLinkError: A link leads nowhere.
    """
    text = _drop_markers(text)
    code = [match.span() for match in _CODE.finditer(text)]

    def replace(match: re.Match[str]) -> str:
        link = match[1]
        inside = any(start <= match.start() < end for start, end in code)
        if inside or link.startswith(("#", "http://", "https://", "mailto:")):
            return link
        name, _, anchor = link.partition("#")
        target = Path(os.path.normpath(page.parent / name))
        if not target.exists() or not target.is_relative_to(ROOT):
            raise BrokenLinkError(f"{page.relative_to(ROOT)} links to {link}, which is not there")
        end = f"#{anchor}" if anchor else ""
        shown = ROOT_PAGES.get(target.relative_to(ROOT).as_posix())
        if target.is_relative_to(DOCS) and target.suffix in (".md", ".png", ".svg"):
            shown = target.relative_to(DOCS).as_posix()
        if shown is None:
            if anchor and target.suffix == ".md" and anchor not in slugs(target):
                raise BrokenLinkError(f"{page.relative_to(ROOT)} links to {link}: no such heading")
            if repository_address():
                kind = "tree" if target.is_dir() else "blob"
                path = target.relative_to(ROOT).as_posix()
                return f"{repository_address()}/{kind}/main/{path}{end}"
            shown, end = files.place(target), ""
        return os.path.relpath(shown, Path(place).parent) + end

    return _LINK.sub(replace, text)


def _drop_markers(text: str) -> str:
    """Take out comments that begin a line: they would part the paragraph that they stand in."""
    parts = re.split(r"(^(?:```|~~~)(?:.|\n)*?^(?:```|~~~)[^\n]*$)", text, flags=re.M)
    marker = re.compile(r"^<!--[^\n]*?-->\n?", re.M)
    return "".join(
        part if number % 2 else marker.sub("", part) for number, part in enumerate(parts)
    )


def slugs(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = re.sub(r"^(```|~~~)(?:.|\n)*?^\1[^\n]*$", "", page.read_text("utf-8"), flags=re.M)
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", text, re.M):
        plain = re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", heading).lower())
        slug, number = plain.replace(" ", "-"), 0
        while (numbered := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(numbered)
    return found
