"""What a run holds, item by item, as `datasets` streams it: resumed at any item, without a buffer to be filled again.

`datasets` shuffles a stream in a buffer whose content is lost when it is resumed. Here an epoch's order stands before
anything is read (`store.training_order`), so its state is the number of items that were given.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from datasets import Array2D, DatasetInfo, Features, IterableDataset, List, Value
from datasets.iterable_dataset import _BaseExamplesIterable  # pyright: ignore[reportPrivateUsage]

from traceformer.store.squares import Squares
from traceformer.store.training_data import RowItems, TrainingData
from traceformer.store.training_order import Stretch, shared

__all__ = ["single_items"]

_PARTS = 240  # which can be shared evenly by many numbers of processes
_AT_ONCE, _AT_ONCE_BYTES = 1024, 64 << 20  # items that are read at once, which take so much at most, or are one


def single_items(data: TrainingData, epoch: int) -> IterableDataset:
    """Returns an epoch's rows or squares as an `IterableDataset` of `datasets`; see `TrainingData.to_datasets`."""
    parts = [
        (own.start, own.stop)
        for each in shared([(0, data.n)], max(1, min(_PARTS, data.n)), in_turns=False)
        for own in each
    ]
    features = _features(data)
    return IterableDataset(ex_iterable=_Items(data, epoch, parts, features), info=DatasetInfo(features=features))


def _site(data: TrainingData) -> str:
    """The column's name: that of the site."""
    return data.chosen["site"].rpartition(".")[2]


def _features(data: TrainingData) -> Features:
    dtype, size = data.items.numpy_dtype.name, data.chosen["size"]
    if isinstance(data.items, RowItems):
        return Features({_site(data): List(Value(dtype), length=data.items.width)})
    where = {name: Value("int64") for name in Squares._fields[1:]}
    return Features({_site(data): Array2D((size, size), dtype), **where})


class _Items(_BaseExamplesIterable):
    """Some parts of an epoch's order: what `datasets` shares among ranks and workers, shuffles anew, and resumes."""

    _sleep_on_threads_shutdown = False
    _state_dict: Any

    def __init__(self, data: TrainingData, epoch: int, parts: Sequence[Stretch], features: Features) -> None:
        super().__init__()
        self._data, self._epoch, self._parts, self._features = data, epoch, [*parts], features

    @property
    def is_typed(self) -> bool:
        return True

    @property
    def features(self) -> Features:
        return self._features

    @property
    def num_shards(self) -> int:
        return len(self._parts)

    def shuffle_data_sources(self, generator: np.random.Generator) -> "_Items":
        """Returns the same places of another epoch's order; what is not shuffled stays as it is."""
        if not self._data.shuffle:
            return self
        return _Items(self._data, int(deepcopy(generator).integers(1, 1 << 31)), self._parts, self._features)

    def shard_data_sources(self, num_shards: int, index: int, contiguous: bool = True) -> "_Items":
        """Returns a share of it, whose parts lie together: so that few read a window."""
        own = self.split_shard_indices_by_worker(num_shards, index, contiguous=True)
        return _Items(self._data, self._epoch, [self._parts[part] for part in own], self._features)

    def reshard_data_sources(self) -> "_Items":
        return self

    def _init_state_dict(self) -> dict[str, Any]:
        self._state_dict = {"items": 0, "type": type(self).__name__}
        return self._state_dict

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        name, done = _site(self._data), self._state_dict["items"] if self._state_dict else 0
        for batch in self._data.stretches(self._behind(done), self._epoch):
            columns = {name: batch} if isinstance(batch, np.ndarray) else {name: batch.values, **_where(batch)}
            for values in zip(*columns.values(), strict=True):
                if self._state_dict:
                    self._state_dict["items"] += 1
                done += 1
                yield f"{self._epoch}-{done}", dict(zip(columns, values, strict=True))

    def _behind(self, done: int) -> Iterator[Stretch]:
        """Yields what is behind the first items, in stretches that are read at once."""
        at_once = min(_AT_ONCE, max(1, _AT_ONCE_BYTES // self._data.items.item_bytes))
        for start, stop in self._parts:
            skipped = min(done, stop - start)
            done -= skipped
            for first in range(start + skipped, stop, at_once):
                yield first, min(first + at_once, stop)


def _where(batch: Squares) -> dict[str, list[int]]:
    return {name: values.tolist() for name, values in batch._asdict().items() if name != "values"}
