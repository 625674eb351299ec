"""A full disk costs the open shard and nothing else."""

import errno
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.store import runs
from traceformer.errors import (
    OutOfSpace,
)
from traceformer.store.commits import committed_shards, verify_run
from traceformer.store.run import TraceStore
from traceformer.store.writer import RunWriter


def test_too_little_space_is_found_before_a_shard_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = runs.plan(arrays=runs.FEW)
    with RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        runs.write_shards(writer, 1)
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
        with pytest.raises(OutOfSpace, match="1 MiB free"):
            runs.write_shards(writer)
        assert committed_shards(writer.folder) == [0]


@pytest.mark.parametrize("step", ["BlockWriter.write", "sync", "sync_folder"])
def test_a_disk_that_fills_up_while_writing_costs_only_the_open_shard(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = runs.begin(tmp_path / "run", 1)
    layout = runs.plan(arrays=runs.FEW)
    with RunWriter.resume(tmp_path / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        before = runs.contents(folder)
        monkeypatch.setattr(f"traceformer.store.durable.{step}", full)
        with pytest.raises(OutOfSpace, match="is full"):
            runs.write_shards(writer)
        assert runs.contents(folder) == before
    monkeypatch.undo()
    assert verify_run(runs.complete(tmp_path / "run")) == []


@pytest.mark.slow
@pytest.mark.parametrize("look_first", [True, False])
def test_a_full_disk_keeps_what_is_committed_and_resume_goes_on(
    small_disk: Path, look_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not look_first:
        monkeypatch.setattr(RunWriter, "_check_space", lambda *_: None)
    layout = runs.plan(arrays=runs.FEW, n_examples=400, longest={"dec": 256}, shard_examples=8)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(8 << 20))
    with pytest.raises(OutOfSpace):
        runs.begin(small_disk / "run", 50, layout)
    store = TraceStore(small_disk / "_tmp_run")
    assert not store.finished
    assert 0 < store.n < 400
    assert verify_run(store.folder) == []
    last = store.n - 1
    assert np.array_equal(store.attn(runs.name(last)), runs.expected(layout, layout.arrays[0], last))
    ballast.unlink()
    committed = store.n // 8
    with RunWriter.resume(small_disk / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        assert writer.pending[0] == committed
        runs.write_shards(writer, 1)
    assert TraceStore(small_disk / "_tmp_run").n == store.n + 8
