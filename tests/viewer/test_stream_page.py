"""The stream screen in a browser: its numbers, its keys, and names that are markup."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import traceformer as tf
from tests.viewer.pages import Live, hash_of
from tests.viewer.stream_data import MARKUP
from traceformer.viewer.library import Library

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow
ADDRESS = "run=byte&screen=stream"


def section(page: "Page", name: str) -> list[list[str]]:
    """Returns the rows of a chart's table, which is opened for it."""
    chart = page.locator("section.chart").filter(has=page.get_by_role("heading", name=re.compile(f"^{name}")))
    chart.get_by_role("button", name="Table").click()
    chart.locator("tbody tr").first.wait_for()
    return chart.locator("tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )


def test_tables_hold_the_numbers_of_python(live: Live, stream_folder: Path) -> None:
    run = tf.open_run(stream_folder / "byte")
    page = live(Library.at(stream_folder), f"{ADDRESS}&q=40&layer=2&ex=0")
    norms = [float(row[-1]) for row in section(page, "Norms$")]
    expected = np.linalg.norm(run.get(0, "dec.resid_post").astype(np.float64), axis=-1)
    np.testing.assert_allclose(norms, expected.reshape(-1), rtol=1e-6)
    lens = tf.lens(run, 0, positions=range(32, 64)).to_frame()
    rows = section(page, "Logit lens")
    assert [[int(row[0]), int(row[1]), int(row[3])] for row in rows] == lens[
        ["layer", "position", "rank"]
    ].to_numpy().tolist()
    np.testing.assert_allclose([float(row[5]) for row in rows], lens["probability"], rtol=1e-6)
    np.testing.assert_allclose([float(row[6]) for row in rows], lens["entropy"], rtol=1e-6)
    curve = section(page, "Along")
    found = tf.project(run, stream_folder / "traits" / "errors.safetensors", site="dec.resid_mid", example=0).to_frame()
    np.testing.assert_allclose([float(row[3]) for row in curve], found["projection"], rtol=1e-6)
    assert {(row[0], row[4]) for row in curve} == {("1", "0.5"), ("2", "-1.5")}


def test_the_lens_is_walked_by_keys_and_says_what_it_shows(live: Live, stream_folder: Path) -> None:
    page = live(Library.at(stream_folder), f"{ADDRESS}&ex=1")
    lens = page.locator(".lens")
    lens.locator(".cell").first.wait_for()
    lens.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
    assert {"layer=2", "q=2"} <= set(hash_of(page).removeprefix("#").split("&"))
    found = tf.lens(tf.open_run(stream_folder / "byte"), 1, layers=[2], positions=[2])
    told = lens.locator(".told").inner_text()
    assert told.startswith(f"L2 at t 2: {found.top_tokens[0][0][0]} {found.top_probabilities[0, 0, 0]:.4f}"[:14])
    assert f"u came next: rank {found.target_rank[0, 0]}" in told
    page.keyboard.press("?")
    assert "in the logit lens" in page.get_by_role("dialog").inner_text()


def test_a_cell_that_is_clicked_selects_its_layer_and_position(live: Live, stream_folder: Path) -> None:
    page = live(Library.at(stream_folder), f"{ADDRESS}&ex=0")
    page.locator(".lens .cell").nth(32 + 5).click()  # the second row
    page.locator(".lens .cell.selected").wait_for()
    assert {"layer=1", "q=5"} <= set(hash_of(page).removeprefix("#").split("&"))
    assert (
        page.locator("section[aria-label^='Norms over layers']").get_attribute("aria-label")
        == "Norms over layers at s 5"
    )


def test_what_cannot_be_shown_is_said_in_words(live: Live, stream_folder: Path, byte_runs: Path) -> None:
    page = live(Library.at(byte_runs), "run=patterns&screen=stream")
    page.get_by_text("This run holds no residual stream.").wait_for()
    page.get_by_text("this run holds no residual stream of a decoder").wait_for()
    page.get_by_text("No direction lies beside this run.").wait_for()
    page = live(Library.at(stream_folder), ADDRESS)
    assert "3 wide" in page.locator("option[disabled]").first.inner_text()


def test_names_and_tokens_that_are_markup_are_text(live: Live, stream_folder: Path) -> None:
    page = live(Library.at(stream_folder), f"{ADDRESS}&ex=0&q=25")
    page.get_by_role("heading", name=f"Along {MARKUP}").wait_for()
    section(page, "Along")
    assert page.locator("#app img").count() == 0
    assert page.title() == "Stream · byte · Traceformer"


def test_long_texts_are_read_a_window_at_a_time(live: Live) -> None:
    run = tf.record("byte", ["raises an error " * 12], capture="resid_post")
    page = live(Library.of(run), f"run={run.name}&screen=stream")
    page.get_by_text("0–31 of 192").wait_for()
    page.get_by_role("button", name="Later positions").click()
    page.get_by_text("32–63 of 192").wait_for()
    assert page.locator(".lens .cell").count() == 4 * 32


def test_encoders_are_told_what_they_lack(live: Live, tiny_folder: Callable[..., Path]) -> None:
    run = tf.record(tiny_folder("bert"), ["The river froze over."], capture="resid")
    page = live(Library.of(run), f"run={run.name}&screen=stream")
    page.get_by_text("it predicts no next token").wait_for()
    page.locator("section[aria-label='Norms'] canvas").wait_for()
