"""The live page, in a browser: the list of runs, the bar, search, following, hostile texts, damaged runs."""

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.viewer.pages import Live, focused
from tests.viewer.small_runs import HOSTILE, Writing, write_run
from traceformer.texts.shown import visible
from traceformer.viewer.library import Library

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow


def fields(page: "Page") -> dict[str, str]:
    """Returns the fields of the address."""
    return page.evaluate("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")


def pick(page: "Page", key: str, text: str = "") -> None:
    """Opens the list of a key, and types into it once it has the focus."""
    page.keyboard.press(key)
    page.locator(".picker input:focus").wait_for()
    page.keyboard.type(text)


# The list of runs


def test_the_list_is_found_in_sorted_and_opened_by_keyboard(live: Live, byte_runs: Path) -> None:
    page = live(Library.at(byte_runs))
    expect(page.locator("tbody tr")).to_have_count(2)
    page.keyboard.press("/")
    page.keyboard.type("patt")
    expect(page.locator("tbody tr")).to_have_count(1)
    assert fields(page)["runs.find"] == "patt"
    page.keyboard.type("x")
    expect(page.get_by_text("None of 2 runs has all of “pattx”")).to_be_visible()
    page.get_by_role("button", name="Show all").click()
    page.get_by_role("button", name="Examples").click()
    assert page.locator("tbody td:first-child a").all_text_contents() == ["byte", "patterns"]
    assert fields(page)["runs.sort"] == "-Examples"
    page.locator("h1").click()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator(".bar .run b")).to_have_text("patterns")
    assert fields(page)["run"] == "patterns"
    page.go_back()
    expect(page.locator("tbody tr")).to_have_count(2)


def test_an_empty_folder_says_what_makes_a_run_and_shows_it_once_it_is_begun(live: Live, tmp_path: Path) -> None:
    page = live(Library.at(tmp_path))
    expect(page.get_by_text("traceformer extract --model byte")).to_be_visible()
    writing = Writing(tmp_path / "first", [["a"], ["b"], ["c"]])
    writing.commit()
    expect(page.get_by_text("being written")).to_be_visible(timeout=20_000)
    expect(page.get_by_text("1 of 3")).to_be_visible()
    writing.finish()
    expect(page.get_by_text("being written")).to_have_count(0, timeout=20_000)


def test_damaged_runs_are_shown_with_what_is_wrong_and_the_others_still_open(live: Live, tmp_path: Path) -> None:
    for name in ("fine", "head", "arrays", "tokens"):
        write_run(tmp_path / name)
    head = tmp_path / "head/meta.json"
    head.write_bytes(head.read_bytes().replace(b"tiny", b"tinx"))
    for folder, pattern in (("arrays", "*.zarr/attn/c/**/*"), ("tokens", "tokens/*.parquet")):
        for file in (tmp_path / folder).glob(pattern):
            if file.is_file():
                file.write_bytes(b"\0" * file.stat().st_size)
    page = live(Library.at(tmp_path))
    expect(page.locator(".problem")).to_contain_text(["meta.json was changed after it was written"])
    page.get_by_role("link", name="head").click()
    expect(page.get_by_role("alert")).to_contain_text("was changed after it was written")
    page.get_by_role("link", name="All runs").click()
    page.get_by_role("link", name="tokens").click()
    expect(page.get_by_role("alert").first).to_contain_text("was changed after it was written")
    page.get_by_title("All runs").click()
    page.get_by_role("link", name="arrays").click()
    expect(page.get_by_role("option", name="·cat, position 1")).to_be_visible()  # its texts are whole
    page.get_by_title("All runs").click()
    page.get_by_role("link", name="fine").click()
    expect(page.get_by_role("option", name="·cat, position 1")).to_be_visible()


def test_an_address_of_a_run_that_is_not_there_says_so(live: Live, tmp_path: Path) -> None:
    page = live(Library.at(tmp_path), "run=../../etc&screen=overview")
    expect(page.get_by_role("alert")).to_contain_text("no run '../../etc'")


# The bar


def test_examples_and_runs_are_chosen_from_lists_by_keyboard(live: Live, byte_runs: Path) -> None:
    page = live(Library.at(byte_runs), "run=byte&screen=overview")
    expect(page.get_by_role("button", name="1 of 3")).to_be_visible()
    pick(page, "e")
    expect(page.locator(".picker [role=option]")).to_have_count(3)
    assert focused(page) == "Example"
    page.keyboard.type("capital")
    expect(page.locator(".picker [role=option]")).to_have_count(1)
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="2 of 3")).to_be_visible()
    page.keyboard.press("]")
    page.keyboard.press("]")
    expect(page.get_by_role("button", name="1 of 3")).to_be_visible()
    pick(page, "o")
    expect(page.locator(".picker [role=option]")).to_have_count(2)
    page.keyboard.press("Escape")
    expect(page.locator(".picker")).to_have_count(0)
    pick(page, "o", "patterns")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator(".bar .run b")).to_have_text("patterns")
    expect(page.locator(".notices")).to_contain_text("layers 1, 3 of 4 only")


def test_search_finds_tokens_metrics_and_texts(live: Live, byte_runs: Path) -> None:
    page = live(Library.at(byte_runs), "run=byte&screen=overview")
    expect(page.get_by_role("button", name="1 of 3")).to_be_visible()
    page.keyboard.press("/")
    expect(page.locator(".picker [role=option]", has_text="induction")).to_be_visible()
    page.keyboard.type("cat s")
    text = "The cat sat on the mat. The cat sat on the hat."
    ends = [found.end() - 1 for found in re.finditer("cat s", text)]
    expect(page.locator(".picker [role=option] b")).to_have_text(["cat·s", "cat·s"])
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert int(fields(page)["q"]) == ends[1]
    pick(page, "/", "def")
    expect(page.get_by_role("option", name="def add(a, b)")).to_be_visible()
    page.get_by_role("option", name="def add(a, b)").click()
    expect(page.get_by_role("button", name="3 of 3")).to_be_visible()
    assert "q" not in fields(page)
    pick(page, "/", "induc")
    page.keyboard.press("Enter")
    assert fields(page)["overview.sort"] == "induction"


@pytest.mark.parametrize("width", [700, 1400])
def test_nothing_is_wider_than_the_window(live: Live, byte_runs: Path, width: int) -> None:
    for fragment in ("", "run=patterns&screen=overview"):
        page = live(Library.at(byte_runs), fragment, viewport={"width": width, "height": 900})
        expect(page.locator("tbody tr, .tokens button").first).to_be_visible()
        for key in ("", "/"):
            if key:
                page.keyboard.press(key)
            assert page.evaluate("document.documentElement.scrollWidth") == width


# A run that is being written


def test_a_run_that_is_written_is_followed(live: Live, tmp_path: Path) -> None:
    writing = Writing(tmp_path / "mine", [["first"], ["second"], ["third"]])
    page = live(Library.at(tmp_path), "run=mine&screen=overview")
    expect(page.get_by_text("Nothing is committed yet")).to_be_visible()
    writing.commit()
    expect(page.locator(".notices")).to_contain_text("being written: 1 of 3 examples so far", timeout=20_000)
    expect(page.get_by_role("option", name="first, position 0")).to_be_visible()
    writing.commit()
    expect(page.get_by_role("button", name="1 of 2")).to_be_visible(timeout=20_000)
    page.keyboard.press("]")
    expect(page.get_by_role("option", name="second, position 0")).to_be_visible()
    writing.finish()
    expect(page.get_by_role("button", name="2 of 3")).to_be_visible(timeout=20_000)
    expect(page.locator(".notices")).not_to_contain_text("being written")
    assert fields(page)["run"] == "mine"


def test_of_a_run_that_takes_the_place_of_another_nothing_is_shown_under_the_tokens_of_that(
    live: Live, tmp_path: Path
) -> None:
    write_run(tmp_path / "mine", [["first", " text"], ["second"]])
    page = live(Library.at(tmp_path), "run=mine&screen=head&layer=1&head=0")
    expect(page.locator(".facts")).to_be_visible()
    shutil.rmtree(tmp_path / "mine")
    write_run(tmp_path / "mine", [["quite", " another", " one"]])
    page.keyboard.press("1")
    expect(page.get_by_role("option", name="·another, position 1")).to_be_visible()
    expect(page.get_by_role("button", name="1 of 1")).to_be_visible()
    page.get_by_title("All runs").click()
    shutil.rmtree(tmp_path / "mine")
    write_run(tmp_path / "mine", [["the", " third"]])
    page.get_by_role("link", name="mine").click()
    expect(page.get_by_role("option", name="·third, position 1")).to_be_visible()
    expect(page.get_by_role("option", name="·another, position 1")).to_have_count(0)


# Texts that are not to be trusted


def test_hostile_texts_are_text_wherever_they_are_shown(live: Live, tmp_path: Path) -> None:
    write_run(tmp_path / "hostile", [HOSTILE, ["<b>fine</b>"]])
    page = live(Library.at(tmp_path), "run=hostile&screen=overview")
    tokens = page.locator(".tokens button")
    expect(tokens).to_have_count(len(HOSTILE))
    assert tokens.all_text_contents() == [visible(token) for token in HOSTILE]
    pick(page, "e")
    expect(page.locator(".picker [role=option]")).to_have_count(2)
    page.keyboard.press("Escape")
    pick(page, "/", "<img")
    expect(page.locator(".picker [role=option] b")).to_have_text([visible(HOSTILE[0])])
    page.keyboard.press("Escape")
    titles = page.locator(".bar nav a").all_text_contents()
    for number, title in enumerate(titles, 1):
        page.keyboard.press(f"{number}")
        expect(page).to_have_title(f"{title} · hostile · Traceformer")
        expect(page.locator(".loading")).to_have_count(0, timeout=60_000)
        assert page.locator("img, script:not(body > script), iframe, object, a[href^=javascript]").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") == 1400


@pytest.mark.parametrize("name", ["<img src=x onerror=document.title='owned'>", "a&run=b#c", "x' y", "\u202eevil"])
def test_hostile_names_of_runs_are_text_and_lead_to_their_run(live: Live, tmp_path: Path, name: str) -> None:
    written = write_run(tmp_path / "plain")
    shutil.move(written, tmp_path / name)
    page = live(Library.at(tmp_path))
    page.get_by_role("link", name=name).click()
    expect(page.get_by_role("option", name="·cat, position 1")).to_be_visible()
    assert fields(page)["run"] == name
    assert page.title() == f"Overview · {name} · Traceformer"


def test_code_names_a_run_as_one_word_of_a_shell_and_gives_the_same(live: Live, tmp_path: Path) -> None:
    write_run(tmp_path / "it's; here")
    page = live(Library.at(tmp_path), "run=it's; here&screen=lab")
    page.get_by_role("button", name="Code").first.click()
    expect(page.get_by_text("traceformer heads 'it'\\''s; here' --output heads.csv")).to_be_visible()
    page = live(Library.at(tmp_path), "run=it's; here&screen=lab&lab.of=example")
    page.get_by_role("button", name="Code").first.click()
    expect(page.get_by_text("examples=[0]")).to_be_visible()
    expect(page.get_by_text("traceformer heads")).to_have_count(0)  # it measures no single example
