"""The site of docs/: every public name has its entry, and what mkdocs builds is whole and asks no other host."""

import ast
import json
import re
import string
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from shutil import which
from threading import Thread
from typing import Any
from urllib.parse import unquote

import pytest

import traceformer as tf

ROOT = Path(__file__).parents[2]
MODULES = {"compat": "compat/__init__.py", "edits": "questions/edits.py", "figures": "figures/__init__.py"}
"""A public module -> its file."""
ELSEWHERE = {"traceformer.compat.paths_html": "traceformer.viewer.pages.paths_html"}
"""A name that is handed through from above -> the entry that it has."""
ASSIGNED = {
    "traceformer.TraceStore": "Its other name.",
    "traceformer.compat.TraceResult": "Its name in the reverse-attention package.",
    "traceformer.edits.FROM_PROMPT_END": "The last token of a prompt, and all of its response.",
}
"""Entries of names without a docstring of their own -> how what stands below the name begins."""


def entries() -> list[str]:
    """Returns the names that the pages of the reference show."""
    pages = sorted((ROOT / "docs/reference").glob("*.md"))
    return [
        name for page in pages for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]


def exported(path: Path) -> list[str]:
    """Returns the names in a module's `__all__`, without what its import would load."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    lists = [node.value for node in body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
    return ast.literal_eval(lists[0])


def test_every_public_name_has_an_entry_in_the_reference() -> None:
    public = [f"traceformer.{name}" for name in tf.__all__ if name not in (*MODULES, "__version__")]
    for module, file in MODULES.items():
        public += [f"traceformer.{module}.{name}" for name in exported(ROOT / "traceformer" / file)]
    shown = entries()
    assert {ELSEWHERE.get(name, name) for name in public} - set(shown) == set()
    assert len(shown) == len(set(shown))


FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "object": "data"}
NOT_FETCHED = {"canonical", "prev", "next", "alternate"}
"""What a `link` may be without a request for it."""


class Page(HTMLParser):
    """The ids of a page, what it links to, and what a browser fetches for it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = {name: value or "" for name, value in attrs}
        self.ids |= {own[name] for name in ("id", "name") if name in own}
        if tag == "a" and "href" in own:
            self.links.append(own["href"])
        elif tag == "link" and own.get("rel") not in NOT_FETCHED:
            self.fetched.append(own.get("href", ""))
        elif FETCHED.get(tag) in own:
            self.fetched.append(own[FETCHED[tag]])


def test_what_a_page_fetches_is_told_from_what_it_links_to() -> None:
    page = Page(
        '<link rel="stylesheet" href="//fonts.example/a.css"><link rel="next" href="b.html">'
        '<script src="https://cdn.example/d3.js"></script><a href="https://elsewhere.example">e</a><h2 id="here">'
    )
    assert page.fetched == ["//fonts.example/a.css", "https://cdn.example/d3.js"]
    assert (page.links, page.ids) == (["https://elsewhere.example"], {"here"})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does it, without a word of warning."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (built.returncode, re.findall("^(?:WARNING|ERROR).*", built.stderr, re.MULTILINE)) == (0, []), built.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


@pytest.mark.slow
def test_every_page_of_docs_is_a_page_of_the_site(site: Path) -> None:
    made = {path.relative_to(site).with_suffix("") for path in site.rglob("*.html")}
    assert {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")} - made == set()


@pytest.mark.slow
def test_every_link_within_the_site_leads_to_a_page_and_a_place_on_it(pages: dict[Path, Page]) -> None:
    lost = defaultdict(list)
    for path, page in pages.items():
        if path.name == "404.html":  # shown at any address, so that it knows no other page's place
            continue
        for link in [*page.links, *page.fetched]:
            target, _, anchor = unquote(link).partition("#")
            if re.match("[a-z]+:", target):
                continue
            there = (path.parent / target).resolve() if target else path
            if not there.is_file() or (anchor and there in pages and anchor not in pages[there].ids):
                lost[path.name].append(link)
    assert lost == {}


@pytest.mark.slow
def test_no_page_asks_another_host_for_anything(site: Path, pages: dict[Path, Page]) -> None:
    outside = re.compile(r"(?:[a-z]+:)?//")
    asked = {path.name: [link for link in page.fetched if outside.match(link)] for path, page in pages.items()}
    assert {name: links for name, links in asked.items() if links} == {}
    styles = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.css")}
    fetched = {
        path.name: re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//[^)\"']*", text) for path, text in styles.items()
    }
    assert len(styles) > 1
    assert {name: links for name, links in fetched.items() if links} == {}


@pytest.mark.slow
def test_a_browser_finds_what_is_searched_for_and_asks_the_site_alone(
    site: Path, skip_for: Callable[[str], None]
) -> None:
    chromium = which("chromium")
    if chromium is None:
        skip_for("chromium")
    from playwright.sync_api import sync_playwright

    asked: list[str] = []
    said: list[str] = []
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(site))) as server,
        sync_playwright() as playwright,
    ):
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(60_000)  # on a machine that does much else
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.goto(f"{address}reference/questions.html")
        page.keyboard.press("s")
        page.keyboard.type("induction head")
        page.locator("text=Where is an induction head? >> visible=true").first.wait_for()  # else hidden in another tab
        query = page.get_by_role("textbox", name="Search")
        for letter in string.ascii_lowercase:  # each finds all words that it begins
            query.clear()
            page.get_by_text("Type to start searching").wait_for()
            query.press_sequentially(letter)
            page.get_by_text(re.compile("matching documents?$")).wait_for()
        browser.close()
        server.shutdown()
    assert len(asked) > 5
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert said == []


@pytest.mark.slow
def test_pictures_say_in_words_what_they_show(site: Path) -> None:
    pictures = {path: re.findall("<img[^>]*>", path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert sum(map(len, pictures.values())) > 10
    assert {
        path.name: mute
        for path, own in pictures.items()
        if (mute := [p for p in own if not re.search(r'alt="[^"]{9}', p)])
    } == {}


@pytest.mark.slow
def test_the_site_can_be_searched(site: Path) -> None:
    index = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))
    found = {entry["location"] for entry in index["docs"]}
    assert {"index.html", "extract.html", "reference/questions.html#traceformer.heads"} <= found


@pytest.mark.slow
def test_every_entry_of_the_reference_shows_its_docstring(site: Path) -> None:
    shown = {}
    for path in (site / "reference").glob("*.html"):
        for part in re.split(r'(?=<h\d id="traceformer)', path.read_text(encoding="utf-8"))[1:]:
            name = re.match(r'<h\d id="([^"]+)"', part)
            assert name
            shown[name[1]] = plain(re.sub("<[^>]*>", "", part))
    missing = {name for name in entries() if first_line(name) not in shown.get(name, "")}
    assert missing == set()


def first_line(name: str) -> str:
    """Returns how the docstring of an entry begins, up to its first markup."""
    text = ASSIGNED.get(name) or resolved(name).__doc__
    assert text
    return plain(re.split(r"[`*_<>&]", text.strip().partition("\n")[0])[0])


def plain(text: str) -> str:
    return " ".join(text.split())


def resolved(name: str) -> Any:
    """Returns the object of an entry, whose name leads through modules and their names."""
    module, _, attribute = name.rpartition(".")
    if module == "traceformer.edits":
        return getattr(tf.edits, attribute)
    return getattr(import_module(module), attribute)
