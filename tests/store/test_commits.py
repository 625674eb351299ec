"""Records, manifest and verification: nothing can change in a run without being found."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.store import runs
from traceformer import TraceStore
from traceformer.errors import CorruptRun, NotFound, Unreadable, UsageError
from traceformer.store.commits import CommitRecord, RunHead, verify_run
from traceformer.store.files import read_sealed, seal, unseal
from traceformer.store.writer import RunWriter


def flip_one_byte(folder: Path, random: np.random.Generator, paths: list[Path]) -> tuple[Path, bytes]:
    """Changes one byte of one file; returns the file and what it held."""
    path = paths[random.integers(len(paths))]
    before = path.read_bytes()
    changed = bytearray(before)
    changed[random.integers(len(changed))] ^= int(random.integers(1, 256))
    path.write_bytes(changed)
    return path, before


def find_flips(folder: Path, flips: int) -> None:
    random = np.random.default_rng(0)
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    assert verify_run(folder) == []
    for _ in range(flips):
        path, before = flip_one_byte(folder, random, paths)
        found = verify_run(folder)
        assert path.relative_to(folder) in [problem.path for problem in found], path
        path.write_bytes(before)
    assert verify_run(folder) == []


def test_verify_finds_single_byte_flips(run: Path) -> None:
    find_flips(run, 40)


@pytest.mark.slow
@pytest.mark.timeout(900)  # a verification for each
def test_verify_finds_every_one_of_1000_single_byte_flips(tmp_path: Path) -> None:
    find_flips(runs.write(tmp_path / "run", runs.plan("encdec")), 1000)


@pytest.mark.parametrize("name", ["meta.json", "manifest.json", "commits/1.json"])
def test_verify_finds_a_flip_of_any_byte_of_a_sealed_file(run: Path, name: str) -> None:
    before = (run / name).read_bytes()
    for at in range(0, len(before), 7):
        changed = bytearray(before)
        changed[at] ^= 1
        (run / name).write_bytes(changed)
        with pytest.raises(CorruptRun):
            read_sealed(run / name)
    for at in (0, len(before) // 2, len(before) - 1):
        changed = bytearray(before)
        changed[at] ^= 1
        (run / name).write_bytes(changed)
        assert Path(name) in [problem.path for problem in verify_run(run)]


def test_verify_of_an_unfinished_run_checks_what_is_committed(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "run", runs.plan(arrays=runs.FEW), runs.META, digest=runs.DIGEST) as writer:
        runs.write_shards(writer, 2)
        (writer.folder / "dec_res_embed.zarr/x/c.2.0").write_bytes(b"half of a shard that has no record")
        assert verify_run(writer.folder) == []
        path = writer.folder / "dec_res_embed.zarr/x/c.1.0"
        path.write_bytes(path.read_bytes()[:-1] + b"!")
        assert [str(problem.path) for problem in verify_run(writer.folder)] == ["dec_res_embed.zarr/x/c.1.0"]


def test_verify_names_what_is_missing_foreign_and_cut(run: Path) -> None:
    (run / "tokens/1.parquet").unlink()
    (run / "commits/2.json").unlink()
    (run / "notes.txt").write_text("mine")
    shard = run / "dec_res_embed.zarr/x/c.0.0"
    shard.write_bytes(shard.read_bytes()[:-5])
    found = {str(problem.path): problem.what for problem in verify_run(run)}
    assert found["tokens/1.parquet"] == "is missing"
    assert found["commits/2.json"] == "is missing"
    assert found["notes.txt"] == "does not belong to the run"
    assert "bytes instead of" in found["dec_res_embed.zarr/x/c.0.0"]
    assert len(found) == 4


def test_a_record_of_another_run_is_found(run: Path, tmp_path: Path) -> None:
    with RunWriter.create(
        tmp_path / "other", runs.plan(arrays=runs.FEW), runs.META, digest={"model": "other"}
    ) as writer:
        runs.write_shards(writer)
        other = writer.finish()
    (run / "commits/1.json").write_bytes((other / "commits/1.json").read_bytes())
    assert Path("commits/1.json") in [problem.path for problem in verify_run(run)]
    with pytest.raises(CorruptRun, match="belongs to another run"):
        TraceStore(run)
    (run / "commits/1.json").write_bytes((run / "commits/0.json").read_bytes())
    with pytest.raises(CorruptRun, match="record of another shard"):
        TraceStore(run)


def test_an_edited_head_is_refused(run: Path) -> None:
    text = (run / "meta.json").read_text().replace('"tiny"', '"huge"', 1)
    (run / "meta.json").write_text(text)
    with pytest.raises(CorruptRun, match=r"meta\.json was changed after it was written"):
        TraceStore(run)
    assert [str(problem.path) for problem in verify_run(run)] == ["meta.json"]


def test_a_run_of_a_newer_format_is_refused_and_says_so(run: Path) -> None:
    data = unseal((run / "meta.json").read_bytes(), run)
    (run / "meta.json").write_bytes(seal({**data, "format_version": 99}))
    for read in (TraceStore, verify_run):
        with pytest.raises(Unreadable, match=r"format version 99.*reads up to 3.*upgrade"):
            read(run)


@pytest.mark.parametrize("text", [b"", b"{}", b'{"run_id": "of another program"}', b"\xff\xfe", b"[1, 2"])
def test_a_head_of_something_else_is_unreadable(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "meta.json").write_bytes(text)
    with pytest.raises(Unreadable, match="not the head of a run"):
        TraceStore(tmp_path)


def test_no_run_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "nothing", tmp_path / "file"):
        with pytest.raises(NotFound, match="no run in"):
            TraceStore(folder)
        with pytest.raises(NotFound):
            verify_run(folder)


def test_what_nests_too_deep_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(3000):
        deep = [deep]
    with pytest.raises(UsageError, match="nests too deep"):
        seal({"a": deep})


def test_sealed_text_holds_its_own_sha256(run: Path) -> None:
    import hashlib

    text = (run / "manifest.json").read_text()
    stated = json.loads(text)["sha256"]
    without = text.replace(f',\n  "sha256": "{stated}"\n}}\n', "")
    assert hashlib.sha256(without.encode()).hexdigest() == stated


def test_the_manifest_lists_every_other_file(run: Path) -> None:
    listed = read_sealed(run / "manifest.json")["files"]
    assert set(listed) == set(runs.contents(run)) - {"manifest.json"}
    assert {name: entry["bytes"] for name, entry in listed.items()} == {
        name: len(data) for name, data in runs.contents(run).items() if name != "manifest.json"
    }


def test_a_record_holds_ids_lengths_and_writer(run: Path) -> None:
    layout, record = RunHead.read(run).layout, CommitRecord.read(run, 2)
    assert record.examples == ("example-8", "example-9", "example-10")
    assert record.lengths == {"dec": tuple(runs.lengths(layout, example)["dec"] for example in (8, 9, 10))}
    assert record.writer == (0, 1)
    with pytest.raises(NotFound):
        CommitRecord.read(run, 3)
