"""Files that become durable together: in which order, and what of them is there if they do not."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import xxhash

from tests.store import runs
from traceformer.store.durable import WriteGroup
from traceformer.store.files import sha256
from traceformer.store.writer import RunWriter


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """What is done to files from here on, in order: (`fsync`, file or folder), (`replace` or `link`, where to)."""
    done: list[tuple[str, Path]] = []
    fsync = os.fsync

    def seen(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def calling(source: Any, target: Any, **named: Any) -> Any:
            done.append((name, Path(target)))
            return call(source, target, **named)

        return calling

    def synced(file: int) -> None:
        done.append(("fsync", Path(os.readlink(f"/proc/self/fd/{file}"))))
        fsync(file)

    monkeypatch.setattr(os, "fsync", synced)
    for name in ("replace", "link"):
        monkeypatch.setattr(os, name, seen(name, getattr(os, name)))
    return done


def part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def write_group(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{number % 3}" / f"file-{number}" for number in range(count)]
    with WriteGroup() as group:
        for number in range(3):
            group.make_folder(folder / f"{number}")
        for path in paths:
            group.write(path, path.name.encode())
            assert not path.exists()
    return paths


@pytest.mark.parametrize("count", [0, 1, 7, 200])
def test_every_byte_is_durable_before_a_name_and_every_name_before_the_block_ends(
    tmp_path: Path, steps: list[tuple[str, Path]], count: int
) -> None:
    paths = write_group(tmp_path, count)
    folders = {path.parent for path in paths}
    assert sorted(steps[:count]) == sorted(("fsync", part_of(path)) for path in paths)
    assert steps[count : 2 * count] == [("replace", path) for path in paths]
    assert sorted(steps[2 * count :]) == sorted(("fsync", folder) for folder in {tmp_path, *folders})
    assert {path: path.read_bytes() for path in paths} == {path: path.name.encode() for path in paths}
    assert len(runs.contents(tmp_path)) == count


def test_checksums_are_those_of_the_bytes(tmp_path: Path) -> None:
    parts = [os.urandom(size) for size in (5, 5 << 20, 0, 3)]
    with WriteGroup() as group:
        small = group.write(tmp_path / "small", parts[0])
        large = group.write_parts(tmp_path / "large", map(memoryview, parts))
    assert (small.bytes, small.algorithm, small.digest) == (5, "sha256", sha256(parts[0]))
    whole = (tmp_path / "large").read_bytes()
    assert whole == b"".join(parts)
    assert (large.bytes, large.digest) == (len(whole), xxhash.xxh3_128(whole).hexdigest())


def test_threads_may_share_a_group(tmp_path: Path) -> None:
    datas = {tmp_path / f"{number}": os.urandom(number) for number in range(300)}
    with WriteGroup() as group, ThreadPoolExecutor(8) as pool:
        list(pool.map(group.write, datas, datas.values()))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == datas


def test_an_error_in_the_block_or_of_the_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop_while_writing() -> None:
        with WriteGroup() as group:
            group.write(tmp_path / "first", b"1")
            with group.open(tmp_path / "second") as file:
                file.write(b"2")
                runs.interrupt()

    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KeyboardInterrupt):
        stop_while_writing()
    monkeypatch.setattr(os, "fsync", runs.interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_group(tmp_path, 100)
    assert runs.contents(tmp_path) == {}
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_a_killed_process_left_is_written_over(tmp_path: Path) -> None:
    part_of(tmp_path / "file").write_bytes(bytes(1000))
    with WriteGroup() as group:
        group.write(tmp_path / "file", b"new")
    assert runs.contents(tmp_path) == {"file": b"new"}


def test_a_record_is_linked_when_all_that_it_names_is_durable(tmp_path: Path, steps: list[tuple[str, Path]]) -> None:
    layout = runs.plan(arrays=runs.FEW)
    with RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        steps.clear()
        runs.write_shards(writer, 1)
        folder = writer.folder
    paths = [folder / path for array in layout.arrays for path in layout.shard_files(array, 0)]
    paths.append(folder / "tokens/0.parquet")
    [linked] = [number for number, (what, _) in enumerate(steps) if what == "link"]
    assert steps[linked] == ("link", folder / "commits/0.json")
    before, after = steps[:linked], steps[linked + 1 :]
    for path in paths:
        synced, named, listed = (
            before.index(step) for step in (("fsync", part_of(path)), ("replace", path), ("fsync", path.parent))
        )
        assert synced < named < listed
    assert before[-1][0] == "fsync"  # the record's own bytes
    assert after == [("fsync", folder / "commits")]
    assert len(steps) == 2 * len(paths) + len({path.parent for path in paths}) + 3  # and nothing is done twice
