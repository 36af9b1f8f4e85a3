"""What makes the build fail, and where links of a page lead on the site."""

import re
import subprocess
import sys
import types

import pytest
from api import MODULES, MissingDocstringError, check_docstrings
from links import DOCS, ROOT, BrokenLinkError, Files, rewrite, slugs
from make_site import NAVIGATION, make_navigation

PAGE = DOCS / "sources" / "nnx.md"


def rewrite_page(text):
    files = Files()
    return rewrite(text, PAGE, "sources/nnx.md", files), files


@pytest.fixture
def no_address(monkeypatch):
    monkeypatch.setattr("links.repository_address", str)


@pytest.fixture
def address(monkeypatch):
    monkeypatch.setattr("links.repository_address", lambda: "https://example.org/us/it")


def test_a_link_to_a_page_stays():
    text = "[maps](../name-maps.md) and [part](../selection.md#paths), [here](#here)"
    assert rewrite_page(text)[0] == text


def test_a_link_to_a_file_is_the_repository_s_address(address):
    text, files = rewrite_page("[loop](../../examples/nnx_loop.py), [all](../../examples)")
    assert text == (
        "[loop](https://example.org/us/it/blob/main/examples/nnx_loop.py), "
        "[all](https://example.org/us/it/tree/main/examples)"
    )
    assert files.found == {}


def test_without_an_address_the_site_shows_the_file_itself(no_address, tmp_path):
    text, files = rewrite_page("[loop](../../examples/nnx_loop.py), [all](../../examples)")
    assert text == "[loop](../files/examples/nnx_loop.py.md), [all](../files/examples.md)"
    files.write(tmp_path)
    shown = (tmp_path / "files/examples/nnx_loop.py.md").read_text()
    assert (ROOT / "examples/nnx_loop.py").read_text().rstrip() in shown
    assert "`nnx_loop.py`" in (tmp_path / "files/examples.md").read_text()


def test_pages_at_the_root_are_pages_of_the_site(no_address):
    assert rewrite_page("[s](../../SECURITY.md)")[0] == "[s](../project/security.md)"


def test_a_link_inside_code_is_no_link():
    text = "```python\nx = f[0](gone.md)\n```\nand `y[0](gone.md)`"
    assert rewrite_page(text)[0] == text


def test_markers_of_scripts_do_not_part_a_paragraph():
    text = "It takes\n<!-- by page.py -->\n0.5\n<!-- end -->\n<!-- a > b -->of it.\n"
    text += "```\n<!-- code -->\n```\n"
    assert rewrite_page(text)[0] == "It takes\n0.5\nof it.\n```\n<!-- code -->\n```\n"


@pytest.mark.parametrize("link", ["gone.md", "../../examples/gone.py", "../../../outside"])
def test_a_link_to_no_file_is_an_error(link):
    with pytest.raises(BrokenLinkError, match="which is not there"):
        rewrite_page(f"[x]({link})")


def test_an_anchor_of_a_page_beside_the_site_is_checked():
    heading = sorted(slugs(ROOT / "README.md"))[0]
    assert rewrite_page(f"[x](../../README.md#{heading})")
    with pytest.raises(BrokenLinkError, match="no such heading"):
        rewrite_page("[x](../../README.md#gone)")


def test_anchors_are_github_s(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# `train --sweep`: many at once\n\n```\n# no heading\n```\n## Same\n## Same\n")
    assert slugs(page) == {"train---sweep-many-at-once", "same", "same-1"}


def run_sphinx(source, site):
    """In a process of its own: Sphinx keeps what it has loaded."""
    code = "import sys, pathlib, make_site as site; "
    code += "sys.exit(site.run_sphinx(*map(pathlib.Path, sys.argv[1:])))"
    words = [sys.executable, "-c", code, str(source), str(site)]
    found = subprocess.run(words, cwd=DOCS / "builder", capture_output=True, text=True, check=False)
    return found.returncode, found.stderr


@pytest.mark.parametrize("link", ["other.md#gone", "gone.md", "#gone"])
def test_sphinx_fails_on_a_broken_link_or_anchor(tmp_path, link):
    source = tmp_path / "source"
    source.mkdir()
    toctree = "```{toctree}\n:hidden:\n\nother\n```"
    index = "# One\n\n[x](other.md#a-heading)\n\n{link}\n\n" + toctree + "\n"
    (source / "other.md").write_text("# Other\n\n## A heading\n\nText.\n")
    (source / "index.md").write_text(index.replace("{link}", ""))
    assert run_sphinx(source, tmp_path / "whole") == (0, "")
    (source / "index.md").write_text(index.replace("{link}", f"[y]({link})"))
    code, said = run_sphinx(source, tmp_path / "broken")
    assert code != 0
    assert "gone" in said


def test_the_navigation_names_pages_that_exist():
    pages = {entry for entries in NAVIGATION.values() for entry in entries}
    assert "sources\n" in make_navigation(pages | {"notebooks/one"})
    with pytest.raises(BrokenLinkError, match="the navigation names tutorial"):
        make_navigation(pages - {"tutorial"})


def test_a_public_name_without_docstring_is_an_error():
    module = types.ModuleType("lntune_jax.made_up", "Says what it is.")

    def said():
        """Says what it does."""

    module.__all__, module.said = ["said"], said
    check_docstrings([module])
    module.__all__, module.silent = ["said", "silent"], lambda: None
    with pytest.raises(MissingDocstringError, match=r"no docstring: lntune_jax\.made_up\.silent$"):
        check_docstrings([module])


def test_every_public_module_has_a_page():
    """Those that the tests of the public surface look at."""
    text = (ROOT / "tests/test_public.py").read_text(encoding="utf-8")
    (named,) = re.findall(r"beside = \((.*?)\)", text, re.DOTALL)
    public = {name.replace("lnt.", "lntune_jax.") for name in re.findall(r"lnt[.\w]+", named)}
    assert len(public) >= 10
    assert public <= set(MODULES)
