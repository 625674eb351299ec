"""A run that is killed at any moment resumes to the same bytes; only the same run resumes."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.store import runs, steps
from traceformer.errors import ConfigurationChanged, NotFound
from traceformer.store.commits import committed_shards, verify_run
from traceformer.store.locks import find_unfinished, unfinished_folder
from traceformer.store.run import TraceStore
from traceformer.store.writer import RunWriter


def test_a_resumed_run_equals_an_uninterrupted_one_byte_for_byte(tmp_path: Path) -> None:
    whole = runs.contents(runs.write(tmp_path / "whole/run", runs.plan(arrays=runs.FEW)))
    runs.begin(tmp_path / "parts/run", 1)
    begin_again = unfinished_folder(tmp_path / "parts/run")
    assert committed_shards(begin_again) == [0]
    assert runs.contents(runs.complete(tmp_path / "parts/run")) == whole


def test_what_a_killed_writer_left_of_a_shard_is_replaced(tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW)
    whole = runs.contents(runs.write(tmp_path / "whole/run", layout))
    folder = runs.begin(tmp_path / "run", 1)
    for array in layout.arrays:
        for path in layout.shard_files(array, 1):
            (folder / path).write_bytes(b"half a shard")
    (folder / "tokens/1.parquet").write_bytes(b"half a table")
    (folder / "tokens/.1.parquet.part").write_bytes(b"half a table")
    (folder / "commits/.1.json.99.part").write_bytes(b"half a record")
    (folder / "dec_res_embed.zarr/x/c.1.0.__lock").write_bytes(b"")
    assert runs.contents(runs.complete(tmp_path / "run")) == whole


def kill_until_finished(folder: Path, writers: int, kills: int, seconds: float) -> int:
    """Kills and resumes a run's writers at random moments, then lets them finish; returns how many were killed."""
    random, killed = np.random.default_rng(), 0
    numbers = [("--writer", str(w), str(writers)) for w in range(writers)]
    while killed < kills and not folder.exists():
        processes = [runs.spawn(folder, *number) for number in numbers]
        for process in processes:
            time.sleep(random.uniform(0, seconds))
            killed += process.poll() is None
            process.kill()
        for process in processes:
            process.communicate()
    processes = [runs.spawn(folder, *number) for number in numbers]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    return killed


def crash_test(tmp_path: Path, *, kills: int, writers: int = 1) -> None:
    start = time.perf_counter()
    with runs.spawn(tmp_path / "whole/run") as process:
        process.communicate()
    seconds = time.perf_counter() - start
    whole = runs.contents(tmp_path / "whole/run")
    done = attempt = 0
    while done < kills:
        attempt += 1
        folder = tmp_path / f"killed-{attempt}/run"
        done += kill_until_finished(folder, writers, min(6, kills - done), seconds / 4)
        found = runs.contents(folder)
        differing = {path for path in whole.keys() | found.keys() if whole.get(path) != found.get(path)}
        if writers > 1:  # records say who wrote them
            differing -= {path for path in whole if path.startswith("commits/")} | {"manifest.json"}
        assert differing == set()
        assert verify_run(folder) == []
        assert {path.name for path in folder.parent.iterdir()} <= {"run", "_tmp_run.lock"}
        shutil.rmtree(folder.parent)


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    crash_test(tmp_path, kills=3)


@pytest.mark.slow
@pytest.mark.parametrize("writers", [1, 2])
def test_a_run_killed_40_times_resumes_to_the_same_bytes(tmp_path: Path, writers: int) -> None:
    crash_test(tmp_path, kills=40, writers=writers)


def resume_all(left: list[Path], whole: dict[str, bytes]) -> None:
    """Resumes a run from each state that it was left in: no record there names what is not."""
    for folder in left:
        if (folder / "_tmp_run/meta.json").exists():
            assert [each for each in verify_run(folder / "_tmp_run") if each.path.suffix != ".part"] == []
        assert runs.contents(steps.write_or_resume(folder / "run")) == whole
        shutil.rmtree(folder)


@pytest.mark.slow
def test_a_run_killed_between_any_two_system_calls_resumes_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").mkdir()
    killed = steps.Snapshots(tmp_path / "whole", tmp_path / "killed")
    with monkeypatch.context() as patch:
        steps.watch_changes(patch, killed.take)
        whole = runs.contents(steps.write_or_resume(tmp_path / "whole/run"))
    assert len(killed.taken) > 100
    monkeypatch.setattr(os, "fsync", lambda _: None)  # to be quick
    resume_all(killed.taken, whole)


@pytest.mark.slow
def test_a_run_that_lost_power_at_any_time_resumes_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").mkdir()
    with monkeypatch.context() as patch:
        lost = steps.Survivors(tmp_path / "whole", tmp_path / "lost", patch)
        whole = runs.contents(steps.write_or_resume(tmp_path / "whole/run"))
    lost.close()
    assert len(lost.taken) > 20
    monkeypatch.setattr(os, "fsync", lambda _: None)  # to be quick
    resume_all(lost.taken, whole)


def test_finishing_can_be_interrupted_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = runs.contents(runs.write(tmp_path / "whole/run", runs.plan(arrays=runs.FEW)))
    steps = ("write_metadata", "_write_positions", "_join_tokens", "write_manifest", "_move_in", "sync_folder")
    for step in steps:
        folder = tmp_path / step / "run"
        runs.begin(folder, 3)
        with monkeypatch.context() as patch:
            patch.setattr(f"traceformer.store.finishing.{step}", runs.interrupt)
            with pytest.raises(KeyboardInterrupt):
                runs.complete(folder)
        done = folder if folder.exists() else runs.complete(folder)
        assert runs.contents(done) == whole


def test_resume_takes_the_unfinished_folder_too(tmp_path: Path) -> None:
    assert runs.complete(runs.begin(tmp_path / "run", 2)) == tmp_path / "run"


def test_nothing_to_resume_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nothing to resume"):
        runs.complete(tmp_path / "run")


def test_a_folder_that_was_killed_before_it_had_a_head_is_begun_anew(tmp_path: Path) -> None:
    unfinished_folder(tmp_path / "run").mkdir()
    assert TraceStore(runs.write(tmp_path / "run", runs.plan(arrays=runs.FEW))).n == 11


def test_the_newest_unfinished_run_of_the_same_configuration_is_found(tmp_path: Path) -> None:
    assert find_unfinished(tmp_path, runs.DIGEST) is None
    for age, name in enumerate(("b", "c", "a")):
        os.utime(runs.begin(tmp_path / name) / "meta.json", (0, age))
    with RunWriter.create(tmp_path / "z", runs.plan(), {}, digest={"model": "other"}):
        assert find_unfinished(tmp_path, runs.DIGEST) == tmp_path / "_tmp_a"
    (tmp_path / "_tmp_a/meta.json").write_text("{}")
    assert find_unfinished(tmp_path, runs.DIGEST) == tmp_path / "_tmp_c"


def test_the_order_of_the_digests_names_does_not_matter(tmp_path: Path) -> None:
    runs.begin(tmp_path / "run", 1)
    shuffled = dict(reversed(runs.DIGEST.items()))
    with RunWriter.resume(tmp_path / "run", runs.plan(arrays=runs.FEW), {}, digest=shuffled) as writer:
        assert writer.pending == [1, 2]


@pytest.mark.parametrize(
    ("digest", "named"),
    [
        ({**runs.DIGEST, "model": "huge"}, 'another model.*"tiny", is "huge"'),
        ({**runs.DIGEST, "revision": "main"}, 'another revision.*null, is "main"'),
        ({"model": "tiny", "sites": ["q"]}, "another sites and batch_size"),
    ],
)
def test_a_changed_configuration_is_refused_and_named(tmp_path: Path, digest: dict[str, Any], named: str) -> None:
    folder = runs.begin(tmp_path / "run", 1)
    before = runs.contents(folder)
    with pytest.raises(ConfigurationChanged, match=named):
        RunWriter.resume(tmp_path / "run", runs.plan(arrays=runs.FEW), runs.META, digest=digest)
    assert runs.contents(folder) == before


def test_a_changed_layout_is_refused_and_named(tmp_path: Path) -> None:
    runs.begin(tmp_path / "run", 1)
    with pytest.raises(ConfigurationChanged, match=r"another shard_examples.*was 4, is 2"):
        runs.complete(tmp_path / "run", runs.plan(arrays=runs.FEW, shard_examples=2))
