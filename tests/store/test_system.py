"""What operating systems do differently: the ways of Windows and macOS, on a Linux that lacks what they lack."""

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.store import like_windows, runs
from traceformer.errors import CorruptRun, RunExists, Unsupported
from traceformer.store import system
from traceformer.store.commits import committed_shards, verify_run
from traceformer.store.durable import WriteGroup
from traceformer.store.files import Checksum, FileLock, durable_write
from traceformer.store.marks import check_file


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has locks and names go the way of Windows, in this process."""
    monkeypatch.setattr(system, "_msvcrt", like_windows.msvcrt())
    monkeypatch.setattr(system, "_fcntl", None)
    monkeypatch.setattr(system, "HAS_DIRECT_WRITES", False)
    monkeypatch.setattr(system, "KEEPS_OPEN_FILES", True)
    monkeypatch.setattr(system, "_PAUSE", 0.001)


# Locks


@pytest.mark.usefixtures("windows")
def test_a_lock_of_windows_keeps_others_out_until_it_is_given_back(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    first.acquire()
    with pytest.raises(RunExists, match="another process is writing"):
        second.acquire()
    first.release()
    second.acquire()
    with pytest.raises(RunExists):
        first.acquire()
    second.release(remove=True)
    assert runs.contents(tmp_path) == {}


@pytest.mark.usefixtures("windows")
def test_who_waits_for_a_lock_of_windows_has_it_next(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    first.acquire()
    waiting = threading.Thread(target=second.acquire, kwargs={"wait": True})
    waiting.start()
    time.sleep(0.02)
    assert waiting.is_alive()
    first.release()
    waiting.join(10)
    with pytest.raises(RunExists):
        first.acquire()
    second.release()


@pytest.mark.usefixtures("windows")
def test_a_writer_lets_go_of_its_folder_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def renamed(path: Path, to: Path) -> Path:
        held = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.exists()]
        assert [file for file in held if file.startswith(f"{path}/")] == []
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", renamed)
    folder = runs.write(tmp_path / "run", runs.plan(arrays=runs.FEW))
    assert verify_run(folder) == []
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "_fcntl", None)
    with pytest.raises(Unsupported, match="no locks"):
        FileLock(tmp_path / "lock").acquire()


# Durability


def test_macos_is_asked_to_empty_the_disks_own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, int]] = []

    def told(file: int, command: int) -> None:
        asked.append((Path(os.readlink(f"/proc/self/fd/{file}")), command))

    monkeypatch.setattr(system, "_fcntl", SimpleNamespace(fcntl=told))
    monkeypatch.setattr(system, "_F_FULLFSYNC", 51)
    monkeypatch.setattr(system, "HAS_DIRECT_WRITES", False)
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("fsync leaves bytes in the disk's own memory"))
    with WriteGroup() as group:
        group.write(tmp_path / "file", b"1")
        group.write_parts(tmp_path / "large", [memoryview(b"2")])
    durable_write(tmp_path / "sealed", b"3")
    assert {command for _, command in asked} == {51}
    folders = [path for path, _ in asked if path == tmp_path]
    assert len(folders) == 2
    assert len(asked) == 3 + len(folders)
    assert runs.contents(tmp_path) == {"file": b"1", "large": b"2", "sealed": b"3"}


def test_a_share_that_knows_no_such_call_gets_an_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    synced: list[int] = []
    monkeypatch.setattr(system, "_fcntl", SimpleNamespace(fcntl=unknown))
    monkeypatch.setattr(system, "_F_FULLFSYNC", 51)
    monkeypatch.setattr(os, "fsync", synced.append)
    with (tmp_path / "file").open("wb") as file:
        system.sync(file.fileno())
        assert synced == [file.fileno()]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EINVAL])
def test_a_file_system_without_hard_links_gives_a_name_once(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def linked(*_: object) -> None:
        raise OSError(number, "no links")

    monkeypatch.setattr(os, "link", linked)
    durable_write(tmp_path / "record", b"first", exclusive=True)
    with pytest.raises(FileExistsError):
        durable_write(tmp_path / "record", b"second", exclusive=True)
    assert runs.contents(tmp_path) == {"record": b"first"}


# Reading


def test_reading_at_a_place_is_what_seeking_and_reading_give(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)))
    file = system.open_to_read(tmp_path / "file")
    try:
        for size, start in ((4, 250), (10, 250), (3, 0), (1, 256), (0, 7)):
            expected = bytes(range(256))[start : start + size]
            assert system.read_at(file, size, start) == system._read_after_seeking(file, size, start) == expected
    finally:
        os.close(file)


def test_a_folder_in_the_place_of_a_file_is_told_where_no_folder_can_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(CorruptRun, match="is no file"):
        check_file(tmp_path, Checksum(1, "sha256", ""), 0)
    with pytest.raises(PermissionError):
        check_file(tmp_path / "file", Checksum(1, "sha256", ""), 0)


# Names


@pytest.mark.usefixtures("windows")
def test_a_file_that_somebody_has_open_for_a_moment_is_waited_for() -> None:
    tries: list[int] = []

    def busy() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise PermissionError(errno.EACCES, "it is being used by another process")
        return "done"

    assert system.patiently(busy) == "done"
    with pytest.raises(PermissionError):
        system.patiently(refuse)


def refuse() -> None:
    raise PermissionError(errno.EACCES, "it is being used by another process")


# A process that is like Windows from its start


def spawned(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    line = [sys.executable, "-m", "tests.store.like_windows", str(folder), *arguments]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    return process


def ended(process: "subprocess.Popen[str]") -> str:
    with process:
        out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the run, as Linux writes them."""
    return runs.contents(runs.write(tmp_path_factory.mktemp("whole") / "run", runs.long_plan()))


@pytest.mark.slow
def test_windows_writes_the_bytes_of_linux(tmp_path: Path, whole: dict[str, bytes]) -> None:
    assert ended(spawned(tmp_path / "run")) == f"{tmp_path / 'run'}\n"
    assert runs.contents(tmp_path / "run") == whole
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_what_is_killed_on_windows_is_resumed_to_the_same_bytes(tmp_path: Path, whole: dict[str, bytes]) -> None:
    for _ in range(2):
        with spawned(tmp_path / "run") as process:
            before = len(list((tmp_path / "_tmp_run/commits").glob("*.json")))
            while len(list((tmp_path / "_tmp_run/commits").glob("*.json"))) < before + 2:
                time.sleep(0.01)
            process.kill()
    assert 4 <= len(committed_shards(tmp_path / "_tmp_run")) < 30
    ended(spawned(tmp_path / "run"))
    assert runs.contents(tmp_path / "run") == whole


@pytest.mark.slow
def test_two_writers_are_locked_out_on_windows(tmp_path: Path, whole: dict[str, bytes]) -> None:
    with spawned(tmp_path / "run") as first:
        while not (tmp_path / "_tmp_run/commits/0.json").exists():
            time.sleep(0.01)
        with spawned(tmp_path / "run") as second:
            assert "another process is writing" in second.communicate(timeout=120)[1]
            assert second.returncode
        assert first.communicate(timeout=120)[0] == f"{tmp_path / 'run'}\n"
    assert runs.contents(tmp_path / "run") == whole


@pytest.mark.slow
def test_two_processes_may_finish_at_once_on_windows(tmp_path: Path) -> None:
    with spawned(tmp_path / "run", "--writer", "0", "2") as first:
        both = [first, spawned(tmp_path / "run", "--writer", "1", "2")]
        said = [ended(process) for process in both]
    assert f"{tmp_path / 'run'}\n" in said
    assert verify_run(tmp_path / "run") == []
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


RECORDED = """
from tests.store import like_windows
like_windows.install()
import sys
from pathlib import Path
import numpy as np
import traceformer as tf
from traceformer.cli import main

out = Path(sys.argv[1])
run = tf.record(tf.load_model("byte", device="cpu"), ["The Eiffel Tower", "Rome is in Italy."], "all", out=out / "run")
run.verify()
np.save(out / "pattern.npy", run.attn(1, layer=2))
np.save(out / "stream.npy", run.get(0, "resid_post", 3))
for line in ("verify run", "heads run", "export run --format pt --output pt", "list ."):
    assert main(line.split()) == 0, line
replaced = tf.record(tf.load_model("byte", device="cpu"), ["Rome"], "attn", out=out / "run", overwrite=True)
assert replaced.n == 1
"""


@pytest.mark.slow
def test_a_model_is_recorded_read_and_exported_on_windows(tmp_path: Path) -> None:
    import traceformer as tf

    line = [sys.executable, "-c", RECORDED, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run = tf.record(tf.load_model("byte", device="cpu"), ["The Eiffel Tower", "Rome is in Italy."], "all")
    np.testing.assert_array_equal(np.load(tmp_path / "pattern.npy"), run.attn(1, layer=2))
    np.testing.assert_array_equal(np.load(tmp_path / "stream.npy"), run.get(0, "resid_post", 3))
