"""The overview and the heads lab in a browser: every pixel of the atlas, keys, links, words for what is missing."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import traceformer as tf
from tests.viewer.pages import Live
from tests.viewer.test_heads_resources import write
from tests.viewer.traces import HOSTILE
from traceformer.analysis.thumbnails import thumbnail
from traceformer.store.run import Run
from traceformer.viewer.library import Library

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow

PIXELS = """() => {
  const canvas = document.querySelector(".atlas canvas");
  const { width, height } = canvas;
  return { width, height, data: [...canvas.getContext("2d").getImageData(0, 0, width, height).data] };
}"""
COLOURS = """() => [...document.querySelectorAll(".colours rect")].map((each) => each.getAttribute("fill"))"""


def drawn(page: "Page") -> np.ndarray:
    """Returns the atlas's canvas (y, x, rgb) once all of it is there."""
    page.locator(".atlas canvas").wait_for()
    page.locator(".progress progress").wait_for(state="detached")
    found = page.evaluate(PIXELS)
    return np.array(found["data"], np.uint8).reshape(found["height"], found["width"], 4)[..., :3]


def address(page: "Page") -> dict[str, str]:
    return dict(part.split("=") for part in page.url.partition("#")[2].split("&"))


def press(page: "Page", key: str) -> dict[str, str]:
    """Presses a key and returns the address once it has changed."""
    before = page.url
    page.keyboard.press(key)
    for _ in range(600):
        if page.url != before:
            return address(page)
        page.wait_for_timeout(50)
    raise AssertionError(f"{key} changes nothing at {before}")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_pixel_of_the_atlas_is_its_weight_in_the_palette(live: Live, byte_runs: Path, theme: str) -> None:
    page = live(Library(byte_runs), f"run=byte&screen=overview&ex=1&theme={theme}")
    picture, run = drawn(page), Run(byte_runs / "byte")
    expected = thumbnail(run.attn(1))
    layers, heads, rows, columns = expected.shape
    step = (picture.shape[1] - 2 + 5) // heads  # a thumbnail, its frame and the space to the next
    cell = step - 5
    assert cell % columns == 0
    colour_of: dict[int, tuple[int, ...]] = {}
    for layer in range(layers):
        for head in range(heads):
            own = picture[layer * step + 1 :, head * step + 1 :][:cell, :cell]
            whole = own.reshape(rows, cell // rows, columns, cell // columns, 3)
            assert (whole == whole[:, :1, :, :1]).all()  # each cell is of one colour
            for value, colour in zip(expected[layer, head].flat, whole[:, 0, :, 0].reshape(-1, 3), strict=True):
                assert colour_of.setdefault(int(value), tuple(colour)) == tuple(colour)
    # The colours beside it are those of 0, 1/32, ... 1, in the order of their roots.
    key = [tuple(map(int, re.findall(r"\d+", colour))) for colour in page.evaluate(COLOURS)]
    for index, colour in enumerate(key):
        value = round(255 * index / 32)
        assert colour_of.get(value, colour) == colour


def test_the_induction_head_is_found_by_keys_alone(live: Live, byte_runs: Path) -> None:
    page = live(Library(byte_runs), "run=byte&screen=overview")
    drawn(page)
    order = page.get_by_label("Order")
    order.focus()
    order.locator("option", has_text="induction").wait_for(state="attached")
    order.select_option("induction")
    metrics = tf.heads(Run(byte_runs / "byte"), examples=[0])
    best = metrics.rows[int(np.nanargmax(metrics.values["induction"]))]
    page.keyboard.press("Escape")
    page.locator("h2", has_text="Heads of").click()
    page.keyboard.press("a")
    at = press(page, "ArrowRight")
    assert (at["layer"], at["head"]) == (str(best.layer), str(best.head))
    card = page.get_by_role("complementary", name="Head")
    assert f"L{best.layer}H{best.head}" in card.inner_text()
    assert press(page, "Enter")["screen"] == "head"


def test_pointing_and_clicking_name_a_head_and_choose_it(live: Live, byte_runs: Path) -> None:
    page = live(Library(byte_runs), "run=byte&screen=overview")
    drawn(page)
    box = page.locator(".atlas canvas").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 8 * 2.5, box["y"] + box["height"] / 4 * 1.5
    card = page.get_by_role("complementary", name="Head")
    page.mouse.move(x, y)
    card.get_by_text("dec.self L1H2").wait_for()
    assert "layer" not in address(page)
    page.mouse.click(x, y)
    page.locator(".atlas .ring").wait_for(state="attached")
    assert (address(page)["attn"], address(page)["layer"], address(page)["head"]) == ("dec.self", "1", "2")


def test_what_was_expected_follows_the_arrow_keys(live: Live, byte_runs: Path) -> None:
    page = live(Library(byte_runs), "run=byte&screen=overview&q=4")
    readout = page.locator(".readout")
    readout.get_by_text("After “c” 4").wait_for()
    page.get_by_role("group", name="Positions").focus()
    press(page, "ArrowRight")
    readout.get_by_text("After “a” 5").wait_for()
    assert address(page)["q"] == "5"
    assert "nats" in readout.inner_text()


def test_each_picture_has_a_table(live: Live, byte_runs: Path) -> None:
    page = live(Library(byte_runs), "run=byte&screen=overview&overview.heads=1&overview.expected=1")
    page.get_by_role("columnheader", name="induction").wait_for()
    assert page.locator("table").nth(1).locator("tbody tr").count() == 32
    length = Run(byte_runs / "byte").length(0)
    assert page.locator("table").nth(0).locator("tbody tr").count() == length


def test_a_run_of_some_layers_shows_these(live: Live, byte_runs: Path) -> None:
    page = live(Library(byte_runs), "run=patterns&screen=overview")
    drawn(page)
    assert page.locator(".atlas text").all_text_contents()[-2:] == ["L1", "L3"]
    page.get_by_text("no logits were recorded").wait_for()


def test_the_lab_has_a_point_for_each_head_in_the_colour_of_its_cluster(live: Live, byte_runs: Path) -> None:
    page = live(Library(byte_runs), "run=byte&screen=lab&lab.x=induction&lab.y=retrieval&lab.k=3")
    page.locator(".scatter .cluster-2").first.wait_for()
    found = tf.cluster(tf.heads(Run(byte_runs / "byte")), k=3)
    for number, size in enumerate(found.clusterings.best.sizes):
        assert page.locator(f".scatter .cluster-{number}").count() == size
    metrics = tf.heads(Run(byte_runs / "byte"))
    points = [page.locator(".scatter .point").nth(row).get_attribute("transform") or "" for row in range(32)]
    places = np.array([[float(part) for part in re.findall(r"-?[\d.]+", point)] for point in points])
    for values, across, sign in ((metrics.values["induction"], 0, 1), (metrics.values["retrieval"], 1, -1)):
        line = np.polyfit(values, places[:, across], 1)
        assert np.sign(line[0]) == sign
        assert np.abs(np.polyval(line, values) - places[:, across]).max() < 0.1  # pixels
    boxes = [
        page.locator(".scatter .name").nth(n).bounding_box() for n in range(page.locator(".scatter .name").count())
    ]
    for first, one in enumerate(boxes):
        assert not any(_overlap(one, other) for other in boxes[first + 1 :])


def _overlap(one: Any, other: Any) -> bool:
    def apart(axis: str, size: str) -> bool:
        return one[axis] + one[size] <= other[axis] + 1 or other[axis] + other[size] <= one[axis] + 1

    return not (apart("x", "width") or apart("y", "height"))


def test_arrow_keys_walk_from_point_to_point(live: Live, byte_runs: Path) -> None:
    page = live(Library(byte_runs), "run=byte&screen=lab&attn=dec.self&layer=0&head=0")
    page.locator(".scatter .ring").wait_for()
    page.keyboard.press("a")
    metrics = tf.heads(Run(byte_runs / "byte"))
    distance = {
        (head.layer, head.head): value for head, value in zip(metrics.rows, metrics.values["distance"], strict=True)
    }
    at = (0, 0)
    for _ in range(3):
        found = press(page, "ArrowRight")
        now = (int(found["layer"]), int(found["head"]))
        assert distance[now] > distance[at]
        at = now
    assert press(page, "Enter")["screen"] == "head"


def test_a_metric_that_is_none_is_said(live: Live, byte_runs: Path) -> None:
    page = live(Library(byte_runs), "run=byte&screen=lab&lab.x=nonsense")
    page.get_by_text("No metric is called “nonsense”.").wait_for()


def test_tokens_that_are_markup_stay_text(live: Live, tmp_path: Path) -> None:
    write(tmp_path / "hostile", ("dec.self.attn_pattern", "dec.logits"), tokens=HOSTILE)
    page = live(Library(tmp_path), "run=hostile&screen=overview&q=3&overview.expected=1")
    page.locator("table").wait_for()
    page.goto(page.url.replace("&overview.expected=1", ""))
    page.locator(".readout", has_text="After").wait_for()
    page.goto(page.url.replace("overview", "lab"))
    page.locator(".scatter .point").first.wait_for()
    assert page.locator("#app img, #app script").count() == 0
    assert "hit" not in page.title()
