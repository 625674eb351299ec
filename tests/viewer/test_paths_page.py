"""The paths page in a real browser: what is drawn and listed is what was found."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.viewer import traces
from tests.viewer.pages import Show, lanes, node
from tests.viewer.test_payloads import lanes_of
from traceformer.analysis.paths.result import TraceResult

if TYPE_CHECKING:
    pass

pytestmark = pytest.mark.slow


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
