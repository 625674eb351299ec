"""Cards as a browser shows them: a click sorts the heads, on light and on dark the text is the notebook's."""

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.figures.test_cards import heads_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow


def names(page: "Page", card: int = 0) -> list[str]:
    """Returns the heads of a table from above."""
    rows = page.locator(".heads").nth(card).locator("tbody tr").all()
    heights = {row.locator("th").inner_text(): (row.bounding_box() or {"y": 0})["y"] for row in rows}
    return sorted(heights, key=lambda name: heights[name])


@pytest.fixture
def page(browser: "Browser") -> "Page":
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    metrics = heads_of(3, 4)
    page.set_content(f"<!doctype html>{metrics._repr_html_()}<hr>{metrics._repr_html_()}")
    return page


def test_a_click_sorts_without_a_script(page: "Page") -> None:
    metrics = heads_of(3, 4)
    assert names(page) == list(metrics.names)
    page.locator(".heads").first.get_by_text("distance").click()
    assert names(page) == [metrics.names[row] for row in np.argsort(-metrics.values["distance"])]
    page.get_by_text("smallest first").first.click()
    assert names(page) == [metrics.names[row] for row in np.argsort(metrics.values["distance"])]
    page.locator(".heads").first.get_by_text("induction").click()
    assert names(page)[:6] == [metrics.names[row] for row in np.argsort(metrics.values["induction"])[:6]]
    page.get_by_text("smallest first").first.click()
    assert names(page)[:6] == [metrics.names[row] for row in np.argsort(-metrics.values["induction"])[:6]]
    assert names(page, 1) == list(metrics.names)  # another table stays as it is


def test_a_bar_is_as_long_as_its_number(page: "Page") -> None:
    metrics = heads_of(3, 4)
    cell = page.locator(".heads").first.locator("tbody tr").first.locator("td").nth(4)
    assert cell.inner_text() == f"{metrics.values['self'][0]:.2f}".removeprefix("0")
    share = page.locator(".heads").first.locator("tbody tr").first.locator("td").nth(4).get_attribute("style")
    assert share == f"--w:{round(100 * metrics.values['self'][0])}"


def test_enter_sends_nothing(browser: "Browser") -> None:
    page = browser.new_page()
    page.set_content(f"<!doctype html>{heads_of(3, 4)._repr_html_()}")
    page.locator(".heads").get_by_text("distance").click()
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowRight")
    assert page.url == "about:blank"
    metrics = heads_of(3, 4)  # the metric beside is the next of the arrow key
    assert names(page)[:6] == [metrics.names[row] for row in np.argsort(-metrics.values["induction"])[:6]]
    page.close()
