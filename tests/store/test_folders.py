"""Runs are found by folder, name and age, and listed without reading an array."""

import os
from pathlib import Path

import pytest

from tests.store import runs
from traceformer import open_run
from traceformer.errors import NotFound, UsageError
from traceformer.store.folders import find_run, list_runs

HOUR_NS = 3600 * 10**9


def make_run(folder: Path, hours_old: float) -> Path:
    folder.mkdir(parents=True)
    meta = folder / "meta.json"
    meta.write_text("{}")
    made = meta.stat().st_mtime_ns - round(hours_old * HOUR_NS)
    os.utime(meta, ns=(made, made))
    return folder


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


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A folder with a run, a newer unfinished one, and the newest, whose head is damaged."""
    made = [runs.write(tmp_path / "traces/one", runs.plan(arrays=runs.FEW))]
    made.append(runs.begin(tmp_path / "traces/two", shards=2))
    made.append(runs.write(tmp_path / "traces/three", runs.plan(arrays=runs.FEW, n_examples=2)))
    (made[2] / "meta.json").write_bytes((made[2] / "meta.json").read_bytes()[:-9])
    for age, run in enumerate(reversed(made)):
        moment = 1_700_000_000 - 60 * age
        os.utime(run / "meta.json", (moment, moment))
    return tmp_path / "traces"


def test_a_run_is_opened_by_folder_name_or_as_the_latest(tmp_path: Path) -> None:
    folder = runs.write(tmp_path / "traces/one", runs.plan(arrays=runs.FEW))
    for name in (folder, str(folder), "one", "latest"):
        assert open_run(name, tmp_path / "traces").folder == folder
    runs.write(tmp_path / "traces/two", runs.plan(arrays=runs.FEW))
    with pytest.raises(UsageError, match="holds 2 runs"):
        open_run(tmp_path / "traces")


def test_a_list_tells_the_runs_of_a_folder_the_newest_first(three: Path) -> None:
    found = list_runs(three)
    told = [(run.run, run.model, run.n_examples, run.finished) for run in found.runs]
    assert told == [("three", None, 0, True), ("_tmp_two", "tiny", 8, False), ("one", "tiny", 11, True)]
    size = sum(path.stat().st_size for path in (three / "one").rglob("*") if path.is_file())
    assert found.runs[-1].bytes == size
    assert repr(found) == f"RunList('{three}': 3 runs)"
    assert found.to_frame()["run"].tolist() == ["three", "_tmp_two", "one"]
    assert found.to_json()["runs"][2]["n_examples"] == 11


def test_a_list_of_no_folder_is_refused_and_an_empty_one_is_empty(tmp_path: Path) -> None:
    assert list_runs(tmp_path).runs == ()
    assert len(list_runs(tmp_path).to_frame()) == 0
    with pytest.raises(NotFound, match="no folder"):
        list_runs(tmp_path / "traces")
