"""The site as `make docs` has built it, served here, and a headless Chromium that reads it."""

import functools
import http.server
import shutil
import sys
import threading

import pytest
from playwright.sync_api import sync_playwright

from tests.support.paths import ROOT

sys.path.insert(0, str(ROOT / "docs" / "builder"))
SITE = ROOT / "build" / "site"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def address():
    """Where the site is: `http://127.0.0.1:port`, which browsers let use the clipboard."""
    assert (SITE / "index.html").exists(), "there is no site: run `make docs` first"
    handler = functools.partial(_Handler, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def browser():
    """Chromium, as the system has it."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    assert program, f"there is no Chromium: install one of {', '.join(PROGRAMS)}"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, address):
    """A fresh window without network: `page.asked` are the foreign addresses, `page.complaints`
    what the console and failed requests say.
    """
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
    page = context.new_page()
    page.asked, page.complaints = [], []

    def route(asked):
        if asked.request.url.startswith(address):
            asked.continue_()
        else:
            page.asked.append(asked.request.url)
            asked.abort()

    context.route("**/*", route)
    page.on("console", lambda each: each.type == "error" and page.complaints.append(each.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on(
        "response",
        lambda each: each.status >= 400 and page.complaints.append(f"{each.status} {each.url}"),
    )
    yield page
    context.close()
