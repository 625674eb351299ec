"""The way of tensors from a device to the host: gathered there, sent in lots, and taken in order.

1. `put` casts a tensor into the lot that is open, a piece of the device's memory; `ask` puts a question beside it,
   whose answer is not known yet. Neither waits for the device.
2. A full lot, or the last one of a batch, is sent: one copy into pinned memory, on a stream of its own, beside what the
   device goes on to compute. With it goes whether all numbers in it are finite, which is worked out on the device.
3. A thread waits for each lot, and does what is to be done with what is in it, in the order in which that was put
   there. Then the lot is used again.

There is a fixed number of lots: who is faster than the bus, or than what takes the numbers there, waits for one to come
back. Of a device that knows no streams, such as Apple's, a lot is waited for when it is sent; so it is of the
processor, on which all of this does the same.
"""

import functools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Protocol

import torch
from torch import Tensor

from traceformer.shapes import Bool, Int, Shaped
from traceformer.store.system import processors

__all__ = ["Copies", "Crossing", "Way", "cores", "in_parts", "looks_ahead", "packed"]

_LOT_BYTES = 32 << 20
_LOTS = 8
_MOST_CORES = 12
_HEAD = 4096  # bytes: whether all is finite, and the answers
_ALIGNED = 16  # bytes
_FEW_CELLS = 1 << 20

Underway = Iterable[Future[Any]]
"""What still reads a lot's memory."""
Take = Callable[[Tensor, bool], Underway | None]
"""Takes a tensor that has arrived, and whether all that came with it is finite."""


class _Lot:
    """A piece of a device's memory, the pinned memory that it is copied to, and what is to be done there."""

    def __init__(self, device: torch.device, size: int) -> None:
        with torch.inference_mode(False):  # it is used inside of it, and outside
            self.here = torch.zeros(size, dtype=torch.uint8, device=device)
            self.there = torch.zeros(size, dtype=torch.uint8, device="cpu", pin_memory=device.type == "cuda")
        self.device = device
        self.begin()

    def begin(self) -> None:
        self.used, self.answers = _HEAD, 1
        self.tasks: list[Callable[[], Underway | None]] = []
        self._numbers: list[tuple[int, int, torch.dtype]] = []

    def has_room(self, size: int) -> bool:
        return self.answers < _HEAD and _aligned(self.used) + size <= len(self.here)

    def put(self, source: Tensor, dtype: torch.dtype, take: Take) -> None:
        start = _aligned(self.used)
        if start > self.used:
            self.here[self.used : start].zero_()
        stop = self.used = start + source.numel() * dtype.itemsize
        self.here[start:stop].view(dtype).view(source.shape).copy_(source.detach())
        if dtype.is_floating_point:
            last = self._numbers[-1] if self._numbers else None
            if last is not None and last[2] == dtype and _aligned(last[1]) == start:
                self._numbers[-1] = (last[0], stop, dtype)
            else:
                self._numbers.append((start, stop, dtype))
        shape = source.shape
        self.tasks.append(lambda: take(self.there[start:stop].view(dtype).view(shape), bool(self.there[0])))

    def ask(self, question: Bool[Tensor, ""], told: Callable[[bool], None]) -> None:
        place = self.answers
        self.answers += 1
        self.here[place].copy_(question)
        self.tasks.append(lambda: told(bool(self.there[place])))

    def seal(self) -> None:
        """Puts whether all numbers are finite into the lot's first byte."""
        finite = [torch.isfinite(self.here[start:stop].view(dtype)).all() for start, stop, dtype in self._numbers]
        if finite:
            self.here[0].copy_(torch.stack(finite).all())
        else:
            self.here[0].fill_(1)

    def take(self) -> None:
        """Does what is to be done, and waits for all that reads the lot."""
        underway = [future for task in self.tasks for future in task() or ()]
        for future in underway:
            future.result()


class Copies(Protocol):
    """How the memory of a device is copied to the host's."""

    def start(self, source: Tensor, target: Tensor) -> Callable[[], object]:
        """Starts a copy of what was computed so far, and returns what waits for its end."""
        ...


class OnStreams:
    """Copies beside what a device computes, where it knows streams."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def start(self, source: Tensor, target: Tensor) -> Callable[[], object]:
        device = source.device
        if device.type != "cuda":
            target.copy_(source)
            return lambda: None
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        stream, copied = self._streams[device], torch.cuda.Event(blocking=True)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
            copied.record(stream)
        return copied.synchronize


class Crossing:
    """Takes tensors from devices to the host, in order. `close` waits for what is underway.

    Args:
        lot_bytes: The size of a lot.
        lots: How many there are, of each device.
        copies: What copies them; streams of the devices by default.
    """

    def __init__(self, lot_bytes: int = _LOT_BYTES, lots: int = _LOTS, copies: Copies | None = None) -> None:
        self._copies = OnStreams() if copies is None else copies
        self._size, self._lots = _HEAD + lot_bytes, lots
        self.capacity = lot_bytes - _ALIGNED
        self._open: _Lot | None = None
        self._free: dict[torch.device, SimpleQueue[_Lot]] = {}
        self._made: Counter[torch.device] = Counter()
        self._underway: deque[Future[None]] = deque()
        self._failed: BaseException | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="arrive")

    def put(self, source: Shaped[Tensor, "..."], dtype: torch.dtype, take: Take) -> None:
        """Has `take` called with the numbers of a tensor in this dtype, in memory of the host that is used again after.

        More than `capacity` bytes take memory of their own, which is not used again.
        """
        self._room(source.device, source.numel() * dtype.itemsize).put(source, dtype, take)

    def ask(self, question: Bool[Tensor, ""], told: Callable[[bool], None]) -> None:
        """Has `told` called with the answer to what is worked out on a device."""
        self._room(question.device, 0).ask(question, told)

    def send(self) -> None:
        """Sends what was put in so far."""
        lot, self._open = self._open, None
        if lot is None:
            return
        lot.seal()
        there = self._copies.start(lot.here[: lot.used], lot.there[: lot.used])
        self._underway.append(self._thread.submit(self._take, lot, there))

    def underway(self) -> list[Future[None]]:
        """Returns, once, what is to be waited for until all that was sent has been taken."""
        underway = list(self._underway)
        self._underway.clear()
        return underway

    def raise_errors(self) -> None:
        """Raises what taking a lot has raised."""
        while self._underway and self._underway[0].done():
            self._underway.popleft().result()

    def close(self) -> None:
        self._thread.shutdown()

    def _room(self, device: torch.device, size: int) -> _Lot:
        if self._open is not None and not (self._open.device == device and self._open.has_room(size)):
            self.send()
        if self._open is None:
            fits = size <= self.capacity
            self._open = self._free_lot(device) if fits else _Lot(device, self._size + size)
        return self._open

    def _free_lot(self, device: torch.device) -> _Lot:
        free = self._free.setdefault(device, SimpleQueue())
        if free.empty() and self._made[device] < self._lots:
            self._made[device] += 1
            return _Lot(device, self._size)
        return free.get()

    def _take(self, lot: _Lot, there: Callable[[], object]) -> None:
        try:
            there()
            if self._failed is not None:  # what comes after would be taken for whole
                raise self._failed
            lot.take()
        except BaseException as error:
            self._failed = error
            raise
        finally:
            lot.begin()
            if len(lot.here) == self._size:
                self._free[lot.device].put(lot)


def cores() -> int:
    """How many threads are at work for what a device has made: those that its processor has, but two."""
    return min(_MOST_CORES, max(2, processors() - 2))


class Way:
    """How what a device has made comes into a shard's memory: over, and into the hands of several threads."""

    def __init__(self) -> None:
        self.crossing = Crossing()
        self.pool = ThreadPoolExecutor(cores(), thread_name_prefix="compress")

    def close(self) -> None:
        """Waits for all that was sent."""
        self.crossing.close()
        self.pool.shutdown()


def _aligned(place: int) -> int:
    return -(-place // _ALIGNED) * _ALIGNED


def in_parts(tensors: tuple[Tensor, ...], most: int) -> Iterator[tuple[Tensor, ...]]:
    """Yields tensors of one shape cut alike, so that each part has `most` numbers at most (or is one of the last axis).

    They are cut along their first axis of more than one, then the next.
    """
    shape = tensors[0].shape
    axis = next((axis for axis, size in enumerate(shape[:-1]) if size > 1), None)
    if axis is None or shape.numel() <= most:
        yield tensors
        return
    step = max(1, most // (shape.numel() // shape[axis]))
    for start in range(0, shape[axis], step):
        length = min(step, shape[axis] - start)
        yield from in_parts(tuple(each.narrow(axis, start, length) for each in tensors), most)


def packed(block: Shaped[Tensor, "*lead query key"], first: int) -> Shaped[Tensor, "*lead cell"]:
    """Returns what lies on and below the diagonal of some rows of squares, query `first` being the first.

    The cells are those of `store.triangles`, row after row, on the device of the block. Keys behind the last query,
    which are left out, may be missing.
    """
    rows, keys = block.shape[-2:]
    return block.flatten(-2).index_select(-1, _places(first, rows, keys, block.device))


def looks_ahead(block: Shaped[Tensor, "*lead query key"], first: int) -> Bool[Tensor, ""]:
    """Returns whether anything lies above that diagonal, on the device of the block."""
    ahead = block.narrow(-1, first, block.shape[-1] - first)
    return (ahead.triu(1) != 0).any()


def _places(first: int, rows: int, keys: int, device: torch.device) -> Int[Tensor, "cell"]:
    if rows * keys <= _FEW_CELLS:
        return _places_kept(first, rows, keys, device)
    return _places_anew(first, rows, keys, device)


def _places_anew(first: int, rows: int, keys: int, device: torch.device) -> Int[Tensor, "cell"]:
    """Returns where the cells of a packed block lie in one row of the flattened one."""
    where = device if device.type == "cuda" else torch.device("cpu")
    with torch.inference_mode(False):
        query, key = torch.tril_indices(rows, keys, first, dtype=torch.int32, device=where)
        return (query * keys + key).to(device)


_places_kept = functools.lru_cache(maxsize=64)(_places_anew)
