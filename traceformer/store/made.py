"""Patterns that the compiled core makes, in the very form in which they are stored.

1. The heads of the examples of a batch are shared out among some threads, each an even part of the cells.
2. A thread has as many heads made at a time as stay in the processor's cache, and of a head that does not as many rows.
3. Whole chunks of these are compressed at once; what a head has left over begins its next chunk.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from traceformer.core.kernels import PatternCall, patterns, patterns_memory
from traceformer.core.library import Core
from traceformer.shapes import Float32, Int64, Shaped
from traceformer.store.codecs import Chunk
from traceformer.store.dtypes import NonFinite, first_nonfinite
from traceformer.store.pages import Kept
from traceformer.store.triangles import n_cells

__all__ = ["Batch", "Making", "Together", "make_whole", "one_by_one"]

_CELLS = 1 << 20  # that are made before they are compressed: 2 MB
_WORTH_A_THREAD = 1 << 17  # cells

Together: TypeAlias = Callable[[Sequence[Callable[[], None]]], None]
"""Does several things, on as many threads as it has."""


def one_by_one(works: Sequence[Callable[[], None]]) -> None:
    """Does several things on the caller's thread."""
    for work in works:
        work()


class Batch(NamedTuple):
    """The patterns of one layer of some examples, yet to be made by the core.

    Attributes:
        core: What makes them.
        heads: Their numbers in the calls.
        slots: Where in the shard each example goes.
        calls: What each example's are made of.
        threads: How many may make them.
        together: What runs so many things at a time.
    """

    core: Core
    heads: Int64[np.ndarray, "head"]
    slots: Sequence[int]
    calls: Sequence[PatternCall]
    threads: int
    together: Together

    def run(self, work: Callable[[int, int, slice], None]) -> None:
        """Calls `work` for every example with all its heads, or slices of them: thread, example, heads."""
        sizes = np.repeat([call.queries * call.keys for call in self.calls], len(self.heads))
        threads = max(1, min(self.threads, len(sizes), int(sizes.sum()) // _WORTH_A_THREAD))
        ends = np.cumsum(sizes)
        cuts = [0, *np.searchsorted(ends, ends[-1] * np.arange(1, threads) / threads), len(sizes)]

        def part(thread: int) -> Callable[[], None]:
            def do() -> None:
                for example, heads in _pieces(cuts[thread], cuts[thread + 1], len(self.heads)):
                    work(thread, example, heads)

            return do

        self.together([part(thread) for thread in range(threads)])


def _pieces(start: int, stop: int, n_heads: int) -> Iterator[tuple[int, slice]]:
    while start < stop:
        example, head = divmod(int(start), n_heads)
        last = min(n_heads, head + int(stop) - int(start))
        yield example, slice(head, last)
        start += last - head


class Making:
    """Makes and compresses an array's patterns; memory is used again from batch to batch.

    Args:
        cells: How many a chunk has.
        width: That of a row of a square, 0 for triangles.
        compress: What compresses a chunk.
        kept: Where chunks are kept.
    """

    def __init__(self, cells: int, width: int, compress: Callable[[np.ndarray], Chunk], kept: Kept) -> None:
        self._cells, self._width, self._compress, self._kept = cells, width, compress, kept
        self._keeping = threading.Lock()
        self._floats: dict[int, Float32[np.ndarray, "_"]] = {}
        self._halves: dict[int, Shaped[np.ndarray, "_"]] = {}

    def make(self, batch: Batch, made: Sequence[list[list[Chunk]]], layer: int) -> dict[int, NonFinite]:
        """Appends the chunks of each example's heads to its lists; returns which examples' hold inf or NaN."""
        unfit: dict[int, NonFinite] = {}

        def work(thread: int, example: int, heads: slice) -> None:
            call, numbers = batch.calls[example], batch.heads[heads]
            memory = self._memory(thread, patterns_memory(batch.core, call))
            whole = -(-self._count(0, call.queries) // self._cells) * self._cells
            at_once = _CELLS // whole
            for start in range(0, len(numbers), max(1, at_once)):
                own = numbers[start : start + max(1, at_once)]
                steps = [(0, call.queries)] if at_once else self._steps(call.queries)
                cells = self._room(thread, len(own) * (whole if at_once else _CELLS + 2 * self._cells))
                cells = cells.reshape(len(own), -1)
                targets = made[example][heads][start : start + len(own)]
                left = 0
                for first, stop in steps:
                    count = self._count(first, stop)
                    part = cells[:, left : left + count]
                    if not patterns(batch.core, call, own, first, stop, memory, part, self._width):
                        found = first_nonfinite(part, "float16")
                        if found is not None:
                            unfit[example] = NonFinite((layer,), found.kind)
                    left = self._flush(cells, left + count, targets, last=stop == call.queries)

        batch.run(work)
        return unfit

    def _count(self, first: int, stop: int) -> int:
        return (stop - first) * self._width or n_cells(stop) - n_cells(first)

    def _steps(self, queries: int) -> Iterator[tuple[int, int]]:
        """Yields as many rows at a time as have room, at least one."""
        first = 0
        while first < queries:
            stop = first + max(1, _CELLS // (self._width or queries))
            yield first, min(stop, queries)
            first = stop

    def _flush(
        self, cells: Shaped[np.ndarray, "head cell"], used: int, targets: Sequence[list[Chunk]], *, last: bool
    ) -> int:
        """Compresses whole chunks, the last one with zeros behind; returns how many cells are left over."""
        whole = used // self._cells * self._cells
        if last and whole < used:
            whole += self._cells
            cells[:, used:whole] = 0
        for own, target in zip(cells, targets, strict=True):
            for start in range(0, whole, self._cells):
                chunk = self._compress(own[start : start + self._cells])
                with self._keeping:
                    target.append(self._kept.keep(chunk))
        if last:
            return 0
        cells[:, : used - whole] = cells[:, whole:used].copy()
        return used - whole

    def _memory(self, thread: int, size: int) -> Float32[np.ndarray, "_"]:
        if thread not in self._floats or self._floats[thread].size < size:
            self._floats[thread] = np.empty(size, np.float32)
        return self._floats[thread]

    def _room(self, thread: int, size: int) -> Shaped[np.ndarray, "_"]:
        if thread not in self._halves or self._halves[thread].size < size:
            self._halves[thread] = np.empty(size, np.float16)
        return self._halves[thread][:size]


def make_whole(batch: Batch, targets: Sequence[Shaped[np.ndarray, "head ..."]], *, triangle: bool) -> None:
    """Makes each example's patterns where they stay: (head, query, key), or (head, cell) of a triangle."""

    def work(_: int, example: int, heads: slice) -> None:
        call, target = batch.calls[example], targets[example][heads]
        memory = np.empty(patterns_memory(batch.core, call), np.float32)
        cells, pitch = target.reshape(len(target), -1), 0 if triangle else call.keys
        patterns(batch.core, call, batch.heads[heads], 0, call.queries, memory, cells, pitch)

    batch.run(work)
