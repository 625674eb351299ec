"""What a run holds as data for training: rows of a site or squares of patterns, in batches, in any epoch's order.

1. `TrainingOrder` says which pieces make up a window and how it is shuffled; `Items` reads them and takes out of them.
2. While the batches of one window are handed out, the next is read, and the next two batches are taken out of it, by
   threads: so there are two windows in memory, as they are stored.
3. What comes is known of any batch without those before it: a training goes on in the middle of an epoch, and several
   processes share one.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from traceformer.errors import SelectionError, UsageError, check_whole
from traceformer.presentation import present
from traceformer.shapes import Int64, Num
from traceformer.sites import ArraySpec
from traceformer.store.arrays import RunArrays, one_number
from traceformer.store.columns import Column, cut_at_chunks, gather
from traceformer.store.dtypes import ReadDtype, dtype_read
from traceformer.store.names import Stored
from traceformer.store.squares import Squares, SquareShape, square_items
from traceformer.store.training_order import Part, Stretch, TrainingOrder
from traceformer.store.zarr3 import numbers_of, reading

if TYPE_CHECKING:
    from traceformer.store.run import Run

__all__ = ["Batch", "Items", "RowItems", "TrainingData", "row_items", "training_data"]

_WINDOW_ITEMS, _WINDOW_BYTES = 1 << 16, 256 << 20
_TAKEN_AHEAD = 2  # batches
_BATCH_TOKENS = 4096

Batch: TypeAlias = "Num[np.ndarray, 'row d'] | Squares"


class Items(Protocol):
    """What a training takes from a run, in pieces that are read together."""

    @property
    def counts(self) -> Int64[np.ndarray, "piece"]:
        """How many items each piece has."""
        ...

    @property
    def item_bytes(self) -> int:
        """What an item takes in a window."""
        ...

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """What its numbers are read as."""
        ...

    def read(self, parts: Sequence[Part], epoch: int) -> Any:
        """Returns a window: these items, one behind the other, in whatever form."""
        ...

    def batch(self, window: Any, places: Int64[np.ndarray, "item"]) -> Batch:
        """Returns those of a window's items, in arrays of their own."""
        ...

    def joined(self, batches: Sequence[Any]) -> Batch:
        """Returns several batches as one."""
        ...


@dataclass(frozen=True)
class RowItems:
    """One layer's rows of all tokens, a piece being what of a chunk is filled; see `Items`.

    `once` says that windows are no smaller than chunks: few chunks are read for two of them.
    """

    arrays: RunArrays
    spec: ArraySpec
    stored: Stored
    layer: int | None
    head: int | None
    dtype: ReadDtype
    pieces: Sequence[Stretch]
    width: int
    name: str
    once: bool

    @property
    def counts(self) -> Int64[np.ndarray, "piece"]:
        return np.array([stop - first for first, stop in self.pieces], np.int64)

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        return dtype_read(self.stored, self.dtype)

    @property
    def item_bytes(self) -> int:
        return self.width * dtype_read(self.stored, "stored").itemsize

    @cached_property
    def _column(self) -> Column:
        return self.arrays.column(self.spec, self.layer, self.head, "stored", once=self.once)

    def read(self, parts: Sequence[Part], epoch: int) -> Num[np.ndarray, "row d"]:
        del epoch  # in each the rows are the same
        slots = [(self.pieces[piece][0] + first, self.pieces[piece][0] + stop) for piece, first, stop in parts]
        with reading(self.name):
            return gather(self._column, slots)

    def batch(self, window: Num[np.ndarray, "row d"], places: Int64[np.ndarray, "item"]) -> Num[np.ndarray, "item d"]:
        rows = window[places]
        return numbers_of(rows, "float16", self.dtype) if rows.dtype == np.float16 else rows

    def joined(self, batches: Sequence[Num[np.ndarray, "_ d"]]) -> Num[np.ndarray, "row d"]:
        return np.concatenate(batches)


def row_items(
    arrays: RunArrays,
    spec: ArraySpec,
    stored: Stored,
    layer: int | None,
    head: int | None,
    dtype: ReadDtype,
    name: str,
    *,
    together: int | None,
) -> RowItems:
    """Returns one layer's rows of all tokens; `name` is what messages call the run. No array is opened.

    `together` is how many are read at once, None for more than a chunk has.

    Raises:
        SelectionError: the site has layers and none is named, or is a matrix; or there is no such layer or head.
    """
    dtype_read(stored, dtype)
    place = arrays.place(spec, layer, head)
    pieces = cut_at_chunks(place.spans, place.chunk, place.chunk)
    once = together is None or together >= place.chunk
    return RowItems(arrays, spec, stored, layer, head, dtype, pieces, place.width, name, once)


class _Wanted(NamedTuple):
    """What of a batch lies in one window; `ends` says that it is the last of that batch."""

    window: int
    first: int
    stop: int
    ends: bool


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Rows of a site, or squares of patterns, of all texts of a run: each once an epoch. `run.training_data` makes it.

        data = run.training_data("resid_post", layer=2, batch_size=4096)
        for rows in data.batches(epoch=0): ...      # (row, d_model); `len(data)` batches
        data.to_torch()                             # an IterableDataset of torch
        data.to_datasets()                          # one of Hugging Face's datasets

    Which batches there are follows from the run, `batch_size`, `seed` and the epoch. Shuffled, the chunks of all texts
    (512 tokens; of squares: the texts) are put in random order and cut into windows of 65,536 items, or as many as
    256 MiB hold; each window is shuffled by itself. So memory does not grow with the run, and any batch is made without
    those before it.

    Attributes:
        run: The run.
        items: What is read of it.
        chosen: What `run.training_data` was called with.
        digest: That of the run's configuration.
        expected: How many items there were in the process that this comes from.
    """

    run: "Run"
    items: Items
    chosen: dict[str, Any]
    digest: str
    expected: int | None = None

    def __repr__(self) -> str:
        what = "rows" if isinstance(self.items, RowItems) else "squares"
        order = f"shuffled by seed {self.chosen['seed']}" if self.shuffle else "in order"
        return f"TrainingData({self.run.name}: {self.n} {what} of {self.chosen['site']}, {len(self)} batches, {order})"

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches of epoch 0."""
        return self.batches()

    def __reduce__(self) -> Any:
        """Pickled, it is its run's folder and what was chosen: a worker process opens the run anew."""
        return _opened_anew, (self.run, self.chosen, self.n)

    @property
    def batch_size(self) -> int:
        """How many rows or squares a batch has; the last may have fewer."""
        return self.chosen["batch_size"]

    @property
    def shuffle(self) -> bool:
        """Whether they are shuffled."""
        return self.chosen["shuffle"]

    @cached_property
    def n(self) -> int:
        """The number of rows, or of squares."""
        return int(self.items.counts.sum())

    @property
    def n_batches(self) -> int:
        """The number of batches, which `len` gives too."""
        return self.n // self.batch_size if self.chosen["drop_last"] else -(-self.n // self.batch_size)

    @property
    def window(self) -> int:
        """How many items are shuffled together; of what is not shuffled, those of a batch are read together."""
        if not self.shuffle:
            return self.batch_size
        return min(_WINDOW_ITEMS, max(1, _WINDOW_BYTES // self.items.item_bytes))

    @cached_property
    def stated(self) -> dict[str, Any]:
        """What the batches of all epochs follow from, as JSON has it.

        The beginning of epoch 0 is in it: another layout on disk, or other random numbers of a later numpy, would make
        another order of the same rows.
        """
        chosen = {name: value for name, value in self.chosen.items() if name != "dtype"}
        return {**chosen, "items": self.n, "order": self._order(0).beginning(), "run": self.digest}

    def _order(self, epoch: int) -> TrainingOrder:
        return TrainingOrder(self.items.counts, self.window, self.chosen["seed"] if self.shuffle else None, epoch)

    def batches(self, epoch: int = 0, numbers: Iterable[int] | None = None) -> Iterator[Batch]:
        """Yields an epoch's batches, or those of these numbers: (row, d), or `Squares`. All but the last are full.

        Raises:
            UsageError: the run has more texts than when this was made, in another process.
            CorruptRun: a file is not as it was written.
        """
        check_whole("epoch", epoch, 0)
        size = self.batch_size
        chosen = range(self.n_batches) if numbers is None else numbers
        return self.stretches(((number * size, min((number + 1) * size, self.n)) for number in chosen), epoch)

    def stretches(self, stretches: Iterable[Stretch], epoch: int = 0) -> Generator[Batch]:
        """Yields, for each stretch of an epoch's order, its items as one batch."""
        if self.expected not in (None, self.n):
            raise UsageError(
                f"{self.run.name} has {self.n} items, and had {self.expected} when this training's data was made",
                why="it has grown since, so their order is another",
                hint="make the data again, of a run that is finished or of one opened anew",
            )
        order = self._order(epoch)
        taken: deque[tuple[_Wanted, Future[Batch]]] = deque()
        pending: list[Batch] = []
        pool = ThreadPoolExecutor(2, thread_name_prefix="training-data")
        try:
            for wanted, window, places in self._windows(order, stretches, pool):
                taken.append((wanted, pool.submit(self.items.batch, window, places[wanted.first : wanted.stop])))
                del window, places
                if len(taken) > _TAKEN_AHEAD:
                    yield from self._whole(*taken.popleft(), pending)
            while taken:
                yield from self._whole(*taken.popleft(), pending)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _windows(
        self, order: TrainingOrder, stretches: Iterable[Stretch], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[_Wanted, Any, Int64[np.ndarray, "item"]]]:
        """Yields what is wanted, with the window it is in, and that window's order; the next one is being read."""
        ahead: deque[tuple[list[_Wanted], Future[Any]]] = deque()
        for number, visit in groupby(_in_windows(stretches, order.window), key=lambda wanted: wanted.window):
            ahead.append(([*visit], pool.submit(self.items.read, order.parts(number), order.epoch)))
            if len(ahead) > 1:
                yield from _of_window(order, *ahead.popleft())
        while ahead:
            yield from _of_window(order, *ahead.popleft())

    def _whole(self, wanted: _Wanted, taken: Future[Batch], pending: list[Batch]) -> Iterator[Batch]:
        """Yields a batch whose last part this is."""
        pending.append(taken.result())
        if wanted.ends:
            yield pending[0] if len(pending) == 1 else self.items.joined(pending)
            pending.clear()

    def to_torch(self, *, rank: int | None = None, world_size: int | None = None) -> Any:
        """Returns the batches as an `IterableDataset` of torch; see `TorchBatches`.

            DataLoader(data.to_torch(), batch_size=None, num_workers=2)

        Of several processes that train together each makes its share: as torch.distributed says, where that is
        initialised, or `rank` of `world_size`.
        """
        return present(self, "torch", rank, world_size)

    def to_datasets(self, *, epoch: int = 0) -> Any:
        """Returns an epoch's rows or squares, one by one, as an `IterableDataset` of Hugging Face's `datasets`.

            DataLoader(data.to_datasets().with_format("torch"), batch_size=4096)

        They are shuffled, and each comes once after `load_state_dict` too: a `.shuffle()` behind it would lose what is
        in its buffer. `set_epoch` gives another order where `datasets` asks for one (5.2 does, 4.0 does not).
        """
        check_whole("epoch", epoch, 0)
        return present(self, "datasets", epoch)


def training_data(run: "Run", arrays: RunArrays, spec: ArraySpec, digest: str, chosen: dict[str, Any]) -> TrainingData:
    """Returns an array's rows, or squares of its matrices where a size is chosen, as data for training.

    `chosen` are the arguments of `run.training_data`, `digest` is that of the run's configuration.

    Raises:
        SelectionError, UsageError: something that is chosen cannot be meant.
    """
    stored, dtype, size = run.layout.stored(spec), chosen["dtype"], chosen["size"]
    layer, head = chosen["layer"], chosen["head"]
    check_whole("seed", chosen["seed"], 0)
    if size is not None:
        shape = SquareShape(size, chosen["crop"], chosen["pad"], chosen["seed"])
        items = square_items(arrays, spec, stored, run.lengths(spec.key.stack), layer, head, shape, dtype)
        layer, head = [*items.layers], [*items.heads]
    elif chosen["crop"] != "first" or chosen["pad"]:
        raise SelectionError("crop and pad are of squares", hint="say their size, as in size=64")
    else:
        layer, head = one_number("layer", layer), one_number("head", head)
        together = None if chosen["shuffle"] else chosen["batch_size"]
        items = row_items(arrays, spec, stored, layer, head, dtype, run.name, together=together)
    batch_size = chosen["batch_size"]
    if batch_size is None:
        batch_size = max(1, _BATCH_TOKENS // (size or 1))
    check_whole("batch_size", batch_size, 1)
    numbers = {"layer": layer, "head": head, "batch_size": int(batch_size), "seed": int(chosen["seed"])}
    return TrainingData(run, items, {**chosen, "site": str(spec.key), **numbers}, digest)


def _of_window(
    order: TrainingOrder, several: list[_Wanted], read: Future[Any]
) -> Iterator[tuple[_Wanted, Any, Int64[np.ndarray, "item"]]]:
    window, places = read.result(), order.places(several[0].window)
    del read  # which would keep the window
    for wanted in several:
        yield wanted, window, places


def _in_windows(stretches: Iterable[Stretch], window: int) -> Iterator[_Wanted]:
    for start, stop in stretches:
        for number in range(start // window, -(-stop // window)):
            base = number * window
            yield _Wanted(number, max(start - base, 0), min(stop - base, window), stop <= base + window)


def _opened_anew(run: "Run", chosen: dict[str, Any], expected: int) -> TrainingData:
    return replace(run.training_data(**chosen), expected=expected)
