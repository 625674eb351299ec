import os
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.store import runs
from traceformer.cli.arguments import find_example, find_run, parse_head
from traceformer.errors import ExampleNotFound, NotFound, SelectionError
from traceformer.store.run import Run
from traceformer.store.writer import RunWriter

HOUR_NS = 3600 * 10**9


def make_run(folder: Path, hours_old: float) -> Path:
    folder.mkdir(parents=True)
    meta = folder / "meta.json"
    meta.write_text("{}")
    made = meta.stat().st_mtime_ns - round(hours_old * HOUR_NS)
    os.utime(meta, ns=(made, made))
    return folder


def run_of(folder: Path, *ids: str) -> Run:
    """Returns a run whose examples have these ids."""
    layout = runs.plan(arrays=runs.FEW[-1:], n_examples=len(ids))
    with RunWriter.create(folder / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        buffer = writer.buffer()
        table = runs.fill(layout, 0, buffer)
        writer.commit(0, buffer, table.set_column(0, "example_id", pa.array(ids)))
        return Run(writer.finish())


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    """Three runs, the newest not the last by name, and a folder that is no run."""
    for name, hours_old in (("a_gpt2", 3), ("b_bert", 1), ("c_t5", 2)):
        make_run(tmp_path / "traces" / name, hours_old)
    (tmp_path / "traces" / "notes").mkdir()
    return tmp_path / "traces"


def test_a_run_is_found_by_its_folder_by_its_name_and_as_the_latest(traces: Path) -> None:
    assert find_run(str(traces / "c_t5"), traces) == traces / "c_t5"
    assert find_run("c_t5", traces) == traces / "c_t5"
    assert find_run("latest", traces) == traces / "b_bert"


def test_a_folder_goes_before_a_name_in_traces(traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "a_gpt2", 0)
    monkeypatch.chdir(tmp_path)
    assert find_run("a_gpt2", traces) == Path("a_gpt2")


def test_an_unfinished_run_goes_by_its_later_name_until_there_is_a_finished_one(traces: Path) -> None:
    unfinished = make_run(traces / "_tmp_d_opt", 0)
    assert find_run("d_opt", traces) == find_run(str(traces / "d_opt"), traces) == unfinished
    finished = make_run(traces / "d_opt", 0)
    assert find_run("d_opt", traces) == finished


def test_the_current_folder_may_be_a_run(traces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(traces / "c_t5")
    assert find_run(".", traces) == Path()
    monkeypatch.chdir(traces / "notes")
    with pytest.raises(NotFound, match="not a run"):
        find_run(".", traces)


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("b_brt", "no run 'b_brt'", "b_bert"),
        ("xyzzy", "no run 'xyzzy'", "latest, which is b_bert"),
        ("../traces/notes", "no run '../traces/notes'", "latest, which is b_bert"),
    ],
)
def test_a_run_that_is_not_there_names_the_nearest_one(traces: Path, name: str, message: str, hint: str) -> None:
    with pytest.raises(NotFound) as caught:
        find_run(name, traces)
    assert caught.value.message == message
    assert caught.value.hint == hint


def test_a_folder_that_is_no_run_is_refused(traces: Path) -> None:
    with pytest.raises(NotFound, match=r"holds no meta\.json"):
        find_run(str(traces / "notes"), traces)


def test_latest_of_nothing_says_how_to_make_a_run(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="traceformer extract makes one"):
        find_run("latest", tmp_path)


@pytest.mark.parametrize(("name", "found"), [("cc", "cc"), ("1", "bb"), (None, "aa"), ("2", "2")])
def test_an_example_is_found_by_id_then_by_number_and_is_the_first_by_default(
    tmp_path: Path, name: str | None, found: str
) -> None:
    assert find_example(run_of(tmp_path, "aa", "bb", "2", "cc"), name) == found


def test_an_example_that_is_not_there_says_what_is(tmp_path: Path) -> None:
    with pytest.raises(ExampleNotFound) as caught:
        find_example(run_of(tmp_path, "aa", "bb"), "7")
    assert (caught.value.why, caught.value.hint) == ("this run holds 2", "a number from 0 to 1, or an id")


@given(layer=st.integers(0, 200), head=st.integers(0, 200))
def test_a_head_is_read_however_it_is_written(layer: int, head: int) -> None:
    assert parse_head(None, f"L{layer}H{head}") == (layer, head)
    assert parse_head(layer, f"L{layer}H{head}") == (layer, head)
    assert parse_head(layer, str(head)) == parse_head(layer, f"h{head}") == (layer, head)
    assert parse_head(layer, None) == (layer, None)
    assert parse_head(None, str(head)) == (None, head)


@pytest.mark.parametrize("head", ["", "L5", "H", "5.3", "L5 H3", "-1", "L-1H2"])
def test_what_is_no_head_is_refused(head: str) -> None:
    with pytest.raises(SelectionError, match="--head L5H3"):
        parse_head(None, head)


def test_two_different_layers_are_refused() -> None:
    with pytest.raises(SelectionError, match="different layers"):
        parse_head(4, "L5H3")
