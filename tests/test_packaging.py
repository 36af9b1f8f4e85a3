"""What people install and where they report: pages, workflows and metadata say the same."""

import re
import subprocess
import sys
import tomllib

import lntune_jax as lnt
from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRA = re.compile(r"lntune-jax\[([\w,]+)\]")


def test_the_table_of_extras_is_the_project_s():
    command = [sys.executable, ROOT / "docs/extras_table.py", "--check"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")


def test_every_extra_that_is_named_exists():
    """In pages, messages and docstrings: an extra is what a reader types."""
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("lntune_jax/**/*.py")]
    named = {
        (extra, path.relative_to(ROOT))
        for path in files
        for names in EXTRA.findall(path.read_text())
        for extra in names.split(",")
    }
    assert len(named) > 10
    known = PROJECT["optional-dependencies"]
    assert [place for place in named if place[0] not in known] == []


def test_the_install_page_names_every_extra_a_user_wants():
    page = (ROOT / "docs/install.md").read_text().partition("## JAX on")[0]
    named = {extra for names in EXTRA.findall(page) for extra in names.split(",")}
    assert named == PROJECT["optional-dependencies"].keys() - {"demo", "test"}


def test_one_version():
    assert lnt.__version__ == PROJECT["version"]
