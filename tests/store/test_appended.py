"""Matrices that go to their files while they are recorded are the same matrices, and what a crash leaves is removed."""

import errno
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from tests.store import runs
from traceformer.errors import OutOfSpace
from traceformer.store import appended, chunks
from traceformer.store.chunks import stretches
from traceformer.store.layout import RunLayout
from traceformer.store.run import Run
from traceformer.store.writer import RunWriter

BOTH = (runs.spec("dec.self.attn_pattern"), runs.spec("dec.self.attn_scores"), runs.spec("dec.resid_mid"))


def plan() -> RunLayout:
    return runs.plan(arrays=BOTH, shard_examples=1, n_examples=5)


def begun(folder: Path) -> list[Path]:
    return list(folder.rglob("*begun*"))


@pytest.fixture
def long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has every matrix be taken for one that memory does not hold, as long as it is a shard of its own."""
    monkeypatch.setattr(appended, "SHARD_BYTES", 0)


@pytest.fixture
def in_pieces(monkeypatch: pytest.MonkeyPatch, long_ones: None) -> None:
    """Lets chunks go to the file a few at a time, those of each head together."""
    monkeypatch.setattr("traceformer.store.layout.CHUNK_BYTES", 512)
    monkeypatch.setattr(appended, "_HELD_BYTES", 3000)


def test_a_layer_that_is_held_whole_lies_as_if_memory_had_held_all(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    expected = runs.contents(runs.write(tmp_path / "one" / "run", plan()))
    request.getfixturevalue("long_ones")
    assert runs.contents(runs.write(tmp_path / "two" / "run", plan())) == expected


@pytest.mark.usefixtures("in_pieces")
def test_what_went_in_pieces_is_read_by_us_and_by_zarr(tmp_path: Path) -> None:
    layout = plan()
    run = Run(runs.write(tmp_path / "run", layout))
    assert runs.holds_what_was_written(run)
    assert run.verify().ok
    assert not begun(tmp_path)
    scores = zarr.open_array(tmp_path / "run" / layout.array_path(BOTH[1].key), mode="r")
    whole = runs.as_stored(layout, BOTH[1], runs.truth(layout, BOTH[1], 2))
    np.testing.assert_array_equal(scores[2, :, :, : whole.shape[2], : whole.shape[3]], whole)


@pytest.mark.usefixtures("in_pieces")
def test_a_head_lies_in_few_stretches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(runs.write(tmp_path / "run", plan()))
    longest = int(np.argmax(run.lengths()))
    calls: list[int] = []
    read = chunks.read_at
    monkeypatch.setattr(chunks, "read_at", lambda *asked: calls.append(asked[1]) or read(*asked))
    found = run.get(longest, BOTH[1].key, 1, 0)
    n_chunks = -(-found.size * 2 // 512)
    assert 1 < len(calls) < n_chunks / 2
    monkeypatch.setattr(chunks, "_AT_ONCE", 1)
    calls.clear()
    np.testing.assert_array_equal(run.get(longest, BOTH[1].key, 1, 0), found)
    assert len(calls) > n_chunks / 2


@pytest.mark.usefixtures("in_pieces")
def test_memory_holds_no_more_than_some_chunks(tmp_path: Path) -> None:
    layout = plan()
    with RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        buffer = writer.buffer()
        runs.fill(layout, 0, buffer)
        appending = buffer.appending(BOTH[1])
        assert appending is not None
        assert sum(path.stat().st_size for path in begun(writer.folder)) > 0
        held = sum(chunk.size for own in appending._held for chunk in own)  # pyright: ignore[reportPrivateUsage]
        assert held <= 3000
    assert not begun(writer.folder)  # nobody committed it


@pytest.mark.usefixtures("in_pieces")
def test_who_was_killed_meanwhile_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    expected = runs.contents(runs.write(tmp_path / "one" / "run", plan()))
    folder = tmp_path / "two" / "run"
    with RunWriter.create(folder, plan(), runs.META, digest=runs.DIGEST) as writer:
        runs.write_shards(writer, 2)
        left = writer.folder / plan().array_path(BOTH[0].key) / ".begun.0.0.0.part"
        left.write_bytes(b"what a killed process leaves")
    assert runs.contents(runs.complete(folder, plan())) == expected


@pytest.mark.usefixtures("in_pieces")
def test_a_full_disk_is_said_to_be_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    with RunWriter.create(tmp_path / "run", plan(), runs.META, digest=runs.DIGEST) as writer:
        runs.write_shards(writer, 1)
        monkeypatch.setattr("traceformer.store.direct.BlockWriter.write", full)
        with pytest.raises(OutOfSpace, match=r"is full.*what was committed is kept"):
            runs.fill(plan(), 1, writer.buffer())
    monkeypatch.undo()
    assert not begun(writer.folder)


@pytest.mark.usefixtures("long_ones")
def test_examples_without_tokens_have_their_files(tmp_path: Path) -> None:
    layout = plan()
    with RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        for shard in writer.pending:
            buffer = writer.buffer()
            table = runs.fill(layout, shard, buffer)
            if shard == 2:
                buffer.begin({"dec": [0]})
            writer.commit(shard, buffer, table)
        run = Run(writer.finish())
    assert run.verify().ok
    assert run.attn(2).shape == (2, 3, 0, 0)
    np.testing.assert_array_equal(run.attn(1), runs.expected(layout, BOTH[0], 1))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9 << 20)), max_size=12))
def test_stretches_are_all_chunks_in_order_and_each_lies_together(gaps: list[tuple[int, int]]) -> None:
    places, at = [], 0
    for gap, size in gaps:
        places.append((at + gap, size))
        at += gap + size
    found = list(stretches(places))
    assert [number for part in found for number in part] == list(range(len(places)))
    for part in found:
        assert all(sum(places[number]) == places[number + 1][0] for number in part[:-1])
        size = sum(places[number][1] for number in part)
        assert len(part) == 1 or size <= 8 << 20
    for one, other in pairwise(found):  # and no two of them could have been read together
        lies_behind = sum(places[one[-1]]) == places[other[0]][0]
        together = sum(places[number][1] for number in one) + places[other[0]][1]
        assert not lies_behind or together > 8 << 20
