"""The paths page in a real browser: it works in every place, size and light where a page can be."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.viewer import traces
from tests.viewer.pages import Show, lit, node, watch
from traceformer.viewer.pages import paths_html

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow


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
