"""The paths page in a real browser: what clicks, keys, searches and addresses do."""

import math
import re
from typing import TYPE_CHECKING

import pytest

from tests.viewer import traces
from tests.viewer.pages import Show, drawn, focused, hash_of, lanes, lit, node, through

if TYPE_CHECKING:
    pass

pytestmark = pytest.mark.slow


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
