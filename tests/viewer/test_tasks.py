"""What people come for, done from the list of runs in at most three actions: once by mouse, once by keys alone.

An action is a click, a choice from a list, or the keys that lead to one thing on the page and take it.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

import traceformer as tf
from tests.viewer.heat_page import address, colours, palette, sharp, told
from tests.viewer.pages import Live
from tests.viewer.test_head_page import reach, shares
from traceformer.store.run import Run
from traceformer.viewer.library import Library

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow

HANDS = pytest.mark.parametrize("hand", ["mouse", "keys"])
MOST = 3
USED = {"mouse": ["pointerdown"], "keys": ["keydown"]}


class Actions:
    """Does things on a page by one hand alone, and counts them."""

    def __init__(self, page: "Page", hand: str) -> None:
        self.page, self.hand, self.count = page, hand, 0
        # A list's choice is made by the browser itself, so neither hand may be seen in it.
        page.evaluate(
            "window.used = new Set(); for (const kind of ['pointerdown', 'keydown'])"
            " addEventListener(kind, ({ type, isTrusted }) => isTrusted && window.used.add(type), true)"
        )

    @contextmanager
    def action(self) -> Iterator[bool]:
        """Counts what is done inside as one action; yields whether it is done by mouse."""
        self.count += 1
        yield self.hand == "mouse"

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def type_into(self, label: str, opener: str, text: str) -> None:
        """Opens a text field by its key, types, and takes the first that is found."""
        self.press(opener)
        expect(self.page.get_by_label(label).first).to_be_focused()
        self.page.keyboard.type(text)
        self.press("Enter")

    # What all tasks begin with

    def open_run(self) -> None:
        with self.action() as by_mouse:
            if by_mouse:
                self.page.get_by_role("link", name="byte").click()
            else:
                self.press("ArrowDown")
                for _ in range(self.page.locator("tbody tr").count()):
                    if self.page.evaluate("document.activeElement.querySelector('a')?.textContent") == "byte":
                        break
                    self.press("ArrowDown")
                self.press("Enter")
        self.page.locator(".atlas canvas").wait_for()
        expect(self.page.locator(".bar .run b")).to_have_text("byte")

    def open_first_head(self) -> None:
        """Opens the first head of the atlas, in its order."""
        with self.action() as by_mouse:
            if by_mouse:
                box = self.page.locator(".atlas canvas").bounding_box()
                assert box is not None
                self.page.mouse.dblclick(box["x"] + 20, box["y"] + 20)
            else:
                self.press("a", "ArrowRight", "Enter")
        sharp(self.page)

    def done(self) -> None:
        assert self.count <= MOST
        assert self.page.evaluate("[...window.used]") == USED[self.hand]


@pytest.fixture
def start(live: Live, byte_runs: Path, hand: str) -> Actions:
    """The list of runs, and a hand."""
    page = live(Library.at(byte_runs), accept_downloads=True)
    expect(page.locator("tbody tr")).to_have_count(2)
    return Actions(page, hand)


@pytest.fixture(scope="module")
def run(byte_runs: Path) -> Run:
    return tf.open_run(byte_runs / "byte")


def selected(page: "Page") -> tuple[int, int]:
    """Returns the layer and the head that the page shows."""
    return int(address(page)["layer"]), int(address(page)["head"])


def induction(run: Run) -> dict[tuple[int, int], float]:
    """Returns what each head gives, on average, to what follows earlier places of the token that it stands on."""
    tokens = run.text(0)  # a byte each
    scores: dict[tuple[int, int], float] = {}
    for layer, head in product(range(4), range(8)):
        weights = run.attn(0, layer=layer, head=head).astype(np.float64)
        behind = [[key + 1 for key in range(query) if tokens[key] == token] for query, token in enumerate(tokens)]
        given = [weights[query, keys].sum() for query, keys in enumerate(behind) if keys]
        scores[layer, head] = float(np.mean(given))
    return scores


@HANDS
def test_the_induction_head_is_found(start: Actions, run: Run) -> None:
    start.open_run()
    with start.action() as by_mouse:
        if by_mouse:
            start.page.get_by_label("Order").select_option("induction")
        else:
            start.type_into("Search", "/", "induction")
    expect(start.page.get_by_role("button", name="highest first")).to_be_visible()
    start.open_first_head()
    start.done()
    scores = induction(run)
    assert selected(start.page) == max(scores, key=scores.__getitem__)
    metrics = tf.heads(run, examples=[0]).to_frame()
    best = metrics.loc[metrics["induction"].idxmax()]
    assert selected(start.page) == (best["layer"], best["head"])
    expect(start.page.locator(".chart h2").first).to_have_text("L{}H{}".format(*selected(start.page)))


@HANDS
def test_what_a_token_drew_on_is_seen(start: Actions, run: Run) -> None:
    start.open_run()
    start.open_first_head()
    text = run.text(0)
    query = text.index("hat") + 2
    with start.action() as by_mouse:
        if by_mouse:
            start.page.get_by_role("option", name=re.compile(f"position {query}$")).click()
        else:
            start.type_into("Search", "/", "hat")
    expect(start.page.locator(".profiles h2").first).to_have_text(f"What “t {query}” looks at")
    start.done()
    layer, head = selected(start.page)
    row = run.attn(0, layer=layer, head=head)[query].astype(np.float64)
    bars = start.page.locator(".profile").first
    expect(bars).to_have_attribute("aria-busy", "false")
    positions = [int(each) for each in bars.locator("sub").all_inner_texts()]
    weights = [float(each) for each in bars.locator("b").all_inner_texts()]
    assert len(positions) > 3
    np.testing.assert_allclose(weights, row[positions], rtol=5e-4)
    np.testing.assert_allclose(weights, np.sort(row)[::-1][: len(weights)], rtol=5e-4)
    letters = [each.replace("·", " ") for each in bars.locator(".name > span").all_inner_texts()]
    assert letters == [text[position] for position in positions]


@HANDS
def test_a_head_is_compared_in_two_texts(start: Actions, run: Run) -> None:
    page = start.page
    start.open_run()
    start.open_first_head()
    with start.action() as by_mouse:
        if by_mouse:
            page.get_by_role("link", name="Compare texts").click()
        else:
            start.press("c")
    page.locator(".pair .heatmap[aria-busy=false]").nth(2).wait_for()
    start.done()
    layer, head = selected(page)
    names = [f"A: L{layer}H{head}, text 1", f"B: L{layer}H{head}, text 2", "A − B"]
    expect(page.locator(".pair h2")).to_have_text(names)
    # The last of the tokens that both texts have, and the first one, as the three pictures tell of them.
    same = [each for each in range(run.length(0)) if not shade(page, "Text A", each)]
    page.goto(f"{page.url}&q={same[-1]}&k={same[0]}")
    cells = [told_cell(page, nth) for nth in range(2)]
    for example, (query, key, value) in enumerate(cells):
        assert run.text(example)[query] == run.text(0)[same[-1]]
        assert run.text(example)[key] == run.text(0)[same[0]]
        assert value == pytest.approx(float(run.attn(example, layer=layer, head=head)[query, key]), rel=5e-4)
    assert cells[0][:2] == (same[-1], same[0])
    ours, theirs = (run.attn(each, layer=layer, head=head)[cell[:2]] for each, cell in enumerate(cells))
    assert told_cell(page, 2)[2] == pytest.approx(float(ours - theirs), rel=5e-4)


@HANDS
def test_the_picture_is_a_file(start: Actions, run: Run, tmp_path: Path) -> None:
    page = start.page
    start.open_run()
    start.open_first_head()
    with start.action() as by_mouse, page.expect_download() as download:
        if by_mouse:
            page.get_by_role("button", name="PNG").first.click()
        else:
            reach(page, ".chart .saving button:nth-child(3)")
            start.press("Enter")
    start.done()
    layer, head = selected(page)
    assert download.value.suggested_filename == f"l{layer}h{head}.png"
    download.value.save_as(tmp_path / "head.png")
    picture = np.asarray(Image.open(tmp_path / "head.png").convert("RGBA"))
    box, field = (page.locator(selector).first.bounding_box() for selector in (".picture", ".picture .field canvas"))
    assert box is not None
    assert field is not None
    assert picture.shape == (int(2 * box["height"]), int(2 * box["width"]), 4)
    # Each weight has its colour in its cell, above the line through the row that is selected.
    weights = run.attn(0, layer=layer, head=head).astype(np.float64)
    left, top = (2 * (field[axis] - box[axis]) for axis in "xy")
    inside = (np.arange(len(weights)) + 0.25) / len(weights)
    rows, columns = (top + 2 * field["height"] * inside).astype(int), (left + 2 * field["width"] * inside).astype(int)
    expected = colours(shares(weights, "sqrt", 1.0), palette(page))
    assert (np.abs(picture[np.ix_(rows, columns)].astype(int) - expected) <= 1).all(axis=-1).mean() > 0.99


def told_cell(page: "Page", nth: int) -> tuple[int, int, float]:
    """Returns query, key and number that a heat map tells of the cell that is selected, once the number is there."""
    words = re.compile(r" (\d+) → .* (\d+): ([-−0-9.e]+)$")
    expect(page.locator(".heatmap .told").nth(nth)).to_have_text(words)
    found = words.search(told(page, nth))
    assert found
    return int(found[1]), int(found[2]), float(found[3].replace("−", "-"))


def shade(page: "Page", text: str, position: int) -> str:
    """Returns how strongly a token of a text is marked."""
    token = page.get_by_role("listbox", name=text).locator(f"[data-position='{position}']")
    return token.evaluate("token => token.style.getPropertyValue('--shade')")
