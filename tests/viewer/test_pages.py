"""The single file: its size, its policy, and that nothing in a text can leave its place."""

import base64
import gzip
import hashlib
import html
import json
import re
from pathlib import Path

import pytest
from safetensors.numpy import load

from tests.viewer import traces
from traceformer.errors import NotFound
from traceformer.viewer import pages
from traceformer.viewer.pages import paths_html
from traceformer.viewer.path_payloads import paths_payload

pytestmark = pytest.mark.usefixtures("bundle")


def test_the_page_carries_the_payload_unchanged() -> None:
    result = traces.one_layer()
    found = re.search(r'<script type="application/gzip" id="data">([A-Za-z0-9+/=]+)</script>', paths_html(result))
    assert found
    carried = load(gzip.decompress(base64.b64decode(found[1])))
    assert json.loads(carried["paths"].tobytes()) == paths_payload(result.to_json())


@pytest.mark.parametrize("make", traces.TRACES.values(), ids=traces.TRACES)
def test_a_page_is_at_most_250_kb(make: object) -> None:
    assert len(paths_html(make()).encode()) <= 250_000  # pyright: ignore


def test_the_policy_allows_the_one_script_and_the_one_style_and_nothing_else() -> None:
    page = paths_html(traces.one_layer())
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy
    rules = dict(rule.split(" ", 1) for rule in policy[1].split("; "))
    bodies = {"script-src": r"<script>(.*?)</script>", "style-src": r"<style>(.*?)</style>"}
    for rule, pattern in bodies.items():
        (body,) = re.findall(pattern, page, re.DOTALL)
        assert rules.pop(rule) == f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'"
    closed = dict.fromkeys(("default-src", "connect-src", "base-uri", "form-action"), "'none'")
    assert rules == {**closed, "img-src": "data: blob:"}
    assert "\r" not in page, "a parser turns it into a line feed, and the hashes no longer fit"


def test_the_page_names_no_address() -> None:
    page = paths_html(traces.one_layer())
    without_licences = re.sub(r"/\*!.*?\*/", "", page, flags=re.DOTALL)
    assert set(re.findall(r"https?://[\w.]+", without_licences)) <= {"http://www.w3.org"}  # names of XML, not places


def test_hostile_tokens_occur_nowhere_as_they_are() -> None:
    page = paths_html(traces.one_layer([*traces.HOSTILE, "<title></title><b>"]))
    assert page.count("<script") == page.count("</script>") == 2
    assert "onerror" not in page.replace(".onerror", "")
    assert page.count("<title>") == 1
    assert html.escape("<title></title><b>") in page


def test_licences_of_what_is_bundled_are_in_the_page() -> None:
    page = paths_html(traces.one_layer())
    for notice in ("Mike Bostock", "Jason Miller"):  # d3, preact
        assert notice in page


def test_the_same_result_gives_the_same_bytes() -> None:
    assert paths_html(traces.one_layer()) == paths_html(traces.one_layer())


def test_without_a_bundle_the_error_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "files", lambda _: tmp_path)
    with pytest.raises(NotFound, match="make web"):
        paths_html(traces.one_layer())


def test_a_notebook_is_given_the_page_in_a_frame_of_its_own() -> None:
    result = traces.one_layer()
    shown = result._repr_html_()
    frame = re.fullmatch(r'<iframe srcdoc="([^"]*)"[^>]*sandbox="allow-scripts allow-downloads"[^>]*></iframe>', shown)
    assert frame
    assert html.unescape(frame[1]) == paths_html(result)
