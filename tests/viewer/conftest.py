"""The viewer's pages, and a browser to show them in."""

import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any

import pytest

from tests.viewer.pages import Show, watch
from traceformer.analysis.paths.result import TraceResult
from traceformer.viewer.pages import paths_html

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ARGUMENTS = [
    "--no-sandbox",  # of no use to root, under whom containers run
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # no name leads anywhere: nothing can be fetched
]


@pytest.fixture
def bundle(skip_for: Callable[[str], None]) -> Path:
    """The folder of the built pages."""
    folder = Path(str(files("traceformer.viewer"))) / "static"
    if not (folder / "viewer.js").is_file():
        skip_for("pages")
    return folder


@pytest.fixture(scope="session")
def shared_browser() -> "Iterator[Browser | None]":
    chromium = which("chromium") or which("chromium-browser")
    if chromium is None:
        yield None
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def browser(bundle: Path, shared_browser: "Browser | None", skip_for: Callable[[str], None]) -> "Browser":
    """Chromium, without a screen."""
    if shared_browser is None:
        skip_for("chromium")
        raise AssertionError("unreachable")
    return shared_browser


@pytest.fixture
def show(browser: "Browser", tmp_path: Path) -> Iterator[Show]:
    """Opens a result's page from disk; afterwards nothing may have been logged, and nothing but the file asked for."""
    contexts, logged, asked = [], [], []

    def open_page(result: TraceResult, fragment: str = "", **options: Any) -> "Page":
        file = tmp_path / "paths.html"
        file.write_text(paths_html(result), encoding="utf-8")
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # on a machine that does much else
        watch(page, logged, asked)
        page.goto(file.as_uri() + fragment)
        page.wait_for_selector("h1")
        page.wait_for_selector(".node, .tables")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert logged == []
    assert {re.sub("#.*", "", url) for url in asked} <= {(tmp_path / "paths.html").as_uri()}
