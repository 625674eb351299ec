"""Several writers, locks, and what is there already: nobody's work is lost."""

import shutil
import time
from pathlib import Path

import pytest

from tests.store import runs
from traceformer.errors import ConfigurationChanged, RunExists, UsageError
from traceformer.store.commits import committed_shards, verify_run
from traceformer.store.locks import unfinished_folder
from traceformer.store.writer import RunWriter


def test_two_writers_make_the_run_of_one(tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW)
    whole = runs.contents(runs.write(tmp_path / "whole/run", layout))
    folder = tmp_path / "run"
    first = RunWriter.create(folder, layout, runs.META, digest=runs.DIGEST, writer=(0, 2))
    second = RunWriter.create(folder, layout, runs.META, digest=runs.DIGEST, writer=(1, 2))
    with first, second:
        assert (first.pending, second.pending) == ([0, 2], [1])
        runs.write_shards(first)
        assert first.finish() == unfinished_folder(folder)
        runs.write_shards(second)
        assert second.finish() == folder
        assert first.finish() == folder
    found = runs.contents(folder)
    differing = {path for path in whole.keys() | found.keys() if whole.get(path) != found.get(path)}
    assert differing == {"commits/0.json", "commits/1.json", "commits/2.json", "manifest.json"}
    assert verify_run(folder) == []


def test_two_processes_may_finish_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for _ in range(2):
        with runs.spawn(folder, "--writer", "0", "2") as first, runs.spawn(folder, "--writer", "1", "2") as second:
            said = [process.communicate()[0] for process in (first, second)]
            assert [first.returncode, second.returncode] == [0, 0]
        assert f"{folder}\n" in said
        assert verify_run(folder) == []
        shutil.rmtree(folder)


def test_a_joining_writer_must_have_the_same_configuration(tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW)
    with (
        RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST, writer=(0, 2)),
        pytest.raises(ConfigurationChanged, match="another model"),
    ):
        RunWriter.create(tmp_path / "run", layout, runs.META, digest={"model": "other"}, writer=(1, 2), overwrite=True)


@pytest.mark.parametrize("writer", [(1, 1), (-1, 2), (0, 0)])
def test_a_writers_number_must_be_one_of_w(tmp_path: Path, writer: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="writer"):
        runs.begin(tmp_path / "run", writer=writer)


# Locks


@pytest.mark.parametrize("other", [(0, 1), (0, 2), (1, 2)])
def test_a_second_process_is_refused_while_the_first_writes(tmp_path: Path, other: tuple[int, int]) -> None:
    layout = runs.plan(arrays=runs.FEW)
    with (
        RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST),
        pytest.raises(RunExists, match="another process is writing"),
    ):
        runs.complete(tmp_path / "run", writer=other)
    assert runs.complete(tmp_path / "run") == tmp_path / "run"


def test_a_crash_leaves_no_lock_behind(tmp_path: Path) -> None:
    with runs.spawn(tmp_path / "run") as process:
        while not (tmp_path / "_tmp_run/commits/0.json").exists():
            time.sleep(0.01)
        process.kill()
    with RunWriter.resume(tmp_path / "run", runs.long_plan(), runs.META, digest=runs.DIGEST) as writer:
        assert 0 not in writer.pending


def test_overwrite_does_not_touch_a_run_that_is_being_written(tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW)
    with RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        runs.write_shards(writer, 1)
        with pytest.raises(RunExists, match="another process"):
            runs.begin(tmp_path / "run", overwrite=True)
        assert committed_shards(writer.folder) == [0]


# What is there stays


def test_a_finished_run_is_not_replaced_unless_told(tmp_path: Path) -> None:
    folder = runs.write(tmp_path / "run", runs.plan(arrays=runs.FEW))
    before = runs.contents(folder)
    with pytest.raises(RunExists, match="`overwrite=True`"):
        runs.begin(folder)
    with pytest.raises(RunExists):
        runs.complete(folder)
    assert runs.contents(folder) == before


def test_an_unfinished_run_is_not_replaced_unless_told(tmp_path: Path) -> None:
    folder = runs.begin(tmp_path / "run", 1)
    with pytest.raises(RunExists, match="`resume=True`"):
        runs.begin(tmp_path / "run")
    assert committed_shards(folder) == [0]
    assert committed_shards(runs.begin(tmp_path / "run", overwrite=True)) == []


def test_an_overwritten_run_is_there_until_the_new_one_is_finished(tmp_path: Path) -> None:
    folder = runs.write(tmp_path / "run", runs.plan(arrays=runs.FEW))
    before = runs.contents(folder)
    runs.begin(folder, 1, overwrite=True)
    assert runs.contents(folder) == before
    runs.complete(folder, overwrite=True)
    assert verify_run(folder) == []
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_crash_while_runs_change_places_loses_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = runs.write(tmp_path / "run", runs.plan(arrays=runs.FEW))
    runs.begin(folder, 1, overwrite=True)
    rename = Path.rename
    with monkeypatch.context() as patch:
        patch.setattr(
            Path, "rename", lambda self, to: runs.interrupt() if self.name == "_tmp_run" else rename(self, to)
        )
        with pytest.raises(KeyboardInterrupt):
            runs.complete(folder, overwrite=True)
    assert verify_run(tmp_path / "_old_run") == []
    runs.complete(folder, overwrite=True)
    assert verify_run(folder) == []
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_that_is_no_run_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("years of work")
    with pytest.raises(RunExists, match="is not a run") as refused:
        runs.begin(tmp_path / "run", overwrite=overwrite)
    assert "replaces it" not in str(refused.value)
    assert (tmp_path / "run/thesis.tex").read_text() == "years of work"


def test_a_run_that_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    runs.begin(tmp_path / "run", 3)
    with RunWriter.resume(tmp_path / "run", runs.plan(arrays=runs.FEW), runs.META, digest=runs.DIGEST) as writer:
        (tmp_path / "run").mkdir()
        (tmp_path / "run/other").touch()
        with pytest.raises(RunExists, match="meanwhile"):
            writer.finish()
    assert committed_shards(tmp_path / "_tmp_run") == [0, 1, 2]
