"""The effects screen in a browser: its numbers, its keys, and names that are markup."""

from pathlib import Path

import numpy as np
import pytest

import traceformer as tf
from tests.viewer.pages import Live, hash_of
from tests.viewer.stream_data import MARKUP
from tests.viewer.test_stream_page import section
from traceformer.viewer.library import Library

pytestmark = pytest.mark.slow
ALONE = "screen=effects&effects.name=patched"


def test_effects_are_shown_without_a_run_and_pair_by_pair(live: Live, stream_folder: Path) -> None:
    effects = tf.open_effects(stream_folder / "patched")
    page = live(Library.at(stream_folder), ALONE)
    rows = section(page, "Patching")
    np.testing.assert_allclose([float(row[2]) for row in rows], effects.values.reshape(-1), rtol=1e-6)
    np.testing.assert_allclose([float(row[3]) for row in rows], effects.spread.reshape(-1), rtol=1e-6)
    page.get_by_role("button", name="Table").click()
    for _ in range(2):
        page.keyboard.press(".")
    page.get_by_text("Metric of pair second: clean 3.500, corrupt −1.000.").wait_for()
    assert "effects.pair=1" in hash_of(page)
    rows = section(page, "Patching")
    np.testing.assert_allclose([float(row[2]) for row in rows], effects.pair(1).values.reshape(-1), rtol=1e-6)
    page.get_by_role("button", name="Table").click()
    page.keyboard.press(",")
    page.get_by_text(f"Metric of pair {MARKUP}").wait_for()


def test_a_cell_says_its_tokens_and_number(live: Live, stream_folder: Path) -> None:
    values = tf.open_effects(stream_folder / "patched").values
    page = live(Library.at(stream_folder), ALONE)
    field = page.locator(".heatmap .field").first
    field.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft"):  # the first chooses the upper left corner
        page.keyboard.press(key)
    page.locator(".heatmap .told", has_text="L1 × ").wait_for()
    told = page.locator(".heatmap .told").first.inner_text()
    assert told.startswith(f"L1 × {MARKUP.replace(' ', '·')} 0: effect ".replace("-", "−"))
    assert f"{abs(values[1, 0]):.4f}"[:5] in told
    assert "over 3 pairs" in told
    assert page.locator("#app img").count() == 0
    assert page.title() == "Effects · Traceformer"


def test_estimates_stand_beside_what_was_measured(live: Live, stream_folder: Path) -> None:
    agreement = tf.open_effects(stream_folder / "estimated").agreement
    page = live(Library.at(stream_folder), "screen=effects&effects.name=estimated")
    page.locator("figcaption", has_text="exact").wait_for()
    assert page.locator(".heatmap").count() == 2
    said = f"{agreement.measured} of 20 cells were measured as well, rank agreement {agreement.spearman:.4f}"
    page.get_by_text(said).wait_for()


def test_an_attribution_adds_up_and_splits_the_head_that_is_chosen(live: Live, stream_folder: Path) -> None:
    run = tf.open_run(stream_folder / "byte")
    page = live(Library.at(stream_folder), "run=byte&screen=effects&ex=1&q=9")
    page.get_by_text("Choose a head in the map").wait_for()
    field = page.locator(".parts .heatmap .field")
    field.focus()
    for key in ("ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    page.get_by_role("heading", name="What L1H0 adds").wait_for()
    expected = tf.attribute(run, 1, position=9, by_source=[(1, 0)])
    parts = section(page, "What adds to")
    np.testing.assert_allclose([float(row[4]) for row in parts[:-1]], expected.contributions, rtol=1e-5)
    assert sum(float(row[4]) for row in parts) == pytest.approx(expected.total, abs=1e-5)
    [sources] = expected.sources.values()
    np.testing.assert_allclose([float(row[2]) for row in section(page, "What L1H0 adds")], sources, rtol=1e-5)


def test_a_token_that_is_none_is_told_and_may_be_changed(live: Live, stream_folder: Path) -> None:
    page = live(Library.at(stream_folder), "run=byte&screen=effects&ex=1&q=9")
    box = page.get_by_label("Logit of")
    box.fill(MARKUP)
    box.press("Enter")
    page.get_by_role("alert").get_by_text("is not one token of the model").wait_for()
    box.fill("a")
    box.press("Enter")
    page.get_by_role("heading", name="What adds to the logit of a at").wait_for()
    assert page.locator("#app img").count() == 0
