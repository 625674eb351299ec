"""Loaders as torch and torchdata have them, without processes: workers have copies that share memory."""

import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from traceformer.feeds import torch_batches
from traceformer.feeds.torch_batches import TorchBatches


class Loader:
    """`DataLoader(batches, batch_size=None, num_workers=W)`: a batch from each worker in turn, until it has none."""

    def __init__(self, batches: TorchBatches, workers: int, patch: pytest.MonkeyPatch) -> None:
        self.batches, self.workers, self.patch, self.seed = batches, workers, patch, 1000

    def __iter__(self) -> Iterator[Any]:
        if not self.workers:
            yield from self.batches
            return
        self.seed += 77  # another one whenever it is begun
        alive = dict(enumerate(self.begun(worker) for worker in range(self.workers)))
        while alive:
            for worker, own in [*alive.items()]:
                try:
                    yield next(own)
                except StopIteration:
                    del alive[worker]

    def begun(self, worker: int) -> Iterator[Any]:
        mine = copy.copy(self.batches)
        mine._loaded_in = -1  # which is another process
        return self.in_worker(worker, lambda: iter(mine))

    def in_worker(self, worker: int, work: Any) -> Any:
        info = SimpleNamespace(id=worker, num_workers=self.workers, seed=self.seed + worker)
        with self.patch.context() as patch:
            patch.setattr(torch_batches, "get_worker_info", lambda: info)
            return work()


class StatefulLoader(Loader):
    """`StatefulDataLoader` of torchdata 0.11: in each worker a state is loaded, then iteration begun.

    States are those that the workers were in when they made the batches that were given.
    """

    def __init__(self, batches: TorchBatches, workers: int, patch: pytest.MonkeyPatch, states: Any = None) -> None:
        super().__init__(batches, workers, patch)
        self.states = states
        self.mine: dict[int, TorchBatches] = {}

    def begun(self, worker: int) -> Iterator[Any]:
        mine = self.mine[worker] = copy.copy(self.batches)
        if self.states is not None:
            mine.load_state_dict(self.states[worker])
        return self.in_worker(worker, lambda: iter(mine))

    def state_dict(self) -> Any:
        return {worker: mine.state_dict() for worker, mine in self.mine.items()}
