"""Every page of the site in a browser: no complaint, nothing from elsewhere, a phone's width."""

import pytest

from tests.support.paths import ROOT

SITE = ROOT / "build" / "site"
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
PAGES = [name for name in PAGES if not name.startswith(("_static/", "_downloads/"))]
BROKEN = "[...document.images].filter(each => !each.naturalWidth).map(each => each.src)"
# What makes the page wider than the window.
TOO_WIDE = """() => {
    const width = window.innerWidth;
    if (document.scrollingElement.scrollWidth <= width) return [];
    return [...document.querySelectorAll('.bd-main *, header *')]
        .filter(each => each.getBoundingClientRect().right > width + 1)
        .map(each => each.tagName + '.' + each.className).slice(0, 5)
        .concat([document.scrollingElement.scrollWidth]);
}"""


def test_there_are_pages_to_look_at():
    assert {"index.html", "selection.html", "search.html", "api/lntune_jax.html"} <= set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_whole_and_fits_a_phone(page, address, name):
    page.goto(f"{address}/{name}", wait_until="networkidle")
    assert page.complaints == []
    assert page.asked == []
    assert page.evaluate(BROKEN) == []
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate(TOO_WIDE) == []


@pytest.mark.parametrize("name", ["partition_params", "estimate_memory"])
def test_search_finds_a_function(page, address, name):
    page.goto(f"{address}/index.html")
    page.keyboard.press("Control+K")
    page.keyboard.type(name)
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html**")
    hit = page.locator("#search-results li a", has_text=name).first
    hit.wait_for()
    assert "api/" in hit.get_attribute("href")
    hit.click()
    page.wait_for_url("**/api/**")
    assert name in page.locator("dt.sig:target, :target").first.inner_text()
    assert page.complaints == []


def test_code_is_copied_as_it_is_written(page, address):
    page.goto(f"{address}/index.html", wait_until="networkidle")
    block = page.locator("div.highlight-python").first
    block.hover()
    block.locator("button.copybtn").click()
    page.wait_for_function("navigator.clipboard.readText().then(text => text.length > 0)")
    copied = page.evaluate("navigator.clipboard.readText()")
    source = (SITE.parent / "docs-source/index.md").read_text(encoding="utf-8")
    assert f"```python\n{copied.rstrip()}\n```" in source


def test_a_doctest_is_copied_without_its_prompts(page, address):
    page.goto(f"{address}/api/lntune_jax.html", wait_until="networkidle")
    block = page.locator("div.highlight", has_text=">>>").first
    block.hover()
    block.locator("button.copybtn").click()
    page.wait_for_function("navigator.clipboard.readText().then(text => text.length > 0)")
    assert ">>>" not in page.evaluate("navigator.clipboard.readText()")


def test_dark_mode_changes_the_colours_and_is_kept(page, address):
    page.goto(f"{address}/index.html", wait_until="networkidle")
    seen = {}
    for mode in ("light", "dark"):
        page.locator("button.theme-switch-button:visible").click()
        page.locator(f"button.theme-change-button[data-mode={mode}]:visible").click()
        assert page.evaluate("document.documentElement.dataset.theme") == mode
        seen[mode] = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert seen["light"] != seen["dark"]
    page.goto(f"{address}/selection.html")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_a_phone_reaches_every_group_of_the_navigation(page, address):
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{address}/index.html", wait_until="networkidle")
    page.locator("button.primary-toggle:visible").click()
    groups = page.locator(".bd-sidebar-primary, dialog[open]").first
    groups.wait_for(state="visible")
    text = groups.inner_text()
    for group in ("Start", "Guides", "Your model or tool", "Command line", "API", "Project"):
        assert group.lower() in text.lower(), group
