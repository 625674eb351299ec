"""Batches of a run as torch's loaders take them: shared by workers and ranks, and resumed at any of them.

1. An epoch's batches are numbered. What is left of them, as stretches of numbers, is shared by the ranks, then by the
   workers of a loader: shuffled ones in stretches, others in turns. A loader takes a batch from each worker in turn.
2. So the number of batches that were taken says which these were. A state is what was left when a loader began, and
   how many it has taken since; what is left after that is shared anew, by as many workers as there are then.
3. A loader's workers have copies of the data set, so epoch and state reach them by memory that they share.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from traceformer.errors import UsageError, check_whole
from traceformer.store.squares import Squares
from traceformer.store.training_data import Batch, TrainingData
from traceformer.store.training_order import Stretch, left_after, shared

__all__ = ["TorchBatches", "torch_batches"]

_EPOCH, _LOADER, _LOADERS = range(3)
"""Places in the shared memory: the epoch, whose workers take up a state, and how many loaders have begun since then."""


def torch_batches(data: TrainingData, rank: int | None, world_size: int | None) -> "TorchBatches":
    """Returns the batches of one of several processes that train together; see `TrainingData.to_torch`.

    Raises:
        UsageError: one of rank and world_size is missing, or there is no such rank.
    """
    if (rank is None) != (world_size is None):
        raise UsageError("rank without world_size, or the other way round", hint="both, or neither")
    if rank is None or world_size is None:
        there = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank, world_size = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if there else (0, 1)
    check_whole("world_size", world_size, 1)
    check_whole("rank", rank, 0)
    if rank >= world_size:
        raise UsageError(f"rank {rank} of {world_size} processes", hint=f"a rank from 0 to {world_size - 1}")
    return TorchBatches(data, int(rank), int(world_size))


@dataclass(slots=True)
class _Pass:
    """How far a pass over an epoch is: what was left when it began, and how many batches this worker has made since."""

    epoch: int
    left: Sequence[Stretch]
    workers: int
    worker: int
    done: int


class TorchBatches(IterableDataset[Any]):
    """The batches of a run as an `IterableDataset`: tensors (row, d), or a dict of tensors of `Squares` and their mask.

        batches = run.training_data("resid_post", layer=2, batch_size=4096).to_torch()
        loader = DataLoader(batches, batch_size=None, num_workers=2)
        for epoch in range(3):
            batches.set_epoch(epoch)
            for step, rows in enumerate(loader, 1): ...
            state = batches.state_dict(batches=step, num_workers=2)

    Batches are made here, so loaders take `batch_size=None`. Every batch of an epoch comes once, whatever the number
    of workers. torchdata's `StatefulDataLoader` keeps and loads the state by itself.
    """

    def __init__(self, data: TrainingData, rank: int = 0, world_size: int = 1) -> None:
        self.data = data
        self.rank, self.world_size = rank, world_size
        self._memory = torch.zeros(3, dtype=torch.int64).share_memory_()
        self._resumed: _Pass | None = None  # of one worker, or of all that a loader has, whose `worker` is then -1
        self._loaded_in = 0
        self._now: _Pass | None = None

    def __repr__(self) -> str:
        rank = f", rank {self.rank} of {self.world_size}" if self.world_size > 1 else ""
        return f"TorchBatches({self.data!r}, epoch {self.epoch}{rank})"

    def __len__(self) -> int:
        """The number of batches of a whole epoch, of this rank."""
        return sum(stop - start for start, stop in self._whole)

    @property
    def _whole(self) -> list[Stretch]:
        """All batches of an epoch that are this rank's; where the last is dropped, all ranks have as many."""
        n = len(self.data)
        if self.data.chosen["drop_last"]:
            n -= n % self.world_size
        return [(each.start, each.stop) for each in shared([(0, n)], self.world_size, in_turns=False)[self.rank]]

    @property
    def epoch(self) -> int:
        """The epoch that is next, or under way."""
        return int(self._memory[_EPOCH])

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch's order comes next, also to workers that are kept; a state of another epoch is forgotten."""
        check_whole("epoch", epoch, 0)
        if self._resumed is not None and self._resumed.epoch != epoch:
            self._resumed = None
        self._memory[_EPOCH] = epoch

    def __iter__(self) -> Iterator[Any]:
        """Yields the batches of this epoch, or what is left of it; in a worker of a loader, its share.

        Raises:
            UsageError: the state is of another worker than this one.
        """
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        seed = 0 if info is None else info.seed - info.id
        self._now = now = self._begun(worker, workers, seed)
        numbers = _behind(shared(now.left, workers, in_turns=not self.data.shuffle)[worker], now.done)
        return self._made(numbers, now)

    def _begun(self, worker: int, workers: int, seed: int) -> _Pass:
        resumed, self._resumed = self._resumed, None
        if worker == 0:
            self._memory[_LOADERS] += 1
        if resumed is None or resumed.epoch != self.epoch or not self._is_taken_up(seed):
            return _Pass(self.epoch, self._whole, workers, worker, 0)
        if resumed.worker < 0:
            return _Pass(self.epoch, resumed.left, workers, worker, 0)
        if (resumed.worker, resumed.workers) != (worker, workers):
            raise UsageError(
                f"this state is of worker {resumed.worker} of {resumed.workers}",
                why=f"it was loaded in worker {worker} of {workers}",
                hint="as many workers as before; state_dict(batches=..., num_workers=...) is of all of them",
            )
        return resumed

    def _is_taken_up(self, seed: int) -> bool:
        """Whether a state is for this pass: it was loaded in this process, or this is the first loader with workers.

        A loader's workers have one seed, which another loader's have not. All of them may say so at the same time.
        """
        if self._loaded_in == os.getpid():
            return True
        if not int(self._memory[_LOADER]):
            self._memory[_LOADER] = seed or 1
        return int(self._memory[_LOADER]) == (seed or 1)

    def _made(self, numbers: list[range], now: _Pass) -> Iterator[Any]:
        for batch in self.data.batches(now.epoch, (number for own in numbers for number in own)):
            now.done += 1
            yield _tensors(batch)

    # Keeping the place

    def state_dict(self, batches: int | None = None, num_workers: int = 0) -> dict[str, Any]:
        """Returns where in the epoch a training is, to be kept as JSON or with its other states.

        Args:
            batches: How many batches a plain `DataLoader` with workers has given since it was begun. Without it, what
                was made in this process counts: of a loader without workers, or of torchdata's.
            num_workers: How many workers that loader has.

        Raises:
            UsageError: nothing was made in this process, and `batches` is not said; or more than there are.
        """
        check_whole("num_workers", num_workers, 0)
        if batches is None:
            if self._now is None:
                raise UsageError(
                    "no batch was made in this process",
                    why="a loader's workers make them elsewhere",
                    hint="state_dict(batches=N, num_workers=W): the loader has W workers and has given N batches",
                )
            now = self._now
        else:
            check_whole("batches", batches, 0)
            is_first = self._resumed is not None and int(self._memory[_LOADERS]) <= 1
            own = self._now if num_workers == 0 and self._now and self._now.epoch == self.epoch else None
            began = self._resumed if is_first else own
            left = self._whole if began is None else began.left
            now = _Pass(self.epoch, left, max(1, num_workers), -1, int(batches))
            there = sum(stop - start for start, stop in left)
            if batches > there:
                raise UsageError(f"{batches} batches were given", why=f"there were {there} when the loader was begun")
        left, place = [[*stretch] for stretch in now.left], {"workers": now.workers, "worker": now.worker}
        return {"of": self._stated, "epoch": now.epoch, "left": left, **place, "done": now.done}

    @property
    def _stated(self) -> dict[str, Any]:
        return {**self.data.stated, "rank": self.rank, "world_size": self.world_size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was, in that epoch, with what was not yet seen: at the next iteration, once.

        Load it before a loader begins. One of all workers can be gone on from with any number of workers.

        Raises:
            UsageError: it is of other data: another run, site, seed or size of batches; or it is no such state.
        """
        kept = self._read(state)
        if kept.worker < 0 or kept.workers == 1:
            left = left_after(kept.left, kept.workers, kept.done, in_turns=not self.data.shuffle)
            kept = _Pass(kept.epoch, left, 1, -1, 0)
        self._resumed, self._loaded_in, self._now = kept, os.getpid(), None
        self._memory[_EPOCH], self._memory[_LOADER], self._memory[_LOADERS] = kept.epoch, 0, 0

    def _read(self, state: Mapping[str, Any]) -> _Pass:
        try:
            stated: dict[str, Any] = dict(state["of"])
            left = [(int(start), int(stop)) for start, stop in state["left"]]
            kept = _Pass(int(state["epoch"]), left, int(state["workers"]), int(state["worker"]), int(state["done"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError("no state of such batches", why=f"{type(error).__name__}: {error}") from error
        for name, value in self._stated.items():
            if name not in stated or stated[name] != value:
                was = repr(stated[name]) if name in stated else "nothing"
                raise UsageError(f"this state is of other data: {name} was {was}, and is {value!r}")
        whole, ends = self._whole, [number for stretch in left for number in stretch]
        inside = not left or (whole and whole[0][0] <= ends[0] and ends[-1] <= whole[0][1])
        there = sum(stop - start for start, stop in left)
        if not self.data.shuffle and len(left) > 1:
            inside = False
        if not inside or ends != sorted(ends) or kept.epoch < 0 or kept.workers < 1 or not 0 <= kept.done <= there:
            raise UsageError("no state of such batches", why=f"{left} are not left of {whole}")
        return kept


def _behind(numbers: Sequence[range], done: int) -> list[range]:
    """Returns what is left once the first of these numbers are done."""
    found: list[range] = []
    for own in numbers:
        found.append(own[min(done, len(own)) :])
        done -= min(done, len(own))
    return [own for own in found if own]


def _tensors(batch: Batch) -> Any:
    if isinstance(batch, Squares):
        found = {**batch._asdict(), "mask": batch.mask}
        return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in found.items()}
    return torch.from_numpy(batch)
