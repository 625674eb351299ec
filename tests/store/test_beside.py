"""What is kept beside a run: made once, never of another run, never damaged, never too much."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.store import runs
from traceformer.store import beside
from traceformer.store.beside import cache_folder, content_of, kept
from traceformer.store.memory import MemoryWriter
from traceformer.store.run import Run


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs, whose contents differ."""
    folder, arrays = tmp_path_factory.mktemp("runs"), [runs.spec("dec.embed")]
    first = runs.write(folder / "first", runs.plan(arrays=arrays, n_examples=1, longest={"dec": 4}))
    second = runs.write(folder / "second", runs.plan(arrays=arrays, n_examples=2, longest={"dec": 4}))
    return first, second


@pytest.fixture
def run(two_runs: tuple[Path, Path], tmp_path: Path) -> Path:
    """The first of them, where a test may change what it likes."""
    return shutil.copytree(two_runs[0], tmp_path / "traces" / "run")


def replace(run: Path, other: Path) -> None:
    shutil.rmtree(run)
    shutil.copytree(other, run)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def once(bytes_made: bytes) -> Callable[[], bytes]:
    """Returns what makes these bytes one time, and fails the next."""
    left = [bytes_made]
    return lambda: left.pop()


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_what_was_made_is_read_the_next_time(run: Path) -> None:
    make = once(b"made")
    assert kept(Run(run), "name", make) == b"made"
    assert kept(Run(run), "name", make) == b"made"
    assert kept(Run(run), "other", once(b"another")) == b"another"


def test_it_lies_beside_the_run_which_is_as_it_was(run: Path) -> None:
    before = runs.contents(run)
    kept(Run(run), "name", once(b"made"))
    assert runs.contents(run) == before
    assert Run(run).verify().ok
    assert len(files(run.parent / ".traceformer")) == 1
    assert not cache_folder().exists()


def test_a_run_that_replaces_another_never_meets_what_was_kept_of_it(run: Path, two_runs: tuple[Path, Path]) -> None:
    kept(Run(run), "name", once(b"of the first"))
    replace(run, two_runs[1])
    assert kept(Run(run), "name", once(b"of the second")) == b"of the second"


def test_a_run_that_is_replaced_meanwhile_has_nothing_kept(run: Path, two_runs: tuple[Path, Path]) -> None:
    def replaced() -> bytes:
        replace(run, two_runs[1])
        return b"of the first"

    assert kept(Run(run), "name", replaced) == b"of the first"
    assert kept(Run(run), "name", once(b"of the second")) == b"of the second"


@pytest.mark.parametrize("damage", [b"", b"short", b"\0" * 40])
def test_what_is_damaged_is_made_again(run: Path, damage: bytes) -> None:
    kept(Run(run), "name", once(b"made"))
    [file] = files(run.parent / ".traceformer")
    file.write_bytes(damage)
    assert kept(Run(run), "name", once(b"made again")) == b"made again"
    assert kept(Run(run), "name", once(b"never")) == b"made again"


def test_where_nothing_can_be_written_it_lies_in_the_users_cache(run: Path) -> None:
    (run.parent / ".traceformer").touch()  # for root no folder is read-only
    make = once(b"made")
    assert kept(Run(run), "name", make) == b"made"
    assert kept(Run(run), "name", make) == b"made"
    assert len(files(cache_folder())) == 1


def test_where_nothing_at_all_can_be_written_it_is_made_each_time(run: Path, tmp_path: Path) -> None:
    (run.parent / ".traceformer").touch()
    (tmp_path / "cache").touch()
    assert kept(Run(run), "name", once(b"made")) == b"made"
    assert kept(Run(run), "name", once(b"made again")) == b"made again"


def test_what_was_used_longest_ago_goes_first(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "MOST_BYTES", 1000)
    monkeypatch.setattr(beside, "_sizes", {})
    opened = Run(run)
    for number in range(6):
        kept(opened, f"{number}", once(bytes(200)))
        kept(opened, "0", once(b"never"))  # it is used again and again
    left = files(run.parent / ".traceformer")
    assert sum(path.stat().st_size for path in left) <= 1000
    assert {"0", "5"} <= {path.name for path in left}
    assert "1" not in {path.name for path in left}


def test_of_a_run_that_is_not_finished_nothing_is_kept(tmp_path: Path) -> None:
    unfinished = Run(runs.begin(tmp_path / "run", 1))
    assert content_of(unfinished) is None
    assert kept(unfinished, "name", once(b"made")) == b"made"
    assert kept(unfinished, "name", once(b"made again")) == b"made again"


def test_of_a_run_in_memory_nothing_is_kept() -> None:
    layout = runs.plan(arrays=[runs.spec("dec.embed")], n_examples=1, longest={"dec": 4})
    with MemoryWriter(layout, runs.META, digest=runs.DIGEST) as writer:
        for shard in writer.pending:
            buffer = writer.buffer()
            writer.commit(shard, buffer, runs.fill(layout, shard, buffer))
        assert content_of(writer.finish()) is None
