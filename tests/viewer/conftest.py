"""The viewer's pages, and a browser to show them in."""

from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

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
