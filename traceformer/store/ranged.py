"""Arrays that are no matrices, as views (see `lazy`): `read` asks for the chunks of what was chosen.

They lie in a bucket, or in a folder: rows that are wanted as they are stored cost half as much as through tensorstore.

Layers that are another array's come from there, chunk by chunk: an axis of layers is made of planes, each a layer of
some array.
"""

import itertools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from traceformer.shapes import Int64, Shaped
from traceformer.sites import ArraySpec
from traceformer.store.aliases import Piece, planes_of
from traceformer.store.chunks import FolderChunks
from traceformer.store.codecs import Chunk, decompress
from traceformer.store.dtypes import ON_DISK
from traceformer.store.fetching import BucketChunks, Wanted
from traceformer.store.layout import RunLayout
from traceformer.store.lazy import LazyArray, Places

__all__ = ["example_array", "token_array"]

_READS = 16  # at a time; each asks for all of its chunks at once
_FEW_BYTES = 4 << 20  # of chunks that are read together; of more, none is kept for who comes next


class _Chunk(NamedTuple):
    """Where a chunk is: the file, that file's grid of chunks, and the place in the grid."""

    name: str
    grid: tuple[int, ...]
    at: tuple[int, ...]


_Along: TypeAlias = "slice | Int64[np.ndarray, 'place']"
"""Places of an axis: a slice where they follow each other."""


class _Stretch(NamedTuple):
    """What is chosen of one row of chunks along an axis: where it goes, and where it lies in the chunk."""

    chunk: int
    to: _Along
    inside: _Along


@dataclass(frozen=True, slots=True, eq=False)
class _Stored:
    """An array as it lies in files: the shape of its chunks, and where each is."""

    chunks: BucketChunks | FolderChunks
    chunk: tuple[int, ...]
    codec: str
    dtype: np.dtype[Any]
    find: Callable[[tuple[int, ...]], _Chunk]

    @property
    def pool(self) -> ThreadPoolExecutor:
        threads = (os.cpu_count() or 1) if isinstance(self.chunks, FolderChunks) else _READS
        return _pool(os.getpid(), threads)

    def fill(self, target: Shaped[np.ndarray, "..."], places: tuple[Places, ...]) -> None:
        wanted: list[Wanted] = []
        along = [_stretches(own, size) for own, size in zip(places, self.chunk, strict=True)]
        for parts in itertools.product(*along):
            found = self.find(tuple(part.chunk for part in parts))
            wanted.append(Wanted(found.name, found.grid, found.at, partial(self._take, target, parts)))
        few = sum(math.prod(self.chunk) for _ in wanted) * self.dtype.itemsize <= _FEW_BYTES
        self.chunks.fetch(wanted, keep=few)

    def _take(self, target: Shaped[np.ndarray, "..."], parts: tuple[_Stretch, ...], number: int, data: Chunk) -> None:
        del number  # there is one
        if self.codec == "none":
            chunk = data.view(self.dtype).reshape(self.chunk)
        else:
            chunk = np.empty(self.chunk, self.dtype)
            decompress(self.codec, data, chunk)  # pyright: ignore[reportArgumentType]
        target[_block(part.to for part in parts)] = chunk[_block(part.inside for part in parts)]


def _stretches(chosen: Places, size: int) -> list[_Stretch]:
    places = np.arange(chosen.start, chosen.stop, chosen.step) if isinstance(chosen, range) else np.asarray(chosen)
    numbers = places // size
    cuts = np.flatnonzero(np.diff(numbers)) + 1
    groups = np.split(np.arange(len(places)), cuts) if len(places) else []
    return [_Stretch(int(numbers[own[0]]), _along(own), _along(places[own] % size)) for own in groups]


def _along(places: Int64[np.ndarray, "place"]) -> _Along:
    first, last = int(places[0]), int(places[-1])
    follow = last - first == len(places) - 1 and (np.diff(places) == 1).all()
    return slice(first, last + 1) if follow else places


def _block(places: Iterable[_Along]) -> tuple[Any, ...]:
    """Returns an index of these places along each axis."""
    each = tuple(places)
    if all(isinstance(own, slice) for own in each):
        return each
    return np.ix_(*(np.arange(own.start, own.stop) if isinstance(own, slice) else own for own in each))


def token_array(
    chunks: BucketChunks | FolderChunks, layout: RunLayout, pieces: Sequence[Piece], slots: tuple[slice, ...]
) -> LazyArray:
    """Returns the token array ([layer,][head,] slot, d) that parts of kept arrays make up, along its layers."""
    planes, lead = planes_of(pieces)
    spec = planes[0].spec
    rows, width = layout.chunk_shape(spec)[-2:]
    n_slots = layout.shard_slots(spec.key.token_stack)
    per_shard, per_row = n_slots // rows, spec.width // width
    heads = (len(spec.heads),) * bool(spec.heads)

    def find(chunk: tuple[int, ...]) -> _Chunk:
        own, layer = planes[chunk[0]]
        shard, inside = divmod(chunk[-2], per_shard)
        grid = (*(() if layer is None else (len(own.layers),)), *heads, per_shard, per_row)
        at = (*(() if layer is None else (layer,)), *chunk[1:-2], inside, chunk[-1])
        return _Chunk(layout.shard_files(own, shard)[0], grid, at)

    shape = (len(planes), *heads, n_slots * layout.n_shards, spec.width)
    stored = _Stored(
        chunks, (1, *(1,) * len(heads), rows, width), layout.codec_of(spec), ON_DISK[layout.stored(spec)], find
    )
    return LazyArray.of(stored, shape, stored.dtype)[(*lead, *slots)]


def example_array(chunks: BucketChunks, layout: RunLayout, spec: ArraySpec) -> LazyArray:
    """Returns an array with one row per example, (example[, layer, head], d)."""
    shape, chunk = layout.array_shape(spec), layout.chunk_shape(spec)
    per_shard = layout.shard_examples // chunk[0]
    rest = (1,) * (len(shape) - 1)

    def find(at: tuple[int, ...]) -> _Chunk:
        shard, inside = divmod(at[0], per_shard)
        return _Chunk(layout.shard_files(spec, shard)[0], (per_shard, *rest), (inside, *at[1:]))

    stored = _Stored(chunks, chunk, layout.codec_of(spec), ON_DISK[layout.stored(spec)], find)
    return LazyArray.of(stored, shape, stored.dtype)


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads do not survive a fork: each process has its own."""
    del process
    return ThreadPoolExecutor(threads, thread_name_prefix="read")
