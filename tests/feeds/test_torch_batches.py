"""Batches for torch: each once an epoch over all workers and ranks, and after a stop at any of them."""

import itertools
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tests.feeds.loaders import Loader, StatefulLoader
from tests.store import runs
from traceformer import TraceStore
from traceformer.errors import UsageError
from traceformer.feeds.torch_batches import TorchBatches
from traceformer.store import training_data

WORKERS = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TraceStore:
    return TraceStore(runs.write(tmp_path_factory.mktemp("feeds") / "run", runs.plan(arrays=runs.FEW)))


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_data, "_WINDOW_ITEMS", 100)


def made(run: TraceStore, batch_size: int = 16, **chosen: Any) -> TorchBatches:
    return run.training_data("resid_mid", 4, batch_size, **chosen).to_torch()


def rows_of(batches: Iterable[torch.Tensor]) -> list[bytes]:
    """Returns all rows, sorted: each is another one, so that twice and missing are seen."""
    return sorted(row.numpy().tobytes() for batch in batches for row in batch)


def everything(run: TraceStore) -> list[bytes]:
    return sorted(row.tobytes() for row in run.activations("resid_mid", 4))


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("shuffle", [True, False])
def test_workers_give_each_row_once(
    run: TraceStore, monkeypatch: pytest.MonkeyPatch, workers: int, shuffle: bool
) -> None:
    batches = made(run, shuffle=shuffle)
    given = [*Loader(batches, workers, monkeypatch)]
    assert len(given) == len(batches)
    assert rows_of(given) == everything(run)
    if not shuffle:
        assert np.array_equal(torch.cat(given).numpy(), run.activations("resid_mid", 4))


def test_the_batches_of_an_epoch_are_the_same_for_any_number_of_workers(
    run: TraceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [{batch.numpy().tobytes() for batch in Loader(made(run), workers, monkeypatch)} for workers in WORKERS]
    assert all(each == sets[0] for each in sets)


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("then", [0, 2])
def test_a_loader_that_was_stopped_anywhere_goes_on_with_what_was_not_seen(
    run: TraceStore, monkeypatch: pytest.MonkeyPatch, workers: int, shuffle: bool, then: int
) -> None:
    whole = everything(run)
    n = len(made(run, shuffle=shuffle))
    for first in (0, 10, n):
        batches = made(run, shuffle=shuffle)
        batches.set_epoch(2)
        seen = [*itertools.islice(Loader(batches, workers, monkeypatch), first)]
        state = json.loads(json.dumps(batches.state_dict(batches=first, num_workers=workers)))
        again = made(run, shuffle=shuffle)
        again.load_state_dict(state)
        loader = Loader(again, then, monkeypatch)
        second = min(3, n - first)
        seen += itertools.islice(loader, second)
        state = again.state_dict(batches=second, num_workers=then)  # stopped once more
        last = made(run, shuffle=shuffle)
        last.load_state_dict(state)
        rest = [*Loader(last, workers, monkeypatch)]
        assert last.epoch == 2
        assert rows_of(seen + rest) == whole
        if not shuffle:
            assert np.array_equal(torch.cat(seen + rest).numpy(), run.activations("resid_mid", 4))


@pytest.mark.parametrize("workers", WORKERS)
def test_a_loader_begun_again_after_a_state_was_taken_up_gives_the_whole_epoch(
    run: TraceStore, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    batches = made(run)
    batches.load_state_dict(made(run).state_dict(batches=7))
    loader = Loader(batches, workers, monkeypatch)
    assert len([*loader]) == len(batches) - 7
    assert rows_of(loader) == everything(run)
    assert batches.state_dict(batches=1, num_workers=workers)["left"] == [[0, len(batches)]]
    batches.set_epoch(1)
    assert rows_of(loader) == everything(run)


@pytest.mark.parametrize("workers", WORKERS[1:])
def test_a_loader_that_keeps_states_itself_goes_on_where_each_worker_was(
    run: TraceStore, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    n = len(made(run))
    for first in (0, 1, 11, n):
        loader = StatefulLoader(made(run), workers, monkeypatch)
        seen = [*itertools.islice(loader, first)]
        states = loader.state_dict() if first else None
        again = StatefulLoader(made(run), workers, monkeypatch, pickle.loads(pickle.dumps(states)))
        assert rows_of([*seen, *again]) == everything(run)


def test_in_one_process_the_state_is_what_was_made(run: TraceStore) -> None:
    for first in (0, 1, 9, len(made(run))):
        batches = made(run)
        iterator = iter(batches)
        seen = [*itertools.islice(iterator, first)]
        again = made(run)
        again.load_state_dict(batches.state_dict())
        assert rows_of([*seen, *again]) == everything(run)
        assert rows_of(again) == everything(run)


def test_the_order_is_that_of_the_epoch(run: TraceStore) -> None:
    batches = made(run)
    orders = []
    for epoch in (0, 1, 0):
        batches.set_epoch(epoch)
        orders.append(torch.cat([*batches]))
    assert torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], orders[1])
    assert rows_of([orders[1]]) == everything(run)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_an_epoch(run: TraceStore, monkeypatch: pytest.MonkeyPatch, world: int, drop_last: bool) -> None:
    data = run.training_data("resid_mid", 4, 16, drop_last=drop_last)
    ranks = [data.to_torch(rank=rank, world_size=world) for rank in range(world)]
    given = [[*Loader(batches, 2, monkeypatch)] for batches in ranks]
    assert [len(own) for own in given] == [len(batches) for batches in ranks]
    rows = rows_of(batch for own in given for batch in own)
    assert len(set(rows)) == len(rows)
    if drop_last:
        assert {len(own) for own in given} == {len(data) // world}
    else:
        assert rows == everything(run)


def test_squares_are_tensors_with_their_mask(run: TraceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    data = run.training_data("attn", [1, 4], 8, size=20, pad=True)
    given = [*Loader(data.to_torch(), 2, monkeypatch)]
    told = [
        tuple(map(int, of)) for one in given for of in zip(one["examples"], one["layers"], one["heads"], strict=True)
    ]
    assert sorted(told) == [(e, layer, head) for e in range(run.n) for layer in runs.LAYERS for head in runs.HEADS]
    one = given[0]
    assert one["values"].dtype == torch.float32
    assert torch.equal(one["mask"].sum(1), one["lengths"])


def test_batches_are_those_of_the_data(run: TraceStore) -> None:
    data = run.training_data("resid_mid", 4, 16, dtype="stored")
    for tensor, batch in zip(data.to_torch(), data, strict=True):
        assert tensor.dtype == torch.float16
        assert np.array_equal(tensor.numpy(), batch)


def test_more_batches_than_there_were_are_no_state(run: TraceStore) -> None:
    batches = made(run)
    assert batches.state_dict(batches=len(batches), num_workers=3)["done"] == len(batches)
    with pytest.raises(UsageError, match="were given"):
        batches.state_dict(batches=len(batches) + 1, num_workers=3)


def changed(name: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda state: state.__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state["of"].__setitem__("seed", 3), "seed was 3, and is 0"),
        (lambda state: state["of"].__setitem__("run", "other"), "run was 'other'"),
        (lambda state: state["of"].pop("items"), "items was nothing"),
        (lambda state: state["of"].__setitem__("order", "00"), "order was '00'"),
        (lambda state: state["of"].__setitem__("rank", 1), "rank was 1"),
        (lambda state: state.pop("epoch"), "KeyError"),
        (changed("of", None), "TypeError"),
        (changed("left", "all"), "ValueError"),
        (changed("left", [[0, 10_000]]), "are not left of"),
        (changed("left", [[5, 3]]), "are not left of"),
        (changed("left", [[-1, 3]]), "are not left of"),
        (changed("left", [[4, 6], [5, 9]]), "are not left of"),
        (changed("done", -1), "are not left of"),
        (changed("done", 10_000), "are not left of"),
        (changed("workers", 0), "are not left of"),
        (changed("epoch", -1), "are not left of"),
    ],
)
def test_a_state_of_something_else_is_refused(run: TraceStore, change: Callable[[Any], object], says: str) -> None:
    state = made(run).state_dict(batches=3)
    change(state)
    with pytest.raises(UsageError, match=says):
        made(run).load_state_dict(state)


def test_a_state_of_one_worker_is_that_workers(run: TraceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = StatefulLoader(made(run), 3, monkeypatch)
    next(iter(loader))
    states = loader.state_dict()
    with pytest.raises(UsageError, match="worker 1 of 3"):
        next(iter(StatefulLoader(made(run), 2, monkeypatch, [states[1], states[1]])))


def test_a_state_that_nobody_can_know_is_refused(run: TraceStore) -> None:
    with pytest.raises(UsageError, match="workers make them elsewhere"):
        made(run).state_dict()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"rank": 1}, "both, or neither"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
        ({"rank": -1, "world_size": 2}, "rank"),
    ],
)
def test_ranks_that_cannot_be_are_refused(run: TraceStore, asked: dict[str, int], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        run.training_data("resid_mid", 4).to_torch(**asked)


def main() -> None:
    """What a process of its own does: pytest's has used tensorstore already, its workers cannot be forked."""
    folder, start, reads_before = sys.argv[1], sys.argv[2], sys.argv[3] == "reads"
    run = TraceStore(folder)
    whole = everything(TraceStore(folder)) if reads_before else None
    batches = made(run)

    def loader(of: TorchBatches, workers: int) -> DataLoader[Any]:
        how: dict[str, Any] = {"multiprocessing_context": start} if workers else {}
        return DataLoader(of, batch_size=None, num_workers=workers, **how)

    kept: list[list[torch.Tensor]] = []
    for workers, first in [(2, 9)] if start == "spawn" else [(1, 4), (2, 9), (3, 13)]:
        batches.set_epoch(workers)
        seen = [batch.clone() for batch in itertools.islice(loader(batches, workers), first)]
        again = made(run)
        again.load_state_dict(batches.state_dict(batches=first, num_workers=workers))
        resumed = loader(again, workers)
        kept.append([*seen, *(batch.clone() for batch in resumed)])
        if start == "fork":
            assert len([*resumed]) == len(again)  # begun once more
    lasting = DataLoader(
        batches, batch_size=None, num_workers=2, persistent_workers=True, multiprocessing_context=start
    )
    orders = []
    for epoch in (0, 1, 0):
        batches.set_epoch(epoch)
        kept.append([batch.clone() for batch in lasting])
        orders.append(torch.cat(kept[-1]))
    assert torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], orders[1])
    del lasting
    assert all(rows_of(each) == (whole or everything(run)) for each in kept)


def train(folder: Path) -> None:
    """A training with two workers that keeps its state after each batch, by renaming a file, and what it has seen."""
    batches, kept = made(TraceStore(folder / "run")), folder / "state.json"
    seen = json.loads(kept.read_text()) if kept.exists() else {"steps": 0, "state": None}
    if seen["state"] is not None:
        batches.load_state_dict(seen["state"])
    loader = DataLoader(batches, batch_size=None, num_workers=2, multiprocessing_context="fork")
    for step, rows in enumerate(loader, 1):
        number = seen["steps"] + step
        np.save(folder / f"seen-{number}.npy", rows.numpy())
        state = batches.state_dict(batches=step, num_workers=2)
        (folder / "next.json").write_text(json.dumps({"steps": number, "state": state}))
        os.replace(folder / "next.json", kept)
        print(number, flush=True)


@pytest.mark.slow
def test_a_training_that_is_killed_again_and_again_sees_each_row_once(run: TraceStore, tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(run.folder, target_is_directory=True)
    command = [sys.executable, "-W", "ignore", "-m", "tests.feeds.test_torch_batches", str(tmp_path), "train"]
    kills, n = 0, len(made(run))
    for stop in (3, 11, 12, n + 1):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as training:
            assert training.stdout is not None
            for line in training.stdout:
                if int(line) >= stop:
                    training.kill()  # between two batches, or while the next is being kept
                    kills += 1
                    break
    steps = json.loads((tmp_path / "state.json").read_text())["steps"]
    assert (kills, steps) == (3, n)
    rows = np.concatenate([np.load(tmp_path / f"seen-{number}.npy") for number in range(1, steps + 1)])
    assert sorted(row.tobytes() for row in rows) == everything(run)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("start", "reads"), [("fork", "first"), ("spawn", "reads")])
def test_torchs_own_loader_gives_each_row_once(run: TraceStore, start: str, reads: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.feeds.test_torch_batches", str(run.folder), start, reads]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    training_data._WINDOW_ITEMS = 100
    if sys.argv[2:] == ["train"]:
        train(Path(sys.argv[1]))
    else:
        main()


def test_what_a_resumed_epoch_had_left_is_no_part_of_the_next(run: TraceStore) -> None:
    batches = made(run)
    batches.load_state_dict(made(run).state_dict(batches=5))
    assert len([*batches]) == len(batches) - 5
    batches.set_epoch(1)
    again = made(run)
    again.load_state_dict(batches.state_dict(batches=0))
    assert rows_of(again) == everything(run)
