"""The matrices of an open shard, taken as they come: on their way to disk, or to stay in memory.

1. An example's rows come layer by layer, in order, some queries of all heads at a time, in the dtype that is stored.
2. Of a triangle the cells up to the diagonal are taken; one that holds more than these is refused.
3. What goes to disk is looked through for inf and NaN, and compressed as soon as there is enough of it for a chunk:
   it is still in the processor's cache, and no square is kept. Chunks behind an example's last row are left out, which
   reads as zeros, but for the first of each.
4. Where one text's chunks would fill the memory, they go to files meanwhile: see `appended`.
5. What comes as the cells of a triangle, from a device that has packed them, is compressed by several threads.
6. What stays in memory is kept at its true size.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import NoReturn, Protocol

import numpy as np

from traceformer.errors import Unsupported
from traceformer.shapes import Shaped
from traceformer.sites import ArraySpec
from traceformer.store.appended import Appending, Scratch, is_appended
from traceformer.store.codecs import Chunk, compressor
from traceformer.store.dtypes import ON_DISK, NonFinite, first_nonfinite
from traceformer.store.layout import RunLayout
from traceformer.store.made import Batch, Making, make_whole
from traceformer.store.names import Stored
from traceformer.store.pages import Kept
from traceformer.store.triangles import fold, n_cells

__all__ = ["CompressedMatrices", "Matrices", "WholeMatrices", "refuse_ahead"]

_AT_ONCE = 4 << 20  # bytes of rows

Rows = Shaped[np.ndarray, "head query key"]
Cells = Shaped[np.ndarray, "head cell"]


class Matrices(Protocol):
    """What takes an array's matrices of one shard."""

    def begin(self, queries: Sequence[int], keys: Sequence[int]) -> None:
        """Begins a shard of examples with so many queries and keys."""
        ...

    def take(self, slot: int, layer: int, first: int, block: Rows) -> None:
        """Takes the next rows of an example: `layer` counts the stored ones, `first` is the first query's number.

        Keys that are left out come after all others, and are zeros.

        Raises:
            Unsupported: they are no rows of a triangle, and should be.
        """
        ...

    def take_cells(
        self, slot: int, layer: int, first: int, rows: int, cells: Cells, is_finite: bool, pool: Executor
    ) -> Sequence[Future[Chunk]]:
        """Takes the next rows of an example, packed as those of a triangle; they are not to change until all is done.

        `is_finite` says that it is known to be. What is still to be done is left to `pool`.
        """
        ...

    def make(self, layer: int, batch: Batch) -> None:
        """Has all matrices of some examples' layer made by the compiled core, in place of taking them."""
        ...

    def nonfinite(self, slot: int) -> NonFinite | None:
        """Returns where an example's matrices first hold inf or NaN, by layer."""
        ...


class CompressedMatrices:
    """Matrices on their way to disk: of each chunk, what it is compressed to.

    Attributes:
        appending: The files that they go to meanwhile; None where what they are compressed to is kept here.
    """

    def __init__(self, layout: RunLayout, spec: ArraySpec, scratch: Scratch | None = None) -> None:
        is_long = scratch is not None and is_appended(layout, spec)
        self.appending = Appending(layout, spec, scratch) if is_long and scratch is not None else None
        self._layout, self._spec = layout, spec
        self._stored: Stored = layout.stored(spec)
        self._dtype = ON_DISK[self._stored]
        self._width = 0 if layout.is_triangle(spec) else layout.max_tokens[spec.key.key_stack]
        self._cells = int(np.prod(layout.chunk_shape(spec)[3:]))
        self._compress = compressor(layout.codec_of(spec))
        self._rows = np.empty(0, self._dtype)
        self._chunk = np.empty((0, 0), self._dtype)
        self._used = 0
        self._next = (0, 0, 0)
        self._queries: Sequence[int] = ()
        self._made: dict[tuple[int, int], list[list[Chunk | Future[Chunk]]]] = {}
        self._kept = Kept()
        self._pool: Executor | None = None
        self._underway: list[Future[Chunk]] = []
        self._unfit: dict[int, NonFinite] = {}
        self._making = Making(self._cells, self._width, self._compress, self._kept)

    def begin(self, queries: Sequence[int], keys: Sequence[int]) -> None:
        self._queries = [n if m else 0 for n, m in zip(queries, keys, strict=True)]
        self._next = (0, 0, 0)
        self._made.clear()
        self._kept.clear()
        self._unfit.clear()
        if self.appending is not None:
            self.appending.begin()

    def take(self, slot: int, layer: int, first: int, block: Rows) -> None:
        heads, rows, keys = block.shape
        if not first:
            self._begin(slot, layer, heads)
        assert self._next == (slot, layer, first), f"rows of {self._spec.key} out of turn"
        at_once = max(1, _AT_ONCE // max(1, heads * keys * block.itemsize))
        for start in range(0, rows, at_once):
            self._append(slot, layer, self._as_cells(layer, first + start, block[:, start : start + at_once]))
        self._end(slot, layer, first + rows)

    def take_cells(
        self, slot: int, layer: int, first: int, rows: int, cells: Cells, is_finite: bool, pool: Executor
    ) -> Sequence[Future[Chunk]]:
        if not first:
            self._begin(slot, layer, len(cells))
        assert self._next == (slot, layer, first), f"rows of {self._spec.key} out of turn"
        self._pool, self._underway = pool, []
        try:
            self._append(slot, layer, cells, is_finite)
            self._end(slot, layer, first + rows)
            return self._underway
        finally:
            self._pool, self._underway = None, []

    def _end(self, slot: int, layer: int, queries: int) -> None:
        self._next = (slot, layer, queries)
        if queries == self._queries[slot]:
            if self._used:
                self._chunk[:, self._used :] = 0
                self._flush(slot, layer, self._chunk)
            if self.appending is not None:
                self.appending.end(layer)

    def make(self, layer: int, batch: Batch) -> None:
        made = [[list[Chunk]() for _ in batch.heads] for _ in batch.slots]
        unfit = self._making.make(batch, made, layer)
        for number, slot in enumerate(batch.slots):
            self._made[slot, layer] = [[*own] for own in made[number]]
            if number in unfit:
                self._unfit.setdefault(slot, unfit[number])

    def _begin(self, slot: int, layer: int, heads: int) -> None:
        if len(self._chunk) != heads:
            self._chunk = np.empty((heads, self._cells), self._dtype)
        self._used = 0
        self._next = (slot, layer, 0)
        self._made[slot, layer] = [[] for _ in range(heads)]

    def _as_cells(self, layer: int, first: int, block: Rows) -> Cells:
        heads, rows, keys = block.shape
        count = rows * self._width or n_cells(first + rows) - n_cells(first)
        if self._rows.size < heads * count:
            self._rows = np.empty(heads * count, self._dtype)
        cells = self._rows[: heads * count].reshape(heads, count)
        if not self._width:
            _fold(self._spec, layer, first, block, cells)
        else:
            square = cells.reshape(heads, rows, self._width)
            square[..., :keys] = block
            square[..., keys:] = 0
        return cells

    def _append(self, slot: int, layer: int, cells: Cells, is_finite: bool = False) -> None:
        found = None if is_finite or slot in self._unfit else first_nonfinite(cells, self._stored)
        if found is not None:
            self._unfit[slot] = NonFinite((layer,), found.kind)
        at = 0
        while at < cells.shape[1]:
            if not self._used and cells.shape[1] - at >= self._cells:  # straight from where they lie
                self._flush(slot, layer, cells[:, at : at + self._cells])
                at += self._cells
                continue
            part = cells[:, at : at + self._cells - self._used]
            self._chunk[:, self._used : self._used + part.shape[1]] = part
            self._used += part.shape[1]
            at += part.shape[1]
            if self._used == self._cells:
                self._flush(slot, layer, self._chunk)

    def _flush(self, slot: int, layer: int, chunk: Cells) -> None:
        for head, cells in enumerate(chunk):
            if self.appending is not None:
                self.appending.keep(layer, head, self._compress(cells))
            elif self._pool is None:
                self._made[slot, layer][head].append(self._compressed(cells))
            else:
                future = self._pool.submit(self._compressed, cells)
                self._made[slot, layer][head].append(future)
                self._underway.append(future)
        if self._pool is not None and chunk is self._chunk:  # which is being read
            self._chunk = np.empty_like(self._chunk)
        self._used = 0

    def _compressed(self, cells: Shaped[np.ndarray, "cell"]) -> Chunk:
        return self._kept.keep(self._compress(cells))

    def nonfinite(self, slot: int) -> NonFinite | None:
        return self._unfit.get(slot)

    def files(self) -> list[Iterator[Chunk | None]]:
        """Returns, for each file of the array's shard, its chunks in order; None for those that are left out."""
        layers, at_once = len(self._spec.layers), self._layout.shard_shape(self._spec)[1]
        return [self._file(range(first, first + at_once)) for first in range(0, layers, at_once)]

    def _file(self, layers: range) -> Iterator[Chunk | None]:
        shard, chunk = self._layout.shard_shape(self._spec), self._layout.chunk_shape(self._spec)
        in_one = int(np.prod(shard[3:])) // int(np.prod(chunk[3:]))
        zeros = self._compress(np.zeros(self._cells, self._dtype))
        for slot in range(shard[0]):
            for layer in layers:
                there = slot < len(self._queries) and layer < len(self._spec.layers)
                empty = there and not self._queries[slot]
                made = self._made[slot, layer] if there and not empty else [[zeros] * empty] * shard[2]
                for own in made:
                    yield from (each.result() if isinstance(each, Future) else each for each in own)
                    yield from (None for _ in range(in_one - len(own)))


class WholeMatrices:
    """Matrices that stay in memory.

    Attributes:
        kept: Each example's, (layer, head, query, key), or (layer, head, cell) of a triangle.
    """

    def __init__(self, layout: RunLayout, spec: ArraySpec) -> None:
        self._layout, self._spec = layout, spec
        self.kept: list[Shaped[np.ndarray, "..."]] = []

    def begin(self, queries: Sequence[int], keys: Sequence[int]) -> None:
        lead, dtype = (len(self._spec.layers), len(self._spec.heads)), ON_DISK[self._layout.stored(self._spec)]
        triangle = self._layout.is_triangle(self._spec)
        shapes = [(n_cells(n),) if triangle else (n, m) for n, m in zip(queries, keys, strict=True)]
        self.kept = [np.zeros((*lead, *shape), dtype) for shape in shapes]

    def take(self, slot: int, layer: int, first: int, block: Rows) -> None:
        target, (_, rows, keys) = self.kept[slot][layer], block.shape
        if self._layout.is_triangle(self._spec):
            _fold(self._spec, layer, first, block, target[:, n_cells(first) : n_cells(first + rows)])
        else:
            target[:, first : first + rows, :keys] = block

    def take_cells(
        self, slot: int, layer: int, first: int, rows: int, cells: Cells, is_finite: bool, pool: Executor
    ) -> Sequence[Future[Chunk]]:
        self.kept[slot][layer][:, n_cells(first) : n_cells(first + rows)] = cells
        return ()

    def make(self, layer: int, batch: Batch) -> None:
        targets = [self.kept[slot][layer] for slot in batch.slots]
        make_whole(batch, targets, triangle=self._layout.is_triangle(self._spec))

    def nonfinite(self, slot: int) -> NonFinite | None:
        return first_nonfinite(self.kept[slot], self._layout.stored(self._spec))


def _fold(spec: ArraySpec, layer: int, first: int, block: Rows, cells: Cells) -> None:
    if not fold(block, first, cells):
        refuse_ahead(spec, spec.layers[layer])


def refuse_ahead(spec: ArraySpec, layer: int) -> NoReturn:
    """Refuses a pattern in which a query looks at a later key after all."""
    raise Unsupported(
        f"layer {layer} of {spec.key} looks at a later token",
        why="in the text that was tried first it did not, so only what lies before each token was to be stored",
        hint="record attn_scores, or q and k, which have no such form",
    )
