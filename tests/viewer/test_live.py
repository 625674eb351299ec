"""The live page: a server's, in a browser."""

from pathlib import Path

import pytest

from tests.viewer.pages import Live
from traceformer.viewer.library import Library


@pytest.mark.slow
def test_the_page_of_runs_lists_them(live: Live, byte_runs: Path) -> None:
    page = live(Library(byte_runs))
    page.get_by_role("link", name="patterns").wait_for()
    assert page.get_by_role("link", name="byte").count() == 1
