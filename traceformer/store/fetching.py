"""Chunks of a run's files in a bucket, in few requests and many at once.

1. The index that ends a file says where its chunks lie. It is asked for together with the crc32c that lies before it,
   by one request for the file's end, which also tells the file's size: whether it is the file that was written there,
   by size and mark, is known from these. It is kept, while there is room.
2. Chunks that lie together in a file are asked for together, up to 8 MiB; so are those between which few bytes lie.
3. All that one reader waits for is asked for at once. Each answer is held against the crc32c of its chunks, and handed
   on at once, so that no more is in memory than what is under way.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from traceformer.errors import CorruptRun, NotFound
from traceformer.shapes import Int64
from traceformer.store.chunks import Wanted, intact
from traceformer.store.codecs import Chunk
from traceformer.store.files import Checksum
from traceformer.store.forks import use_bucket_client
from traceformer.store.objects.at_once import at_once
from traceformer.store.objects.client import State
from traceformer.store.objects.path import ObjectPath

__all__ = ["BucketChunks"]

Take: TypeAlias = Callable[[int, Chunk], None]

_TOGETHER = 8 << 20  # bytes of one request
_GAP = 16 << 10  # bytes that are asked for along with what lies around them, rather than by one request more
_INDEX_BYTES = 64 << 20  # of indexes that are kept
_RECENT_BYTES = 32 << 20  # of chunks that are kept
_MOST_KEPT = 1 << 20  # bytes of an answer that is
_CRC_BYTES = 4


class _Answer(NamedTuple):
    """A stretch of a file, and the chunks in it: each one's place, its size, its number and who takes it."""

    name: str
    start: int
    stop: int
    chunks: list[tuple[int, int, int, Take]]


class BucketChunks:
    """The array files of a run in a bucket; `files` is what the commit records say of them."""

    def __init__(self, folder: ObjectPath, files: Mapping[str, Checksum]) -> None:
        self._folder, self._files = folder, files
        self._keeping = threading.Lock()
        self._asking: dict[str, threading.Lock] = {}
        self._indexes: OrderedDict[str, tuple[Int64[np.ndarray, "*grid 2"], State]] = OrderedDict()
        self._recent: OrderedDict[tuple[str, int], Chunk] = OrderedDict()
        self._index_bytes = self._recent_bytes = 0

    def fetch(self, wanted: Sequence[Wanted], *, keep: bool = False) -> None:
        """Hands over all chunks that are wanted; with `keep`, few of them are kept for who comes next.

        Raises:
            CorruptRun: a file is missing, or is another than the one that was written there.
            ValueError: a chunk is damaged.
            Unsupported: this process was forked from one that had asked a bucket.
        """
        if self._folder.scheme != "hf":  # which has another client
            use_bucket_client()  # before a lock that a thread of that process may have had
        names = dict.fromkeys(each.name for each in wanted)
        grids = {each.name: each.grid for each in wanted}
        indexes = dict(zip(names, at_once(lambda name: self._index(name, grids[name]), names), strict=True))
        answers = self._plan(wanted, {name: index for name, (index, _) in indexes.items()})
        for _ in at_once(lambda answer: self._ask(answer, indexes[answer.name][1], keep), answers):
            pass

    def _plan(self, wanted: Sequence[Wanted], indexes: Mapping[str, Int64[np.ndarray, "*grid 2"]]) -> Iterator[_Answer]:
        places: dict[str, list[tuple[int, int, int, Take]]] = {}
        for each in wanted:
            for number, (start, size) in enumerate(indexes[each.name][each.at].reshape(-1, 2).tolist()):
                if start < 0:  # what the index has for chunks that were left out
                    raise ValueError(f"{each.name} lacks a chunk")
                kept = self._kept(each.name, start)
                if kept is None:
                    places.setdefault(each.name, []).append((start, size, number, each.take))
                else:
                    each.take(number, kept)
        for name, chunks in places.items():
            chunks.sort(key=lambda chunk: chunk[:2])
            together: list[tuple[int, int, int, Take]] = []
            first = stop = 0
            for chunk in chunks:
                start, size, *_ = chunk
                if together and (start - stop > _GAP or start + size - first > _TOGETHER):
                    yield _Answer(name, first, stop, together)
                    together = []
                if not together:
                    first, stop = start, start
                together.append(chunk)
                stop = max(stop, start + size)
            yield _Answer(name, first, stop, together)

    def _ask(self, answer: _Answer, seen: State, keep: bool) -> None:
        name, first, stop, chunks = answer
        path = self._folder / name
        try:
            data = np.frombuffer(path.store.get_range(path.key, first, stop - first, seen=seen), np.uint8)
        except NotFound as error:
            raise _damage(path, "was replaced or removed while it was read") from error
        if len(data) != stop - first:
            raise _damage(path, f"ends after {first + len(data)} bytes")
        for start, size, number, take in chunks:
            chunk = intact(data[start - first : start - first + size])
            if keep and len(data) <= _MOST_KEPT:
                self._keep(name, start, chunk)
            take(number, chunk)

    def _kept(self, name: str, start: int) -> Chunk | None:
        with self._keeping:
            chunk = self._recent.get((name, start))
            if chunk is not None:
                self._recent.move_to_end((name, start))
            return chunk

    def _keep(self, name: str, start: int, chunk: Chunk) -> None:
        with self._keeping:
            if (name, start) not in self._recent:
                self._recent[name, start] = chunk
                self._recent_bytes += len(chunk)
            while self._recent_bytes > _RECENT_BYTES:
                self._recent_bytes -= len(self._recent.popitem(last=False)[1])

    def _index(self, name: str, grid: tuple[int, ...]) -> tuple[Int64[np.ndarray, "*grid 2"], State]:
        """Returns where the chunks of a file lie, first byte and size of each, and the state of the file."""
        with self._keeping:
            asking = self._asking.setdefault(name, threading.Lock())
        with asking:  # of several who want it one asks
            with self._keeping:
                if name in self._indexes:
                    self._indexes.move_to_end(name)
                    return self._indexes[name]
            found = self._asked_index(name, grid)
            with self._keeping:
                self._indexes[name] = found
                self._index_bytes += found[0].nbytes
                while self._index_bytes > _INDEX_BYTES and len(self._indexes) > 1:
                    self._index_bytes -= self._indexes.popitem(last=False)[1][0].nbytes
            return found

    def _asked_index(self, name: str, grid: tuple[int, ...]) -> tuple[Int64[np.ndarray, "*grid 2"], State]:
        expected, path = self._files[name], self._folder / name
        n_bytes = 16 * int(np.prod(grid)) + _CRC_BYTES
        try:
            end, state = path.store.get_end(path.key, n_bytes + _CRC_BYTES)
        except NotFound:
            raise _damage(path, "is missing") from None
        if state.size != expected.bytes:
            raise _damage(path, f"has {state.size} bytes instead of {expected.bytes}")
        mark = b"".join((end[:_CRC_BYTES], end[-_CRC_BYTES:])).hex()
        if expected.mark and mark != expected.mark:
            raise _damage(path, "is another file than the one that was written there")
        table = intact(np.frombuffer(end[-n_bytes:], np.uint8)).view("<u8").astype(np.int64)
        return table.reshape(*grid, 2), state


def _damage(path: ObjectPath, what: str) -> CorruptRun:
    return CorruptRun(f"{path} {what}", hint="traceformer verify lists the damage")
