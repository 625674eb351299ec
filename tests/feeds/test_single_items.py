"""Rows and squares for Hugging Face's datasets: each once, however it is shared, and after a stop at any of them."""

import itertools
import json
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from tests.store import runs
from traceformer import TraceStore
from traceformer.feeds import single_items
from traceformer.store import training_data
from traceformer.store.squares import Squares


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TraceStore:
    return TraceStore(runs.write(tmp_path_factory.mktemp("feeds") / "run", runs.plan(arrays=runs.FEW)))


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_data, "_WINDOW_ITEMS", 100)


def made(run: TraceStore, **chosen: Any) -> IterableDataset:
    return run.training_data("resid_mid", 4, **chosen).to_datasets()


def rows_of(items: Iterable[dict[str, Any]]) -> list[bytes]:
    return sorted(np.asarray(item["resid_mid"], np.float32).tobytes() for item in items)


def everything(run: TraceStore) -> list[bytes]:
    return sorted(row.tobytes() for row in run.activations("resid_mid", 4))


def test_it_is_the_order_of_the_data(run: TraceStore) -> None:
    rows = np.array([item["resid_mid"] for item in made(run)])
    assert np.array_equal(rows, np.concatenate([*run.training_data("resid_mid", 4)]))
    in_order = np.array([item["resid_mid"] for item in made(run, shuffle=False)])
    assert np.array_equal(in_order, run.activations("resid_mid", 4))


@pytest.mark.parametrize("format_type", ["numpy", None])
def test_batches_of_a_format(run: TraceStore, format_type: str | None) -> None:
    batches = [batch["resid_mid"] for batch in made(run).with_format(format_type).iter(batch_size=50)]
    assert {len(batch) for batch in batches[:-1]} == {50}
    rows = np.concatenate([*run.training_data("resid_mid", 4)])
    assert np.array_equal(np.concatenate([np.asarray(batch) for batch in batches]), rows)


def test_torchs_loader_collates_rows(run: TraceStore) -> None:
    batches = [batch["resid_mid"] for batch in DataLoader(made(run).with_format("torch"), batch_size=50)]
    assert np.array_equal(torch.cat(batches), np.concatenate([*run.training_data("resid_mid", 4)]))


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("first", [0, 1, 99, 100, 350])
def test_a_stream_that_was_stopped_goes_on_with_the_next_item(run: TraceStore, epoch: int, first: int) -> None:
    stream = made(run)
    stream.set_epoch(epoch)
    seen = [*itertools.islice(stream, first)]
    again = made(run)
    again.set_epoch(epoch)
    again.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    assert rows_of([*seen, *again]) == everything(run)


def test_a_stream_in_batches_goes_on_between_two(run: TraceStore) -> None:
    stream = made(run)
    seen = [*itertools.islice(stream.iter(batch_size=40), 3)]
    again = made(run)
    again.load_state_dict(stream.state_dict())
    rows = [row for batch in (*seen, *again.iter(batch_size=40)) for row in batch["resid_mid"]]
    assert rows_of({"resid_mid": row} for row in rows) == everything(run)


def test_it_begins_with_any_epoch(run: TraceStore) -> None:
    data = run.training_data("resid_mid", 4)
    rows = np.array([item["resid_mid"] for item in data.to_datasets(epoch=3)])
    assert np.array_equal(rows, np.concatenate([*data.batches(3)]))


def test_epochs_have_orders_of_their_own(run: TraceStore) -> None:
    stream = made(run)
    orders = []
    for epoch in (0, 1, 2, 1):
        stream.set_epoch(epoch)
        orders.append([item["resid_mid"].tobytes() for item in stream])
        assert sorted(orders[-1]) == everything(run)
    assert orders[1] == orders[3]
    assert orders[0] != orders[1] != orders[2] != orders[0]


@pytest.mark.parametrize("world", [2, 3, 7])
def test_nodes_share_it(run: TraceStore, world: int) -> None:
    parts = [split_dataset_by_node(made(run), rank, world) for rank in range(world)]
    assert rows_of(item for part in parts for item in part) == everything(run)


def test_squares_come_with_where_they_are_from(run: TraceStore) -> None:
    stream = run.training_data("attn", 4, size=20, pad=True, shuffle=False).to_datasets()
    assert stream.features["attn_pattern"].shape == (20, 20)
    items = [*stream]
    assert [(item["examples"], item["heads"]) for item in items] == [(e, h) for e in range(run.n) for h in runs.HEADS]
    for item in items:
        n = item["lengths"]
        assert np.array_equal(item["attn_pattern"][:n, :n], run.attn(item["examples"], 4, item["heads"])[:20, :20])


def test_what_is_read_at_once_is_bounded_by_its_bytes(run: TraceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    data = run.training_data("attn", 4, size=20, pad=True)
    monkeypatch.setattr(single_items, "_AT_ONCE_BYTES", 7 * data.items.item_bytes)
    read: list[int] = []
    stretches = training_data.TrainingData.stretches

    def noted(self: Any, asked: Iterable[tuple[int, int]], epoch: int) -> Any:
        return stretches(self, (read.append(stop - start) or (start, stop) for start, stop in asked), epoch)

    monkeypatch.setattr(training_data.TrainingData, "stretches", noted)
    monkeypatch.setattr(single_items, "_PARTS", 2)
    items = [*data.to_datasets()]
    assert len(items) == sum(read) == data.n > 14
    assert max(read) == 7
    whole = np.concatenate([squares.values for squares in data.batches() if isinstance(squares, Squares)])
    assert np.array_equal([item["attn_pattern"] for item in items], whole)


def main(folder: str) -> None:
    """What a process of its own does: its loader's workers are forked."""
    run = TraceStore(folder)
    kept = [
        [*DataLoader(made(run).with_format("torch"), batch_size=None, num_workers=workers)] for workers in (1, 2, 3)
    ]
    assert all(rows_of(items) == everything(run) for items in kept)


@pytest.mark.slow
def test_workers_share_it(run: TraceStore) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.feeds.test_single_items", str(run.folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    main(sys.argv[1])
