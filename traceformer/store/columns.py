"""One layer of a token array over all examples: as one matrix, in batches, or in shuffled batches.

A shard's tokens lie back to back and chunks hold 512 token slots of one layer and head, so nothing that was not
asked for is read. Reading runs a few pieces ahead of the caller, on tensorstore's threads.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from traceformer.shapes import Num
from traceformer.store.dtypes import decode
from traceformer.store.index import Spans
from traceformer.store.names import Stored
from traceformer.store.zarr3 import Array, read_into

if TYPE_CHECKING:
    from concurrent.futures import Future

    import tensorstore as ts

__all__ = ["Column", "batches", "cut_at_chunks", "gather", "in_pieces", "shuffled_batches"]

_AHEAD = 4
_PIECE_TOKENS = 8192
_WINDOW_TOKENS = 1 << 16


@dataclass(frozen=True, slots=True)
class Column:
    """One layer, and one head or all of them, of a token array.

    `view` is (slot, d), or (head, slot, d) which reads as (slot, head * d): heads in order, as `z` enters W_O.
    `chunk` is the number of slots that are read together, `dtype` what the rows are.
    """

    view: Array
    stored: Stored
    dtype: np.dtype[Any]
    spans: Spans
    chunk: int

    @property
    def width(self) -> int:
        return self.view.shape[-1] * (self.view.shape[0] if self.view.rank == 3 else 1)

    def pieces(self, most: int) -> list[tuple[int, int]]:
        """Returns the runs of slots (first, last + 1) that hold tokens, at most `most` long, cut at chunks."""
        return cut_at_chunks(self.spans, self.chunk, most)

    def read(self, pieces: Iterable[tuple[int, int]]) -> Generator[Num[np.ndarray, "token d"]]:
        """Yields the rows of each piece, in order, reading a few ahead."""
        ahead: deque[ts.Future[np.ndarray] | Future[np.ndarray]] = deque()
        for first, last in pieces:
            ahead.append(self.view[..., first:last, :].read())
            if len(ahead) > max(_AHEAD, _PIECE_TOKENS // (last - first)):
                yield self._rows(ahead.popleft().result())
        while ahead:
            yield self._rows(ahead.popleft().result())

    def _rows(self, array: np.ndarray) -> Num[np.ndarray, "token d"]:
        numbers = decode(array, self.stored)
        return numbers if numbers.ndim == 2 else numbers.transpose(1, 0, 2).reshape(numbers.shape[1], -1)


def cut_at_chunks(spans: Spans, chunk: int, most: int) -> list[tuple[int, int]]:
    """Returns the runs of places (first, last + 1) of spans, at most `most` long (or a chunk), cut at chunks."""
    step = max(chunk, most // chunk * chunk)
    found: list[tuple[int, int]] = []
    for start, count in zip(spans.starts.tolist(), spans.counts.tolist(), strict=True):
        found += [(first, min(first + step, start + count)) for first in range(start, start + count, step)]
    return found


def gather(column: Column, pieces: Sequence[tuple[int, int]] | None = None) -> Num[np.ndarray, "token d"]:
    """Returns all tokens' rows, in the data set's order, or those of some runs of slots, one behind the other."""
    count = len(column.spans) if pieces is None else sum(last - first for first, last in pieces)
    rows = np.empty((count, column.width), column.dtype)
    if column.view.rank == 2 and column.view.dtype.numpy_dtype == rows.dtype:
        start, writing = 0, []
        for first, last in column.pieces(_PIECE_TOKENS) if pieces is None else pieces:
            writing.append(read_into(column.view[first:last], rows[start : start + last - first]))
            start += last - first
        for future in writing:
            future.result()
        return rows
    start = 0
    for piece in column.read(column.pieces(_PIECE_TOKENS) if pieces is None else pieces):
        rows[start : start + len(piece)] = piece
        start += len(piece)
    return rows


def batches(column: Column, batch_tokens: int) -> Iterator[Num[np.ndarray, "token d"]]:
    """Yields all tokens' rows in the data set's order, `batch_tokens` at a time; the last batch may be shorter."""
    return _rebatch(column.read(column.pieces(_PIECE_TOKENS)), batch_tokens, column)


def in_pieces(column: Column) -> Iterator[Num[np.ndarray, "token d"]]:
    """Yields all tokens' rows in the data set's order, as they are read."""
    return (piece.astype(column.dtype, copy=False) for piece in column.read(column.pieces(_PIECE_TOKENS)))


def _rebatch(
    pieces: Iterable[Num[np.ndarray, "token d"]], batch_tokens: int, column: Column
) -> Iterator[Num[np.ndarray, "token d"]]:
    batch, filled = _empty(batch_tokens, column), 0
    for piece in pieces:
        taken = 0
        while taken < len(piece):
            count = min(len(piece) - taken, batch_tokens - filled)
            batch[filled : filled + count] = piece[taken : taken + count]
            taken, filled = taken + count, filled + count
            if filled == batch_tokens:
                yield batch
                batch, filled = _empty(batch_tokens, column), 0
    if filled:
        yield batch[:filled]


def shuffled_batches(column: Column, batch_tokens: int, seed: int) -> Iterator[Num[np.ndarray, "token d"]]:
    """Yields all tokens' rows once, in an order that depends on `seed` and the run only.

    1. The chunks of all shards are put in random order.
    2. They are read into a window of 65,536 tokens (four batches, if that is more), which is shuffled whenever it
       is full; its first half is handed out and filled again.

    So memory is one window and a few chunks, and a batch mixes tokens from about 128 places of the data set.
    """
    random = np.random.default_rng(seed)
    pieces = column.pieces(column.chunk)
    order = random.permutation(len(pieces))
    return _rebatch(_through_window(column, [pieces[i] for i in order], batch_tokens, random), batch_tokens, column)


def _through_window(
    column: Column, pieces: list[tuple[int, int]], batch_tokens: int, random: "np.random.Generator"
) -> Iterator[Num[np.ndarray, "token d"]]:
    size = max(_WINDOW_TOKENS, 4 * batch_tokens)
    window, filled = _empty(size + column.chunk, column), 0
    for piece in column.read(pieces):
        window[filled : filled + len(piece)] = piece
        filled += len(piece)
        if filled >= size:
            random.shuffle(window[:filled])
            half = filled // 2
            yield window[:half]
            window[: filled - half] = window[half:filled].copy()
            filled -= half
    random.shuffle(window[:filled])
    yield window[:filled]


def _empty(tokens: int, column: Column) -> Num[np.ndarray, "token d"]:
    return np.empty((tokens, column.width), column.dtype)
