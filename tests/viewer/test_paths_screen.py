"""Paths as a screen of the live page: what is drawn is what was found, and what is changed is searched anew."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import pytest

import traceformer as tf
from tests.viewer.pages import Live, drawn, focused, hash_of, lanes, lit
from tests.viewer.test_payloads import lanes_of
from traceformer.analysis.paths.result import Paths
from traceformer.store.run import Run
from traceformer.viewer.library import Library

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow


@pytest.fixture
def library(byte_runs: Path) -> Library:
    return Library.at(byte_runs)


@pytest.fixture
def run(library: Library) -> Run:
    return library.run("byte")


def until(page: "Page", test: str, argument: object = None) -> None:
    """Waits until a function of the page gives true; its policy forbids Playwright to wait there itself."""
    for _ in range(600):
        if page.evaluate(test, argument):
            return
        page.wait_for_timeout(50)
    raise AssertionError(page.inner_text("#app"))


def wait_for(page: "Page", result: Paths) -> None:
    """Waits until it is a result's lanes that are drawn."""
    until(
        page,
        """([title, values]) => {
            const lanes = [...document.querySelectorAll(".beam:not(.off) > [data-link]")];
            const seen = lanes.map(lane => Number(lane.dataset.value)).sort((a, b) => a - b);
            const near = seen.length === values.length && values.every((value, i) => Math.abs(value - seen[i]) < 1e-6);
            const heading = document.querySelector(".chart h2")?.textContent ?? "";
            return near && heading.endsWith(title) && !document.querySelector(".result.old");
        }""",
        [f" {result.target_pos}?", sorted(lanes_of(result).values())],
    )


def state(page: "Page") -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(hash_of(page)[1:]).items()}


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ("", {}),
        ("&q=30&paths.top_beam=9", {"to": 30, "top_beam": 9}),
        ("&q=40&paths.layer=2&paths.agg_heads=6", {"to": 40, "layer": 2, "agg_heads": 6}),
        ("&q=25&paths.layer=1&paths.agg_heads=none", {"to": 25, "layer": 1, "agg_heads": "none"}),
        ("&q=31&paths.agg_heads=max&paths.exclude_sink=1", {"to": 31, "agg_heads": "max", "exclude_sink": True}),
    ],
)
def test_every_drawn_lane_equals_the_search_result(
    fields: str, options: dict[str, Any], library: Library, run: Run, live: Live
) -> None:
    result = tf.paths(run, 0, **options)
    page = live(library, f"run=byte&ex=0&screen=paths{fields}")
    wait_for(page, result)
    found = lanes(page)
    assert sorted(lane["value"] for lane in found) == pytest.approx(sorted(lanes_of(result).values()), abs=1e-6)
    for index, beam in enumerate(result.beams):
        own = sorted(lane["attention"] for lane in found if lane["beam"] == index)
        assert own == pytest.approx(sorted(beam.edge_attns), abs=1e-6)
    if result.certificate:  # follows when nothing moves
        page.locator(".certificate", has_text="best").wait_for()
        until(page, "() => !document.querySelector('.certificate').textContent.startsWith('Not yet')")
        assert ("Certified" in page.inner_text(".certificate")) == (result.certificate.found == len(result.beams))


def test_what_one_token_drew_on_by_mouse(library: Library, run: Run, live: Live) -> None:
    page = live(library)
    page.get_by_role("link", name="byte", exact=True).click()
    page.get_by_role("navigation", name="Screens").get_by_text("Paths", exact=True).click()
    wait_for(page, tf.paths(run, 0))
    page.locator(".strip [data-token='30']").click()
    result = tf.paths(run, 0, to=30)
    wait_for(page, result)
    assert state(page)["q"] == "30"
    page.locator(".beams li button").first.click()
    assert lit(page) == {0}
    first = result.beams[0]
    assert f"{first.edge_attns[0]:.4f}"[:6] in page.inner_text(".panel")
    page.locator(".panel .links button").first.click()
    way = page.get_by_role("link", name="one of the heads combined here").get_attribute("href") or ""
    place = {name: values[0] for name, values in parse_qs(way[1:]).items()}
    assert (place["screen"], place["attn"], place["layer"]) == ("head", "dec.self", "3")
    assert (place["q"], place["k"]) == (str(first.positions[0]), str(first.positions[1]))


def test_what_one_token_drew_on_by_keyboard_alone(library: Library, run: Run, live: Live) -> None:
    page = live(library, "run=byte&ex=0")
    page.wait_for_selector("nav a")
    names = page.locator("nav a").all_inner_texts()
    press = page.keyboard.press
    press(str(names.index("Paths") + 1))
    last = tf.paths(run, 0)
    wait_for(page, last)
    while page.evaluate("document.activeElement.dataset.token") != str(last.target_pos):
        press("Tab")
    press("ArrowLeft")
    press("ArrowLeft")
    press("Enter")
    result = tf.paths(run, 0, to=last.target_pos - 2)
    wait_for(page, result)
    press("j")
    assert lit(page) == {0}
    press("i")
    assert drawn(page) == {0}
    press("0")
    assert len(drawn(page)) == len(result.beams)
    press("Escape")
    press("t")
    assert page.locator(".tables table").count() == 2
    press("t")
    while focused(page) != "Paths":
        press("Tab")
    press("ArrowRight")
    press("ArrowRight")
    wait_for(page, tf.paths(run, 0, to=last.target_pos - 2, top_beam=7))
    while focused(page) != "BUTTON":  # in fields keys are text
        press("Tab")
    press("?")
    assert page.locator("dialog[open] dd", has_text="go to the diagram").count() == 1


def test_what_is_changed_is_searched_anew_and_the_old_stays_until_then(library: Library, run: Run, live: Live) -> None:
    page = live(library, "run=byte&ex=0&screen=paths&q=30&paths.pick=beam1")
    wait_for(page, tf.paths(run, 0, to=30))
    page.evaluate(
        """() => {
            globalThis.seen = [];
            new MutationObserver(() => seen.push(document.querySelectorAll(".node").length)).observe(
                document.querySelector("#paths"), { subtree: true, childList: true, attributes: true });
        }"""
    )
    page.get_by_label("Layer").select_option("2")
    wait_for(page, tf.paths(run, 0, to=30, layer=2))
    assert "pick=" not in hash_of(page), "it was of the other result"
    page.get_by_label("Heads").select_option("6")
    page.get_by_label("without sinks").check()
    page.get_by_label("end where the text begins").uncheck()
    page.get_by_label("Edges tried per token").fill("9")
    options: dict[str, Any] = {"layer": 2, "agg_heads": 6, "exclude_sink": True, "stop_at_bos": False, "top_k": 9}
    result = tf.paths(run, 0, to=30, **options)
    wait_for(page, result)
    assert min(page.evaluate("seen")) > 0
    page.get_by_role("button", name="Code").click()
    python, shell = page.locator(".code pre").all_inner_texts()
    assert python.endswith(
        f'tf.paths(run, "{run.ids[0]}", to=30, layer=2, top_k=9, agg_heads=6, exclude_sink=True, stop_at_bos=False)'
    )
    assert shell == (
        f"traceformer paths byte --example {run.ids[0]} --target-pos 30 --head L2H6 --top-k 9 --exclude-sink "
        "--pass-bos --html paths.html"
    )
    page.get_by_role("button", name="Reset").click()
    wait_for(page, tf.paths(run, 0, to=30))


def test_what_cannot_be_searched_is_said_beside_the_controls(library: Library, run: Run, live: Live) -> None:
    page = live(library, "run=byte&ex=0&screen=paths")
    result = tf.paths(run, 0)
    wait_for(page, result)
    page.get_by_label("An edge weighs").select_option("value-norm")
    page.get_by_text("the viewer loads none").wait_for()
    assert page.locator(".result.old .node").count() == len(result.sankey.nodes)
    page.get_by_label("An edge weighs").select_option("attention")
    wait_for(page, result)
    assert page.locator(".trouble").count() == 0
    page = live(library, "run=patterns&ex=0&screen=paths")
    wait_for(page, tf.paths(library.run("patterns"), 0, layer=3))
    assert page.locator("option[value=all]:disabled").count() == 1
    page = live(library, "run=patterns&ex=0&screen=paths&paths.layer=all")
    page.get_by_text("stored: 1 3").wait_for()
    page.get_by_label("Layer").select_option("1")
    wait_for(page, tf.paths(library.run("patterns"), 0, layer=1))


def test_the_picture_and_its_numbers_can_be_saved(library: Library, run: Run, live: Live) -> None:
    page = live(library, "run=byte&ex=0&screen=paths&q=30", accept_downloads=True)
    result = tf.paths(run, 0, to=30)
    wait_for(page, result)

    def saved(button: str) -> bytes:
        with page.expect_download() as download:
            page.get_by_role("button", name=button, exact=True).click()
        return Path(download.value.path()).read_bytes()

    rows = saved("CSV").decode().splitlines()
    assert len(rows) == 1 + sum(len(beam.edge_attns) for beam in result.beams)
    assert rows[0].startswith("path,score,share,edge,layer,head,query,query token,key,key token,attention")
    column = rows[0].split(",").index("attention")
    weights = [weight for beam in result.beams for weight in beam.edge_attns]
    assert [float(row.split(",")[column]) for row in rows[1:]] == pytest.approx(weights, abs=1e-12)
    drawing = saved("SVG").decode()
    assert drawing.count("data-link=") == len(lanes(page))
    assert "var(" not in drawing
    assert saved("PNG").startswith(b"\x89PNG")


def test_hostile_tokens_stay_text(tmp_path: Path, live: Live) -> None:
    from tests.viewer.small_runs import HOSTILE, write_run

    write_run(tmp_path / "hostile", [HOSTILE])
    page = live(Library.at(tmp_path), "run=hostile&ex=0&screen=paths&paths.layer=3")
    page.wait_for_selector(".node")
    page.locator(".beams li button").first.click()
    page.get_by_placeholder("Search").fill("<img")
    page.get_by_role("button", name="Table").click()
    assert "<img·src=x" in page.inner_text(".strip")
    assert page.locator("img, #app script").count() == 0
    assert "owned" not in page.title()
    assert json.dumps(page.evaluate("document.documentElement.scrollWidth <= innerWidth")) == "true"
