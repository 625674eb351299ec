"""Rows that are wanted as they are stored: chunks are read without tensorstore, and give what it gives."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.store import runs
from traceformer import TraceStore
from traceformer.errors import CorruptRun
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.layout import RunLayout
from traceformer.store.lazy import LazyArray

WIDE = replace(runs.spec("dec.resid_mid"), width=4096)  # a chunk of 16 rows has 128 KiB
HEADS = replace(runs.spec("dec.self.q"), width=4096)
ONE_ROW = runs.spec("dec.final_norm")


def layout_of(**options: object) -> RunLayout:
    return runs.plan(arrays=(WIDE, HEADS, ONE_ROW), **options)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module", params=["none", "zstd"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write(tmp_path_factory.mktemp("wide") / "run", layout_of(codec=request.param))


def stored(layout: RunLayout, array: ArraySpec, layer: int) -> np.ndarray:
    """All tokens' rows of a layer as they are on disk, those of several heads side by side."""
    texts = [runs.as_stored(layout, array, runs.truth(layout, array, i))[layer] for i in range(layout.n_examples)]
    rows = [text if text.ndim == 2 else text.transpose(1, 0, 2).reshape(text.shape[1], -1) for text in texts]
    return np.concatenate(rows)


def is_read_by_chunks(run: TraceStore, key: ArrayKey) -> bool:
    spec = run.spec(key)
    return isinstance(run._arrays.column(spec, next(iter(spec.layers), None), None, "stored").view, LazyArray)  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("array", [WIDE, HEADS], ids=["rows", "heads"])
def test_every_way_to_read_gives_the_stored_numbers(folder: Path, array: ArraySpec) -> None:
    run = TraceStore(folder)
    assert is_read_by_chunks(run, array.key)
    for number, layer in enumerate(array.layers):
        expected = stored(run.layout, array, number)
        assert np.array_equal(run.activations(array.key, layer, dtype="stored"), expected)
        assert np.array_equal(np.concatenate(list(run.pieces(array.key, layer, dtype="stored"))), expected)
        assert np.array_equal(np.concatenate(list(run.stream(array.key, layer, 100, dtype="stored"))), expected)
        widened = run.activations(array.key, layer)
        assert widened.dtype == np.float32
        assert np.array_equal(widened, expected.astype(np.float32))


def test_a_shuffled_stream_has_every_row_once(folder: Path) -> None:
    run = TraceStore(folder)
    streamed = np.concatenate(list(run.stream(WIDE.key, 4, 50, dtype="stored", shuffle=True, seed=1)))
    expected = stored(run.layout, WIDE, 1)
    assert not np.array_equal(streamed, expected)
    assert np.array_equal(streamed[np.lexsort(streamed.T)], expected[np.lexsort(expected.T)])


def test_narrow_rows_are_left_to_tensorstore(folder: Path) -> None:
    run = TraceStore(folder)
    assert not is_read_by_chunks(run, ONE_ROW.key)


def test_an_unfinished_run_gives_what_is_committed(tmp_path: Path) -> None:
    run = TraceStore(runs.begin(tmp_path / "run", 2, layout_of()))
    expected = stored(run.layout, WIDE, 0)
    rows = run.activations(WIDE.key, 1, dtype="stored")
    assert len(rows) == sum(runs.lengths(run.layout, i)["dec"] for i in range(8)) < len(expected)
    assert np.array_equal(rows, expected[: len(rows)])


def chunks_read(run: TraceStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What will hold the file of each chunk that is read by itself."""
    found: list[str] = []
    chunks = run.on_disk()._chunks  # pyright: ignore[reportPrivateUsage]
    fetch = chunks.fetch
    monkeypatch.setattr(
        chunks, "fetch", lambda wanted, **how: (found.extend(w.name for w in wanted), fetch(wanted, **how))
    )
    return found


def test_rows_one_by_one_read_no_chunk_anew_for_each(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = TraceStore(folder)
    found = chunks_read(run, monkeypatch)
    positions = range(run.length(0))
    assert np.array_equal(run.rows(0, WIDE.key, positions, 4, dtype="stored"), run.get(0, WIDE.key, 4, dtype="stored"))
    assert not found


@pytest.mark.parametrize("how", [{"batch_size": 3}, {"batch_size": 64}, {"batch_size": 3, "shuffle": True}])
def test_training_reads_few_chunks_twice(folder: Path, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run = TraceStore(folder)
    found = chunks_read(run, monkeypatch)
    options: dict[str, Any] = {"shuffle": False, **how}
    data = run.training_data(WIDE.key, 4, dtype="stored", **options)
    rows = np.concatenate([*data.batches()])  # pyright: ignore[reportArgumentType,reportCallIssue]
    expected = stored(run.layout, WIDE, 1)
    assert np.array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])
    assert len(found) <= len(data.items.counts) + len(data)
    assert bool(found) == (data.window >= 16)


def test_a_changed_byte_is_noticed(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "run"))
    run = TraceStore(copy)
    file = copy / run.layout.shard_files(WIDE, 1)[0]
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    named = f"cannot read .*{file.relative_to(copy).as_posix()}: a chunk's crc32c"
    with pytest.raises(CorruptRun, match=named):
        list(run.pieces(WIDE.key, 1, dtype="stored"))
    with pytest.raises(CorruptRun, match=named):
        run.activations(WIDE.key, 1, dtype="stored")


def test_another_shard_s_file_is_noticed(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "run"))
    run = TraceStore(copy)
    one, other = (copy / run.layout.shard_files(WIDE, shard)[0] for shard in (0, 1))
    one.write_bytes(other.read_bytes())
    with pytest.raises(CorruptRun):
        run.activations(WIDE.key, 1, dtype="stored")
