"""The paths page in a real browser: that what is drawn is what was found, in every place where a page can be."""

import json
import math
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.viewer import traces
from tests.viewer.test_payloads import lanes_of
from traceformer.analysis.paths.result import TraceResult
from traceformer.viewer.export import paths_html

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.slow

Show = Callable[..., "Page"]


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


def watch(page: "Page", logged: list[str], asked: list[str]) -> None:
    page.on("console", lambda message: logged.append(message.text))
    page.on("pageerror", lambda error: logged.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith("data:") else asked.append(request.url))


def lanes(page: "Page") -> list[dict[str, Any]]:
    """Returns every lane that is drawn: what it says of itself, and how high its outline is at each end."""
    return page.eval_on_selector_all(
        ".beam:not(.off) > [data-link]",
        """drawn => drawn.map(lane => {
            const numbers = lane.getAttribute("d").match(/-?[\\d.]+/g).map(Number);
            const half = numbers.length / 2;
            return {
                link: Number(lane.dataset.link),
                beam: Number(lane.dataset.beam),
                value: Number(lane.dataset.value),
                attention: Number(lane.dataset.attention),
                heights: [numbers[numbers.length - 1] - numbers[1], numbers[half + 1] - numbers[half - 1]],
            };
        })""",
    )


def lit(page: "Page") -> set[int]:
    """Returns the beams that stand out."""
    return set(page.eval_on_selector_all(".beam.lit > .lane", "lanes => lanes.map(lane => Number(lane.dataset.beam))"))


def drawn(page: "Page") -> set[int]:
    return {lane["beam"] for lane in lanes(page)}


def node(page: "Page", position: int) -> "Locator":
    return page.locator(f".node[aria-label*='position {position},']").first


def through(result: TraceResult, position: int) -> set[int]:
    return {index for index, beam in enumerate(result.beams) if position in beam.positions}


def hash_of(page: "Page") -> str:
    return page.evaluate("location.hash")


def focused(page: "Page") -> str:
    return page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.tagName")


@pytest.mark.parametrize("make", traces.TRACES.values(), ids=traces.TRACES)
def test_every_drawn_lane_equals_the_search_result(make: Callable[[], TraceResult], show: Show) -> None:
    result = make()
    page = show(result)
    scale = float(page.get_attribute(".figure svg", "data-scale") or "nan")
    found = lanes(page)
    expected = lanes_of(result)
    assert sorted(lane["value"] for lane in found) == pytest.approx(sorted(expected.values()), abs=1e-6)
    for index, beam in enumerate(result.beams):
        own = sorted(lane["attention"] for lane in found if lane["beam"] == index)
        assert own == pytest.approx(sorted(beam.edge_attns), abs=1e-6)
    for lane in found:
        expected_height = max(lane["value"] * scale, 1)
        assert lane["heights"] == pytest.approx([expected_height] * 2, abs=0.02)  # written with two decimals


@pytest.mark.parametrize("make", traces.TRACES.values(), ids=traces.TRACES)
def test_every_node_has_a_name_and_ribbons_end_at_their_nodes(make: Callable[[], TraceResult], show: Show) -> None:
    result = make()
    page = show(result)
    names = page.eval_on_selector_all(".node", "nodes => nodes.map(node => node.getAttribute('aria-label'))")
    assert len(names) == len(result.sankey.nodes)
    for token, name in zip(result.sankey.nodes, names, strict=True):
        assert f"position {token.position}" in name
    assert page.locator(".node[tabindex='0']").count() == 1
    ends = page.evaluate(
        """() => {
            return [...document.querySelectorAll(".lane")].map(lane => {
                const numbers = lane.getAttribute("d").match(/-?[\\d.]+/g).map(Number);
                return [numbers[0], numbers[numbers.length / 2 - 2]];
            });
        }"""
    )
    lefts = page.eval_on_selector_all(
        ".node", "nodes => nodes.map(node => Number(/\\(([-\\d.]+)/.exec(node.getAttribute('transform'))[1]))"
    )
    width = 10
    for start, stop in ends:
        assert min(abs(left + width - start) for left in lefts) < 0.02
        assert min(abs(left - stop) for left in lefts) < 0.02


def test_a_click_on_a_node_lights_every_whole_path_through_it(show: Show) -> None:
    result = traces.one_layer()
    page = show(result)
    for position in sorted({position for beam in result.beams for position in beam.positions}):
        node(page, position).click()
        assert lit(page) == through(result, position)
        bright = page.eval_on_selector_all(".node.lit", "nodes => nodes.map(node => node.getAttribute('aria-label'))")
        expected = {p for index in through(result, position) for p in result.beams[index].positions}
        assert {int(re.search(r"position (\d+)", name)[1]) for name in bright} == expected  # pyright: ignore
    page.keyboard.press("Escape")
    page.mouse.move(5, 400)
    assert lit(page) == set()


def test_a_click_on_a_shared_link_lights_all_of_its_beams_in_their_own_colours(show: Show) -> None:
    result = traces.one_layer()
    page = show(result)
    shared = max(lanes(page), key=lambda lane: sum(other["link"] == lane["link"] for other in lanes(page)))
    page.locator(f".lane[data-link='{shared['link']}'][data-beam='{shared['beam']}']").click(force=True)
    beams = {lane["beam"] for lane in lanes(page) if lane["link"] == shared["link"]}
    assert len(beams) > 1
    assert lit(page) == beams
    colours = page.eval_on_selector_all(
        f".lane[data-link='{shared['link']}']", "lanes => lanes.map(lane => getComputedStyle(lane).fill)"
    )
    assert len(set(colours)) == len(beams)
    said = page.inner_text(".panel")
    assert f"{shared['attention']:.4f}" in said
    assert f"{sum(lane['value'] for lane in lanes(page) if lane['link'] == shared['link']):.4f}"[:5] in said


def test_the_panel_makes_a_score_step_by_step(show: Show) -> None:
    result = traces.one_layer()
    page = show(result)
    page.locator(".beams li button").nth(1).click()
    beam, said = result.beams[1], page.inner_text(".panel").replace("−", "-")
    assert " + ".join(f"ln {value:.4g}" for value in [beam.edge_attns[0]]) in said
    assert f"= {sum(math.log(value) for value in beam.edge_attns):.3f}" in said
    assert f"÷ {len(beam.edge_attns)} (avg_logprob over {len(beam.edge_attns)} edges)" in said
    assert f"= {beam.score_norm:.4f}"[:7] in said


def test_the_filter_draws_the_beams_that_are_chosen(show: Show) -> None:
    result = traces.one_layer()
    page = show(result)
    everything = set(range(len(result.beams)))
    assert drawn(page) == everything
    page.select_option(".beams select", "2")
    assert drawn(page) == {2}
    assert page.locator(".node:visible").count() == len(result.beams[2].positions)
    assert page.locator(".lane:visible").count() == len(result.beams[2].edge_attns)
    assert page.locator(".lane").count() == sum(len(beam.edge_attns) for beam in result.beams), "hidden, not unmade"
    page.get_by_label("Draw path A").check()
    assert drawn(page) == {0, 2}
    page.select_option(".beams select", "all")
    assert drawn(page) == everything
    page.get_by_label("Draw path B").uncheck()
    assert drawn(page) == everything - {1}


def test_hovering_a_path_in_the_list_lights_it_in_the_diagram_and_the_other_way_round(show: Show) -> None:
    page = show(traces.one_layer())
    page.locator(".beams li").nth(3).hover()
    assert lit(page) == {3}
    node(page, len(traces.TEXT) - 1).hover()
    assert page.locator(".beams li.dim").count() == 0
    page.mouse.move(5, 400)
    assert lit(page) == set()


def test_the_state_is_in_the_address_and_comes_back_from_it(show: Show) -> None:
    result = traces.each_head()
    page = show(result)
    page.select_option("[aria-label=Trace]", "1")
    page.select_option(".beams select", "1")
    page.get_by_placeholder("Search").fill("fox")
    page.locator(".beams li button").nth(1).click()
    page.get_by_text("Theme: auto").click()
    page.get_by_text("Tables").click()
    state = hash_of(page)
    assert dict(part.split("=") for part in state[1:].split("&")) == {
        "trace": "1",
        "beams": "B",
        "find": "fox",
        "pick": "beam1",
        "theme": "light",
        "view": "table",
    }
    before = page.inner_text("#app")
    again = show(result, state)
    assert again.inner_text("#app") == before
    assert again.evaluate("document.documentElement.dataset.theme") == "light"


def test_search_finds_by_token_position_layer_and_head(show: Show) -> None:
    result = traces.all_layers()
    page = show(result)
    search = page.get_by_placeholder("Search")

    def found() -> set[str]:
        return set(page.eval_on_selector_all(".node.found", "nodes => nodes.map(n => n.getAttribute('aria-label'))"))

    last = len(traces.TEXT) - 1
    search.fill("comes")
    assert found() == {name for name in found() if name.startswith("·comes,")} != set()
    search.fill(str(last))
    assert found() == {name for name in found() if f"position {last}," in name} != set()
    search.fill("L3")
    assert found() == {name for name in found() if ", L3," in name} != set()
    heads = traces.each_head()
    page = show(heads, "#find=H3")
    expected = {index for index, beam in enumerate(heads.beams) if beam.heads and 3 in beam.heads}
    page.get_by_text("Draw only these").click()
    assert drawn(page) == expected


def test_everything_can_be_done_without_a_mouse(show: Show) -> None:
    result = traces.one_layer()
    page = show(result)
    last = len(traces.TEXT) - 1
    press = page.keyboard.press
    press("g")
    assert f"target, position {last}" in focused(page)
    strongest = max((beam.edge_attns[0], beam.positions[1]) for beam in result.beams)[1]
    press("ArrowLeft")
    assert f"position {strongest}," in focused(page)
    press("Enter")
    assert lit(page) == through(result, strongest)
    press("ArrowRight")
    onward = [link for link in result.sankey.links if link.source.endswith(f"_P{strongest}")]
    looking = max(onward, key=lambda link: link.attention).target
    assert f"position {looking.partition('_P')[2]}," in focused(page)
    press("ArrowUp")
    press("ArrowDown")
    press("Escape")
    assert lit(page) == set()
    press("j")
    assert lit(page) == {0}
    press("k")
    assert lit(page) == {len(result.beams) - 1}
    press("o")
    assert drawn(page) == {len(result.beams) - 1}
    press("0")
    assert len(drawn(page)) == len(result.beams)
    press("2")
    assert drawn(page) == {1}
    press("g")
    for key in ("ArrowUp", "ArrowUp", "ArrowLeft", "ArrowDown", "ArrowDown", "ArrowDown"):
        press(key)
        assert int(re.search(r"position (\d+)", focused(page))[1]) in result.beams[1].positions  # pyright: ignore
    press("Escape")
    press("Escape")
    assert len(drawn(page)) == len(result.beams)
    press("/")
    page.keyboard.type("the")
    assert page.locator(".token.found").count() == sum("the" in text.lower() for text in traces.TEXT)
    press("Escape")
    press("n")
    assert page.locator(".node.picked").count() == 1
    before = page.get_attribute(".canvas", "transform")
    press("+")
    assert page.get_attribute(".canvas", "transform") != before
    press("f")
    assert page.get_attribute(".canvas", "transform") == before
    press("d")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    press("t")
    assert page.locator(".tables table").count() == 2
    press("t")
    assert page.locator(".figure svg").count() == 1
    press("?")
    assert page.locator("dialog[open] kbd").count() > 15
    press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert page.locator(".node.picked").count() == 1, "Escape closed the list and nothing else"


def test_tab_reaches_every_control_and_the_focus_is_seen(show: Show) -> None:
    page = show(traces.one_layer())
    reached, unseen = set(), []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(focused(page))
        seen = page.evaluate(
            """() => {
                const focus = document.activeElement;
                const outline = getComputedStyle(focus).outlineStyle !== "none";
                const ring = focus.querySelector?.(".reach");
                return focus === document.body || outline || (ring && getComputedStyle(ring).stroke !== "none");
            }"""
        )
        if not seen:
            unseen.append(focused(page))
    assert {"Search tokens", "Keys", "Zoom in", "Zoom out", "Draw path A", "Paths that are drawn"} <= reached
    assert any("target, position" in name for name in reached)
    assert unseen == []


def test_tokens_that_are_markup_are_shown_as_text(show: Show) -> None:
    texts = [*traces.HOSTILE, "<b>bold</b>"]
    page = show(traces.one_layer(texts))
    page.get_by_placeholder("Search").fill("<img")
    for number in range(3):
        page.keyboard.press("Escape") if number else None
        page.locator(".beams li button").nth(number).click()
    page.locator(".node").first.hover()
    page.keyboard.press("t")
    shown = page.inner_text(".strip")
    assert "<img·src=x·onerror=document.title='hit'>" in shown
    assert "</script><script>" in shown
    assert "⟨202E⟩gnirts⟨202C⟩" in shown
    assert "⟨0000⟩⟨001B⟩[31m" in shown
    assert page.locator("img, b >> text=bold, #app script, svg[onload]").count() == 0
    assert page.title() == "Which tokens led to <b>bold</b> 7?"


def test_parts_of_a_character_are_shown_as_bytes_and_say_whose_they_are(show: Show) -> None:
    parts = ["\\xe2", "\\x82", "\\xac"]
    hexes = [None, None, "e2", "82", "ac"]
    page = show(traces.one_layer(["a", " b", *parts], hexes))
    node(page, 4).click()
    assert "byte AC, part of €" in page.inner_text(".panel")
    assert page.locator(".token[title*='byte 82, part of €']").inner_text() == "\\x82"


def test_tables_hold_what_the_diagram_shows(show: Show) -> None:
    result = traces.one_layer()
    page = show(result, "#view=table")
    rows = page.locator(".tables table").nth(1).locator("tbody tr").all_inner_texts()
    cells = [row.split("\t") for row in rows]
    expected = {
        (f"{link.attention:.4g}", ", ".join("ABCDE"[beam] for beam in link.beam_indices))
        for link in result.sankey.links
    }
    assert {(f"{float(row[2]):.4g}", row[4]) for row in cells} == expected
    page.get_by_role("button", name="attention", exact=True).click()
    values = [
        float(row.split("\t")[2]) for row in page.locator(".tables table").nth(1).locator("tbody tr").all_inner_texts()
    ]
    assert values == sorted(values, reverse=True)
    assert page.locator("th[aria-sort=descending]").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_a_contrast_of_at_least_4_5(scheme: str, show: Show) -> None:
    page = show(traces.one_layer(), "#find=the", color_scheme=scheme)
    worst = page.evaluate(
        """() => {
            const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
            const painted = (...colours) => {
                canvas.clearRect(0, 0, 1, 1);
                for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
                return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
            };
            const luminance = rgb => {
                const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
                const [r, g, b] = rgb.map(v => linear(v / 255));
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
            const found = [];
            while (walker.nextNode()) {
                const element = walker.currentNode.parentElement;
                if (!walker.currentNode.textContent.trim()) continue;
                if (element.closest("script, style, option, noscript")) continue;
                const behind = [];
                for (let at = element; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
                const style = getComputedStyle(element);
                const ink = element instanceof SVGElement ? style.fill : style.color;
                const [a, b] = [luminance(painted(...behind, ink)), luminance(painted(...behind))];
                found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.outerHTML.slice(0, 80)]);
            }
            return found.sort((a, b) => a[0] - b[0])[0];
        }"""
    )
    assert worst[0] >= 4.5, worst


def test_the_page_works_when_served_and_asks_for_nothing_else(browser: "Browser", tmp_path: Path) -> None:
    (tmp_path / "paths.html").write_text(paths_html(traces.one_layer()), encoding="utf-8")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    logged: list[str] = []
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        page = browser.new_page()
        watch(page, logged, asked)
        url = f"http://127.0.0.1:{server.server_port}/paths.html"
        page.goto(url)
        node(page, len(traces.TEXT) - 1).click()
        assert lit(page) == {0, 1, 2, 3, 4}
        page.close()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert logged == []
    assert asked == [url]


def test_the_page_works_in_a_notebooks_frame(browser: "Browser") -> None:
    logged: list[str] = []
    asked: list[str] = []
    page = browser.new_page()
    watch(page, logged, asked)
    page.set_content(f"<!doctype html><div>{traces.one_layer()._repr_html_()}</div>")
    frame = page.frame_locator("iframe")
    frame.locator(".node").first.click()
    assert frame.locator(".beam.lit").count() > 0
    frame.get_by_text("Tables").click()
    assert frame.locator(".tables table").count() == 2
    page.close()
    assert logged == []
    assert [url for url in asked if url != "about:srcdoc"] == []


@pytest.mark.parametrize("size", [(390, 844), (1024, 700), (1920, 1080)])
def test_nothing_runs_out_of_the_window(size: tuple[int, int], show: Show) -> None:
    page = show(traces.all_layers(), viewport={"width": size[0], "height": size[1]})
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    box = page.locator(".figure").bounding_box()
    assert box
    assert box["height"] >= 200
    assert box["width"] >= 300
    target = page.locator(".node.target").bounding_box()
    assert target
    assert box["x"] <= target["x"] <= box["x"] + box["width"]
    assert box["y"] <= target["y"] <= box["y"] + box["height"]


def test_on_paper_it_is_light_and_without_controls(show: Show) -> None:
    page = show(traces.one_layer(), "#theme=dark")
    page.emulate_media(media="print")
    assert page.locator(".tools").is_hidden()
    assert page.locator(".zoom").is_hidden()
    assert page.locator(".figure svg").is_visible()
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"


def test_scrolling_zooms_dragging_pans_and_the_place_is_kept(show: Show) -> None:
    result = traces.one_layer()
    page = show(result)
    start = page.get_attribute(".canvas", "transform")
    page.mouse.move(400, 600)
    page.mouse.wheel(0, -300)
    zoomed = page.get_attribute(".canvas", "transform")
    assert zoomed != start
    page.mouse.down()
    page.mouse.move(300, 500, steps=3)
    page.mouse.up()
    moved = page.get_attribute(".canvas", "transform")
    assert moved != zoomed
    page.wait_for_url("**zoom=*")
    again = show(result, hash_of(page))
    numbers = [
        [float(n) for n in re.findall(r"-?[\d.]+", text or "")]
        for text in (moved, again.get_attribute(".canvas", "transform"))
    ]
    assert numbers[1] == pytest.approx(numbers[0], abs=2)


def test_more_than_can_be_drawn_quickly_is_left_out_and_said(show: Show) -> None:
    result = traces.crowded(400)
    page = show(result)
    assert 0 < len(lanes(page)) <= 2000
    count = sum(len(beam.edge_attns) for beam in result.beams)
    assert count > 2000
    assert page.locator("[data-link]").count() == len(lanes(page)), "what is not drawn is not made either"
    assert page.locator(".beams li").count() == len(result.beams)
    assert f"of {len(result.beams)} paths are drawn" in page.inner_text(".notice")


def test_a_target_with_nothing_before_it_is_shown_alone(show: Show) -> None:
    page = show(traces.one_layer(["alone"]))
    assert page.locator(".node").count() == 1
    assert lanes(page) == []
    page.locator(".beams li button").first.click()
    assert "no edge" in page.inner_text(".panel")
    assert json.dumps(page.inner_text("h1")) == '"Which tokens led to alone 0?"'
