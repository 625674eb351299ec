"""The widget: Python answers its page, is told what is selected, and can select."""

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import traitlets

from tests.viewer.pages import watch
from tests.viewer.small_runs import write_run
from traceformer.errors import NotFound
from traceformer.store.run import Run
from traceformer.viewer.library import Library
from traceformer.viewer.pages import bundled
from traceformer.viewer.query import Query
from traceformer.viewer.resources import answer
from traceformer.viewer.widget import RunWidget

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [
    pytest.mark.usefixtures("bundle"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of ipywidgets 8
]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(write_run(tmp_path / "run"))


def test_a_selection_is_what_the_page_shows_and_the_other_way_around(run: Run) -> None:
    widget = run.widget(1)
    assert isinstance(widget, RunWidget)
    assert widget.selection == {"example": 1}
    widget.selection = {"example": 0, "attention": "dec.self", "layer": 3, "head": 1}
    shown = {"screen": "overview", "run": "run", "ex": "0", "attn": "dec.self", "layer": "3", "head": "1"}
    assert widget.view == shown
    widget.view = {**shown, "screen": "head", "q": "2"}
    assert widget.selection == {"example": 0, "attention": "dec.self", "layer": 3, "head": 1, "query": 2}
    widget.view = {**shown, "ex": "²"}
    assert widget.selection["example"] == "²"
    widget.view = {**shown, "screen": "head", "q": "2"}
    with pytest.raises(traitlets.TraitError, match="no 'token' in a selection"):
        widget.selection = {"token": 3}
    assert widget.selection["query"] == 2


def test_a_page_is_answered_in_messages(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    widget, sent = run.widget(), list[tuple[Any, Any]]()
    monkeypatch.setattr(widget, "send", lambda content, buffers=None: sent.append((content, buffers)))
    query = {"run": "run", "ex": "0"}
    widget._answer(widget, {"ask": 7, "resource": "example", "query": query}, [])
    widget._answer(widget, {"ask": 8, "resource": "example", "query": {"run": "other", "ex": "0"}}, [])
    (first, [body]), (second, nothing) = sent
    assert first == {"answered": 7}
    assert body == answer(Library.of(run), "example", Query(query)).body
    assert second["answered"] == 8
    assert second["told"]["message"] == "no run 'other'"
    assert nothing is None


def test_without_anywidget_it_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("traceformer.viewer.export.find_spec", lambda name: None)
    with pytest.raises(NotFound, match=r"pip install 'traceformer\[notebook\]'"):
        run.widget()


_NOTEBOOK = """
const state = new Map(), heard = new Map();
const model = {
  get: name => state.get(name),
  set: (name, value) => state.set(name, value),
  save_changes: () => { window.saved = state.get("view"); },
  send: async ({ ask, resource, query }) => {
    const [told, bytes] = await window.answered(resource, query);
    const buffers = bytes ? [new DataView(Uint8Array.from(atob(bytes), c => c.charCodeAt(0)).buffer)] : [];
    heard.get("msg:custom")(told ? { answered: ask, told } : { answered: ask }, buffers);
  },
  on: (event, run) => heard.set(event, run),
  off: event => heard.delete(event),
};
window.open_widget = page => {
  state.set("page", page).set("height", "600px").set("view", { screen: "overview", run: "run", ex: "0" });
  window.end_widget = widget.render({ model, el: document.body });
};
window.select = view => { state.set("view", view); heard.get("change:view")(); };
"""


@pytest.mark.slow
def test_in_a_notebook_clicks_select_and_selections_are_shown(run: Run, browser: "Browser", tmp_path: Path) -> None:
    library = Library.of(run)

    def answered(resource: str, query: dict[str, str]) -> tuple[None, str]:
        return None, base64.b64encode(answer(library, resource, Query(query)).body).decode()

    host = tmp_path / "notebook.html"
    host.write_text("<!doctype html><title>notebook</title><body></body>")
    context = browser.new_context(viewport={"width": 1200, "height": 700})
    page, logged, asked = context.new_page(), list[str](), list[str]()
    watch(page, logged, asked)
    page.expose_function("answered", answered)
    page.goto(host.as_uri())
    module = "data:text/javascript;base64," + base64.b64encode(bundled("widget.js").encode()).decode()
    page.evaluate(f"import({json.dumps(module)}).then(found => {{ window.widget = found.default; }})")
    page.evaluate(f"() => {{{_NOTEBOOK}}}")
    page.evaluate("page => window.open_widget(page)", run.widget().page)
    inside = page.frame_locator("iframe")
    inside.get_by_role("option", name="·cat, position 1").click()
    page.wait_for_function("window.saved?.q === '1'")
    inside.get_by_role("link", name="Head", exact=True).click()
    page.wait_for_function("window.saved?.screen === 'head'")
    page.evaluate("window.select({ screen: 'overview', run: 'run', ex: '1' })")
    inside.get_by_role("option", name="one, position 0").wait_for()
    assert logged == []
    page.evaluate("window.end_widget()")
    context.close()
