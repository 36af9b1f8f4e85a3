"""Build the site: lay out the pages, then let Sphinx write them. Every warning is an error.

python docs/builder/make_site.py            # writes build/site
python docs/builder/make_site.py --serve    # shows what was written
"""

import argparse
import functools
import http.server
import re
import shutil
import sys
from pathlib import Path

from api import MODULES, make_pages, page_of
from links import DOCS, ROOT, ROOT_PAGES, BrokenLinkError, Files, rewrite
from sphinx.cmd.build import main as sphinx_build

SOURCE, SITE = ROOT / "build" / "docs-source", ROOT / "build" / "site"

# The groups of the navigation. A page that stands in none is an error of Sphinx.
NAVIGATION = {
    "Start": ["install", "tutorial", "how-it-works", "from-peft", "when-not"],
    "Guides": [
        "selection",
        "models",
        "trainer",
        "resuming",
        "adapter-files",
        "many-adapters",
        "serving",
        "many-devices",
        "quantised",
        "norms-and-lora",
        "name-maps",
        "plan",
        "paper-plan",
        "architectures",
        "troubleshooting",
    ],
    "Notebooks": ["notebooks/*"],
    "Your model or tool": ["sources", "sources/*"],
    "Command line": ["command-line"],
    "How it is measured": ["benchmarks", "benchmarks/*"],
    "API": ["api/index", *(page_of(name).removesuffix(".md") for name in MODULES)],
    "Project": ["architecture", "compatibility", "project/*"],
}
# Full names are too long for the column.
TITLES = {
    place: f"{name.removeprefix('lntune_jax.')} <{place}>"
    for name, place in ((name, page_of(name).removesuffix(".md")) for name in MODULES)
}


def lay_out(folder: Path) -> None:
    """Write every page and picture of the site's source into a folder, links made to work."""
    files = Files()
    pages = {path.relative_to(DOCS).as_posix(): path for path in DOCS.rglob("*.md")}
    pages |= {place: ROOT / name for name, place in ROOT_PAGES.items() if (ROOT / name).exists()}
    texts = {
        place: rewrite(path.read_text(encoding="utf-8"), path, place, files)
        for place, path in pages.items()
    }
    notebooks = sorted(DOCS.glob("notebooks/*.py"))
    for path in notebooks:
        place = path.relative_to(DOCS).as_posix()
        texts[place] = rewrite(path.read_text(encoding="utf-8"), path, place, files)
    texts |= make_pages()
    texts["index.md"] += make_navigation({place.rpartition(".")[0] for place in texts})
    for place, text in texts.items():
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    for path in (each for kind in ("png", "svg") for each in DOCS.rglob(f"*.{kind}")):
        target = folder / path.relative_to(DOCS)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    files.write(folder)


def make_navigation(pages: set[str]) -> str:
    """Give the groups as Sphinx takes them, after the front page's last line."""
    parts = []
    for caption, entries in NAVIGATION.items():
        names: list[str] = []
        for entry in entries:
            pattern = re.compile(re.escape(entry).replace(r"\*", "[^/]*"))
            found = [each for each in sorted(pages) if pattern.fullmatch(each)]
            if not found and "*" not in entry:
                raise BrokenLinkError(f"the navigation names {entry}, and there is no such page")
            names += found
        if names:
            head = f"```{{toctree}}\n:hidden:\n:caption: {caption}\n"
            lines = [TITLES.get(each, each) for each in dict.fromkeys(names)]
            parts.append("\n".join([head, *lines, "```"]))
    return "\n\n" + "\n\n".join(parts) + "\n"


def run_sphinx(source: Path, site: Path) -> int:
    """Let Sphinx write the site: not 0 where it warned of anything."""
    words = [
        "--fail-on-warning",
        "--keep-going",
        "--quiet",
        "--conf-dir",
        str(Path(__file__).parent),
    ]
    return sphinx_build([*words, "--doctree-dir", f"{site}-doctrees", str(source), str(site)])


def serve(port: int) -> None:
    """Show the site until Ctrl-C."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        print(f"http://127.0.0.1:{port}", file=sys.stderr)
        server.serve_forever()


def main() -> int:
    """Build or show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--serve", action="store_true", help="show what was built")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    if given.serve:
        serve(given.port)
        return 0
    for folder in (SOURCE, SITE):
        shutil.rmtree(folder, ignore_errors=True)
    lay_out(SOURCE)
    return run_sphinx(SOURCE, SITE)


if __name__ == "__main__":
    sys.exit(main())
