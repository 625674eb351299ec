"""Rows as data for training: those of `activations`, each once an epoch, any batch without those before it."""

import pickle
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from tests.store import runs
from traceformer import TraceStore
from traceformer.errors import CorruptRun, SelectionError, Unsupported, UsageError
from traceformer.store import training_data
from traceformer.store.memory import MemoryWriter
from traceformer.store.writer import RunWriter


def sorted_rows(rows: np.ndarray) -> np.ndarray:
    return rows[np.lexsort(rows.T)]


@pytest.mark.parametrize(
    ("site", "layer", "head"),
    [("resid_mid", 4, None), ("z", 1, None), ("k", 1, 3), ("embed", None, None), ("class_logits", None, None)],
)
@pytest.mark.parametrize("dtype", ["float32", "stored"])
def test_an_epoch_is_activations_each_row_once(
    decoder: TraceStore, monkeypatch: pytest.MonkeyPatch, site: str, layer: int | None, head: int | None, dtype: str
) -> None:
    monkeypatch.setattr(training_data, "_WINDOW_ITEMS", 100)
    truth = decoder.activations(site, layer, head, dtype=dtype)
    data = decoder.training_data(site, layer, 32, head=head, dtype=dtype, seed=5)
    batches = [*data.batches(1)]
    assert [len(batch) for batch in batches] == [32] * (len(truth) // 32) + [len(truth) % 32] * (len(truth) % 32 > 0)
    assert len(batches) == len(data)
    rows = np.concatenate(batches)
    assert rows.dtype == truth.dtype
    assert not np.array_equal(rows, truth)
    assert np.array_equal(sorted_rows(rows), sorted_rows(truth))
    in_order = decoder.training_data(site, layer, 32, head=head, dtype=dtype, shuffle=False)
    assert np.array_equal(np.concatenate([*in_order]), truth)


def test_any_batch_is_made_by_itself(decoder: TraceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_data, "_WINDOW_ITEMS", 100)
    data = decoder.training_data("resid_mid", 4, 32)
    batches = [*data]
    for numbers in ([5], [0, 3, 4], [7, 2]):
        for number, again in zip(numbers, data.batches(0, numbers), strict=True):
            assert np.array_equal(again, batches[number])


def test_the_order_of_rows_is_the_same_for_any_size_of_batches(decoder: TraceStore) -> None:
    orders = [np.concatenate([*decoder.training_data("resid_mid", 4, size)]) for size in (7, 100, 10_000)]
    assert all(np.array_equal(order, orders[0]) for order in orders)


def test_batches_may_be_kept_and_changed(decoder: TraceStore) -> None:
    data = decoder.training_data("resid_mid", 4, 50)
    kept = []
    for batch in data:
        kept.append(batch.copy())
        batch[:] = 0
    assert all(np.array_equal(*pair) for pair in zip(kept, data, strict=True))


def test_a_last_batch_can_be_left_out(decoder: TraceStore) -> None:
    data = decoder.training_data("resid_mid", 4, 50, drop_last=True)
    assert [len(batch) for batch in data] == [50] * (data.n // 50)
    assert data.n % 50 > 0


def test_a_run_in_memory_gives_the_same(tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW)
    with MemoryWriter(layout, runs.META, digest=runs.DIGEST) as writer:
        for shard in writer.pending:
            buffer = writer.buffer()
            table = runs.fill(layout, shard, buffer)
            buffer.compress()
            writer.commit(shard, buffer, table)
        memory = writer.finish()
    disk = TraceStore(runs.write(tmp_path / "run", layout))
    for chosen in ({"site": "resid_mid", "layer": 1}, {"site": "attn", "size": 8, "crop": "random"}):
        batches = [[*run.training_data(**chosen, batch_size=9)] for run in (memory, disk)]
        assert all(np.array_equal(*pair) for two in zip(*batches, strict=True) for pair in zip(*two, strict=True))
    with pytest.raises(Unsupported, match=r"run\.save"):
        pickle.dumps(memory.training_data("resid_mid", 1))


def test_nothing_is_read_before_the_first_batch_is_asked_for(decoder: TraceStore) -> None:
    run = TraceStore(decoder.folder)
    data = run.training_data("resid_mid", 4, 50)
    assert (len(data), repr(data)) == (-(-data.n // 50), repr(data))
    assert "_column" not in data.items.__dict__


def test_a_worker_is_given_the_run_and_what_was_chosen(decoder: TraceStore) -> None:
    data = decoder.training_data("attn", 4, 16, head=[0, 3], size=9, crop="random", seed=4)
    again = pickle.loads(pickle.dumps(data))
    for one, other in zip(data.batches(2), again.batches(2), strict=True):
        assert all(np.array_equal(*pair) for pair in zip(one, other, strict=True))


def test_a_run_that_has_grown_since_is_refused_where_it_is_opened_anew(tmp_path: Path) -> None:
    layout = runs.plan(arrays=runs.FEW)
    with RunWriter.create(tmp_path / "run", layout, runs.META, digest=runs.DIGEST) as writer:
        runs.write_shards(writer, 2)
        data = TraceStore(writer.folder).training_data("resid_mid", 4, 16)
        before = pickle.dumps(data)
        assert sum(map(len, pickle.loads(before))) == data.n
        runs.write_shards(writer, 1)
        with pytest.raises(UsageError, match="it has grown since"):
            next(iter(pickle.loads(before)))
        assert sum(map(len, data)) == data.n  # what was there when this one was made


def test_damage_is_an_error_and_no_numbers(tmp_path: Path) -> None:
    folder = runs.write(tmp_path / "run", runs.plan(arrays=runs.FEW))
    run = TraceStore(folder)
    rows, squares = run.training_data("resid_mid", 4, 16), run.training_data("attn", 4, 16, size=9)
    for path in (*folder.glob("dec_res_post_attn.zarr/x/c*"), *folder.glob("dec_self_attn.zarr/attn/c*")):
        data = bytearray(path.read_bytes())
        data[50::50] = bytes(byte ^ 1 for byte in data[50::50])
        path.write_bytes(data)
    for data in (rows, squares):
        with pytest.raises(CorruptRun):
            sum(1 for _ in data)


def test_an_iteration_that_is_given_up_leaves_no_thread_at_work(decoder: TraceStore) -> None:
    before = {*threading.enumerate()}
    batches = decoder.training_data("resid_mid", 4, 8).batches()
    next(batches)
    assert {thread.name[:13] for thread in {*threading.enumerate()} - before} == {"training-data"}
    batches.close()
    assert {*threading.enumerate()} <= before


@pytest.mark.parametrize(
    ("chosen", "error", "says"),
    [
        ({"batch_size": 0}, UsageError, "batch_size"),
        ({"seed": -1}, UsageError, "seed"),
        ({"layer": 2}, SelectionError, "layer 2 requested"),
        ({"layer": None}, SelectionError, "which layer"),
        ({"dtype": "half"}, (SelectionError, TypeCheckError), "half"),
    ],
)
def test_what_cannot_be_meant_is_refused(decoder: TraceStore, chosen: dict[str, object], error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        decoder.training_data("resid_mid", **{"layer": 4, **chosen})


def test_wide_rows_have_smaller_windows(decoder: TraceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    data = decoder.training_data("resid_mid", 4)
    assert data.window == 1 << 16
    assert replace(data, items=replace(data.items, width=1 << 20)).window == 128  # of 2 MiB in float16: 256 MiB


def test_two_windows_are_in_memory_however_many_there_are(decoder: TraceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_data, "_WINDOW_ITEMS", 60)
    data, windows, most = decoder.training_data("resid_mid", 4, 16), [], 0
    read = training_data.RowItems.read

    def watched(items: training_data.RowItems, parts: Any, epoch: int) -> np.ndarray:
        window = read(items, parts, epoch)
        windows.append(weakref.ref(window))
        return window

    monkeypatch.setattr(training_data.RowItems, "read", watched)

    def held() -> int:
        """How many there are once the thread that read the last one has let go of it."""
        count = 0
        for _ in range(200):
            count = sum(window() is not None for window in windows)
            if count <= 2:
                break
            time.sleep(0.01)
        return count

    for _ in data:
        most = max(most, held())
    assert len(windows) == -(-data.n // 60) > 6
    assert most == 2
