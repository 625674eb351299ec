"""The viewer's pages, and a browser to show them in."""

import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any

import pytest

import traceformer as tf
from tests.viewer.pages import Live, Show, watch
from tests.viewer.stream_data import write_folder
from traceformer.analysis.paths.result import TraceResult
from traceformer.viewer.library import Library
from traceformer.viewer.pages import paths_html
from traceformer.viewer.server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ARGUMENTS = [
    "--no-sandbox",  # of no use to root, under whom containers run
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # no name leads anywhere: nothing can be fetched
]


TEXTS = (
    "The cat sat on the mat. The cat sat on the hat.",
    "Paris is the capital of France, and Rome is the capital of Italy.",
    "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n    return a - b\n",
)


@pytest.fixture(scope="session")
def byte_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs of the built-in model: `byte`, which holds all but hidden states, and `patterns`.

    `patterns` holds the patterns of layers 1 and 3 of one text only. Nothing may be written here: tests share it.
    """
    folder, model = tmp_path_factory.mktemp("runs"), tf.load_model("byte", device="cpu")
    everything = "attn qkv z resid logits embed mlp"
    tf.record(model, [*TEXTS], capture=everything, out=folder / "byte")
    tf.record(model, [TEXTS[0]], capture="attn", layers=[1, 3], out=folder / "patterns")
    return folder


@pytest.fixture(scope="session")
def stream_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, and directions and effects beside it (`stream_data`), in which nothing may be written."""
    folder = tmp_path_factory.mktemp("stream")
    write_folder(folder)
    return folder


@pytest.fixture
def live(browser: "Browser") -> Iterator[Live]:
    """Opens the live page of a library: `live(library, "run=byte&screen=overview")`, with options of the browser.

    Afterwards nothing may have been logged, and nothing asked for but of its server.
    """
    contexts, servers, logged, asked = [], [], [], []

    def open_page(library: Library, fragment: str = "", **options: Any) -> "Page":
        server = Server.start(library)
        servers.append(server)
        context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # on a machine that does much else
        watch(page, logged, asked)
        page.goto(f"{server.address}#{fragment}")
        page.wait_for_selector(".bar")
        return page

    yield open_page
    for closing in (*contexts, *servers):
        closing.close()
    assert logged == []
    assert [url for url in asked if not url.startswith(tuple(server.address for server in servers))] == []


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
