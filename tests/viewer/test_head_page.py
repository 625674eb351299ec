"""The head screen and the compare screen in a browser: each pixel is a stored number, and so is each that is told."""

import re
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.viewer.heat_page import address, cells_under, colours, palette, pixels, sharp, told
from tests.viewer.pages import Live
from tests.viewer.small_runs import HOSTILE, pattern, write_run
from traceformer.store.run import Run
from traceformer.viewer.library import Library
from traceformer.viewer.server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

WORDS = ["the", " river", " froze", " over", " night", " and", " by", " morning", " children", " skated"]
OTHERS = ["the", " river", " froze", " early", " night", " so", " that", " children", " skated"]
SHOWN = r"-?[−0-9.e]+"
# Of one pixel in a thousand the middle is so near to a cell's edge, or a number to a step's, that float32 of a graphics
# card and float64 of numpy decide otherwise.
AGREED = 0.999


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs: two texts with most words in common; a text of 1,100 tokens; hostile tokens."""
    folder = tmp_path_factory.mktemp("heads")
    write_run(folder / "texts", [WORDS * 4, OTHERS * 4])
    write_run(folder / "hostile", [HOSTILE, HOSTILE[::-1]])
    write_run(folder / "long", [WORDS * 110])
    return folder


@pytest.mark.parametrize(("scale", "range_"), [("sqrt", None), ("linear", "largest"), ("log", None)])
def test_each_pixel_has_the_colour_of_its_weight(live: Live, folder: Path, scale: str, range_: str | None) -> None:
    page = live(Library(folder), f"run=texts&screen=head&layer=3&head=1&head.scale={scale}&head.range={range_ or ''}")
    sharp(page)
    kind, picture = pixels(page)
    weights = pattern(0, 3, 1, len(WORDS) * 4).astype(np.float64)
    assert kind == "webgl2"
    assert agrees(picture, shares(weights, scale, weights.max() if range_ else 1.0), palette(page)) > AGREED


def test_without_webgl_the_picture_is_the_same(browser: "Browser", folder: Path) -> None:
    server = Server.start(Library(folder))
    chromium = which("chromium") or which("chromium-browser")
    bare = browser.browser_type.launch(executable_path=chromium, args=["--no-sandbox", "--disable-3d-apis"])
    try:
        page = bare.new_page(viewport={"width": 1400, "height": 900})
        page.goto(f"{server.address}#run=texts&screen=head&layer=1&head=0")
        sharp(page)
        kind, picture = pixels(page)
        weights = pattern(0, 1, 0, len(WORDS) * 4).astype(np.float64)
        assert kind == "2d"
        assert agrees(picture, shares(weights, "sqrt", 1.0), palette(page)) > AGREED
        page.locator(".field").focus()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("+")
        assert not np.array_equal(pixels(page)[1], picture)
    finally:
        bare.close()
        server.close()


def test_a_graphics_card_that_goes_away_is_not_missed(live: Live, folder: Path) -> None:
    page = live(Library(folder), "run=texts&screen=head&layer=1&head=0")
    sharp(page)
    _, before = pixels(page)
    page.locator(".field canvas").evaluate(
        "c => c.getContext('webgl2').getExtension('WEBGL_lose_context').loseContext()"
    )
    page.wait_for_timeout(500)
    kind, after = pixels(page)
    assert kind == "2d"
    assert (before == after).all(axis=-1).mean() > AGREED


def test_of_many_cells_a_pixel_shows_the_largest(live: Live, folder: Path) -> None:
    page = live(Library(folder), "run=long&screen=head&layer=3&head=1&head.scale=linear")
    sharp(page)
    run = Run(folder / "long")
    weights = run.attn(0, layer=3, head=1).astype(np.float64)
    assert min(weights.shape) > 600
    _, picture = pixels(page)
    count = len(weights)
    block = 1
    while block < count / min(picture.shape[:2]) - 1e-6:
        block *= 2
    assert block > 1
    roots = np.rint(255 * np.sqrt(weights / weights.max()))
    pad = -count % block
    largest = np.pad(roots, (0, pad)).reshape(len(roots) // block + bool(pad), block, -1, block).max((1, 3))
    values = weights.max() * (largest / 255) ** 2
    rows, columns = (cells_under(size, 0, count) // block for size in picture.shape[:2])
    expected = colours(values[np.ix_(rows, columns)], palette(page))
    assert (picture == expected).all(axis=-1).mean() > AGREED


@pytest.mark.parametrize(("run", "layer", "head"), [("texts", 1, 0), ("long", 3, 1)])
def test_hovering_tells_the_stored_number(live: Live, folder: Path, run: str, layer: int, head: int) -> None:
    page = live(Library(folder), f"run={run}&screen=head&layer={layer}&head={head}")
    sharp(page)
    weights = Run(folder / run).attn(0, layer=layer, head=head)
    box = page.locator(".field").bounding_box()
    assert box is not None
    for across, down in ((0.1, 0.6), (0.45, 0.5), (0.7, 0.95)):
        page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])
        row, column, value = number_told(page)
        assert value == pytest.approx(float(weights[row, column]), rel=5e-4)
        assert abs(column - across * len(weights)) <= 1
        assert abs(row - down * len(weights)) <= 1


def test_a_head_is_read_by_keyboard_alone(live: Live, folder: Path) -> None:
    page = live(Library(folder), "")
    page.wait_for_selector("a[href*='run=texts']")
    reach(page, "tbody tr")
    while not page.evaluate("document.activeElement.textContent.startsWith('texts')"):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector(".tokens")
    titles = page.locator("nav[aria-label=Screens] a").all_inner_texts()
    page.keyboard.press(str(titles.index("Head") + 1))
    sharp(page)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert (address(page)["layer"], address(page)["head"]) == ("3", "1")
    reach(page, ".field")
    for key in ("ArrowDown", "ArrowDown", "ArrowUp", "Shift+ArrowDown", "ArrowLeft", "+"):
        page.keyboard.press(key)
    query, key = int(address(page)["q"]), int(address(page)["k"])
    weights = pattern(0, 3, 1, 40)
    assert number_told(page) == (query, key, pytest.approx(float(weights[query, key]), rel=5e-4))
    assert f"{WORDS[query % 10].replace(' ', '·')} {query}" in page.locator(".profiles h2").first.inner_text()
    page.keyboard.press("c")  # the same head in two texts
    page.locator(".pair .heatmap").nth(2).wait_for()
    assert address(page)["screen"] == "compare"
    page.keyboard.press("?")
    assert "compare" in page.locator("dialog").inner_text()


def test_what_a_token_drew_on_is_shaded_in_the_text(live: Live, folder: Path) -> None:
    page = live(Library(folder), "run=texts&screen=head&layer=1&head=1")
    sharp(page)
    page.locator(".tokens button").nth(23).click()
    page.wait_for_timeout(300)
    shade = page.eval_on_selector_all(
        ".tokens button", "all => all.map(one => Number(one.style.getPropertyValue('--shade')))"
    )
    row = pattern(0, 1, 1, 40)[23].astype(np.float64)
    np.testing.assert_allclose(shade, row / row.max(), atol=6e-4)
    bars = page.locator(".profile").first.locator("b").all_inner_texts()
    np.testing.assert_allclose([float(bar) for bar in bars], np.sort(row)[::-1][: len(bars)], rtol=5e-4)


def test_two_texts_are_compared_where_they_are_the_same(live: Live, folder: Path) -> None:
    page = live(Library(folder), "run=texts&screen=compare&layer=3&head=0")
    page.locator(".pair .heatmap[aria-busy=false]").nth(2).wait_for()
    page.wait_for_timeout(300)
    ours, theirs = (
        pattern(example, 3, 0, len(words) * 4).astype(np.float32) for example, words in enumerate((WORDS, OTHERS))
    )
    difference = np.full(ours.shape, np.nan)
    there = {10 * part + mine: 9 * part + other for part in range(4) for mine, other in COUNTERPARTS.items()}
    for query, other_query in there.items():
        for key, other_key in there.items():
            difference[query, key] = ours[query, key] - theirs[other_query, other_key]
    most = np.nanmax(np.abs(difference))
    side = difference / most
    _, picture = pixels(page, 2)
    assert agrees(picture, 0.5 + 0.5 * np.sign(side) * np.sqrt(np.abs(side)), palette(page, 2)) > AGREED
    page.locator(".field").nth(0).click(position=place(page, 0, row=34, column=10))
    assert (address(page)["q"], address(page)["k"]) == ("34", "10")
    values = [float(re.findall(rf": ({SHOWN})$", told(page, nth))[0].replace("−", "-")) for nth in range(3)]
    expected = [ours[34, 10], theirs[there[34], there[10]], difference[34, 10]]
    np.testing.assert_allclose(values, expected, rtol=5e-4)
    page.locator(".field").nth(1).click(position=place(page, 1, row=there[30], column=there[20]))
    assert (address(page)["q"], address(page)["k"]) == ("30", "20")


def test_zoom_is_shared_and_nearest(live: Live, folder: Path) -> None:
    page = live(Library(folder), "run=texts&screen=head&layer=3&head=0&head.head=1")
    page.locator(".pair .heatmap[aria-busy=false]").nth(2).wait_for()
    page.locator(".field").nth(0).dblclick(position=place(page, 0, row=20, column=10))
    page.wait_for_timeout(300)
    for nth, head in ((0, 0), (1, 1)):
        _, picture = pixels(page, nth)
        found = {tuple(colour) for colour in picture.reshape(-1, 4)[:, :3].tolist()}
        weights = pattern(0, 3, head, 40).astype(np.float64)
        allowed = {
            tuple(colour) for colour in colours(np.sqrt(weights), palette(page, nth)).reshape(-1, 4)[:, :3].tolist()
        }
        assert found <= allowed
        assert len(found) < len(allowed)


def test_hostile_tokens_are_text(live: Live, folder: Path) -> None:
    for screen in ("head", "compare"):
        page = live(Library(folder), f"run=hostile&screen={screen}&layer=1&head=0&q=5&k=3")
        page.locator(".heatmap[aria-busy=false]").first.wait_for()
        page.wait_for_timeout(500)
        assert "owned" not in page.title()
        assert page.locator("main img, .screen script").count() == 0
        assert "<img" in page.locator(".tokens").first.inner_text()
        assert page.evaluate("document.querySelector('.screen').scrollWidth <= innerWidth")


def test_what_is_not_recorded_is_said(live: Live, folder: Path) -> None:
    page = live(Library(folder), "run=texts&screen=head&layer=0&head=0")
    sharp(page)
    notice = page.locator(".chart .notice").first.inner_text()
    assert "Layer 0 was not recorded" in notice
    assert "2 layers only: 1, 3" in notice


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_equal_steps_of_a_palette_look_equally_far_apart(live: Live, folder: Path, theme: str) -> None:
    page = live(Library(folder), f"run=texts&screen=head&layer=1&head=0&head.head=1&theme={theme}")
    page.locator(".colourbar").nth(2).wait_for()
    back = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    paper = oklab(np.array([[int(part) for part in re.findall(r"\d+", back)][:3]]))[0]
    one_way, both_ways = oklab(palette(page, 0)[:, :3]), oklab(palette(page, 2)[:, :3])
    for points, neutral in (
        (one_way, one_way[0]),
        (both_ways[:128][::-1], both_ways[127]),
        (both_ways[128:], both_ways[128]),
    ):
        assert np.linalg.norm(neutral - paper) < 0.03  # nothing is the colour of the page
        far = np.linalg.norm(points[8:] - points[:-8], axis=1)  # of 8 steps: single ones are rounded to bytes
        assert far.min() > 0.75 * far.max()
        lightness = points[::8, 0]
        assert (np.diff(lightness) * np.sign(lightness[-1] - lightness[0]) > 0).all()  # its order is seen without hues


COUNTERPARTS = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 8: 7, 9: 8}
"""Which words of WORDS are which of OTHERS; the fourth stands in the place of another."""


def shares(weights: np.ndarray, scale: str, most: float) -> np.ndarray:
    if scale == "log":
        return np.log10(np.maximum(weights / most, 1e-4)) / 4 + 1
    return np.sqrt(weights / most) if scale == "sqrt" else weights / most


def agrees(picture: np.ndarray, shares: np.ndarray, palette: np.ndarray) -> float:
    """Returns for how many of the pixels the colour is that of the cell under their middle."""
    rows, columns = (cells_under(size, 0, count) for size, count in zip(picture.shape[:2], shares.shape, strict=True))
    return float((picture == colours(shares[np.ix_(rows, columns)], palette)).all(axis=-1).mean())


def oklab(colours: np.ndarray) -> np.ndarray:
    """Returns sRGB bytes in Oklab, through XYZ, by the matrices of Ottosson's paper."""
    part = colours / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array(
        [[0.4124564, 0.2126729, 0.0193339], [0.3575761, 0.7151522, 0.119192], [0.1804375, 0.072175, 0.9503041]]
    )
    cones = np.cbrt(
        xyz
        @ np.array(
            [
                [0.8189330101, 0.0329845436, 0.0482003018],
                [0.3618667424, 0.9293118715, 0.2643662691],
                [-0.1288597137, 0.0361456387, 0.633851707],
            ]
        )
    )
    return cones @ np.array(
        [
            [0.2104542553, 1.9779984951, 0.0259040371],
            [0.793617785, -2.428592205, 0.7827717662],
            [-0.0040720468, 0.4505937099, -0.808675766],
        ]
    )


def number_told(page: "Page") -> tuple[int, int, float]:
    """Returns query, key and number that are told of the cell, once the number is there."""
    for _ in range(200):
        found = re.search(rf" (\d+) → .* (\d+): ({SHOWN})$", told(page))
        if found:
            return int(found[1]), int(found[2]), float(found[3].replace("−", "-"))
        page.wait_for_timeout(50)
    raise AssertionError(f"no number is told: {told(page)}")


def place(page: "Page", nth: int, *, row: int, column: int) -> dict[str, float]:
    """Returns where a cell lies in a heat map that shows all of it."""
    box = page.locator(".field").nth(nth).bounding_box()
    labels = page.locator(".field").nth(nth).get_attribute("aria-label") or ""
    assert box is not None
    counts = [int(count) for count in re.findall(r"(\d+) (?:queries|keys)", labels)] or [40, 40]
    return {"x": (column + 0.5) * box["width"] / counts[1], "y": (row + 0.5) * box["height"] / counts[0]}


def reach(page: "Page", selector: str) -> None:
    """Presses Tab until something has the focus."""
    for _ in range(200):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement?.matches(selector) ?? false", selector):
            return
    raise AssertionError(f"{selector} is not reached")
