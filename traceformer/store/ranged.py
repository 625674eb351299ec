"""Arrays in a bucket that are no matrices, as views: choosing a part of one reads nothing, `read` asks for its chunks.

They have that part of a tensorstore's interface that readers of runs use, so that these are the same for both. Layers
that are another array's come from there, chunk by chunk: an axis of layers is made of planes, each a layer of some
array.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np

from traceformer.shapes import Int64, Shaped
from traceformer.sites import ArraySpec
from traceformer.store.aliases import Piece
from traceformer.store.codecs import Chunk, decompress
from traceformer.store.dtypes import ON_DISK
from traceformer.store.fetching import BucketChunks, Wanted
from traceformer.store.layout import RunLayout

__all__ = ["RangedArray", "example_array", "token_array"]

Places: TypeAlias = "range | Int64[np.ndarray, 'place']"

_READS = 16  # at a time; each asks for all of its chunks at once
_FEW_BYTES = 4 << 20  # of chunks that are read together; of more, none is kept for who comes next


class _Chunk(NamedTuple):
    """Where a chunk is: the file, that file's grid of chunks, and the place in the grid."""

    name: str
    grid: tuple[int, ...]
    at: tuple[int, ...]


class _Stretch(NamedTuple):
    """What is chosen of one row of chunks along an axis: where it goes, and where it lies in the chunk."""

    chunk: int
    to: Int64[np.ndarray, "place"]
    inside: Int64[np.ndarray, "place"]


@dataclass(frozen=True, slots=True, eq=False)
class _Stored:
    """An array as it lies in files: the shape of its chunks, and where each of them is."""

    chunks: BucketChunks
    chunk: tuple[int, ...]
    codec: str
    dtype: np.dtype[Any]
    find: Callable[[tuple[int, ...]], _Chunk]


@dataclass(frozen=True, slots=True, eq=False)
class RangedArray:
    """A part of an array in a bucket.

    Attributes:
        shown: The axes that it has, of those on disk, in its order.
        numpy_dtype: What numbers are read as.
    """

    _stored: _Stored
    _places: tuple[Places, ...]
    shown: tuple[int, ...]
    numpy_dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(self._places[axis]) for axis in self.shown)

    @property
    def rank(self) -> int:
        return len(self.shown)

    @property
    def dtype(self) -> Self:
        """Itself, whose `numpy_dtype` it is: what a tensorstore's `dtype` is asked for."""
        return self

    @property
    def oindex(self) -> Self:
        """Itself: each axis is always indexed on its own."""
        return self

    def __getitem__(self, index: Any) -> "RangedArray":
        """Returns the part of it at an index: whole numbers, slices, places, and one `...`."""
        index = index if isinstance(index, tuple) else (index,)
        at = next((i for i, part in enumerate(index) if part is Ellipsis), None)
        if at is not None:
            index = (*index[:at], *(slice(None),) * (self.rank - len(index) + 1), *index[at + 1 :])
        places, shown = [*self._places], [*self.shown]
        for axis, part in zip(self.shown, index, strict=False):
            places[axis] = _chosen(places[axis], part)
            if isinstance(part, int | np.integer):
                shown.remove(axis)
        return replace(self, _places=tuple(places), shown=tuple(shown))

    def transpose(self, order: Sequence[int]) -> "RangedArray":
        return replace(self, shown=tuple(self.shown[axis] for axis in order))

    def astype(self, dtype: Any) -> "RangedArray":
        """Returns the same, read as another type that holds its numbers exactly."""
        return replace(self, numpy_dtype=np.dtype(dtype))

    def read(self) -> "Future[Shaped[np.ndarray, '...']]":
        """Returns what will be its numbers."""
        return _pool().submit(self._read)

    def read_into(self, target: Shaped[np.ndarray, "..."]) -> "Future[None]":
        """Returns what says when its numbers are in `target`, whose places are zeros where it has none on disk."""
        target[...] = 0
        return _pool().submit(self._fill, target)

    def _read(self) -> Shaped[np.ndarray, "..."]:
        target = np.zeros(self.shape, self.numpy_dtype)
        self._fill(target)
        return target

    def _fill(self, target: Shaped[np.ndarray, "..."]) -> None:
        stored = self._stored
        # As on disk: in the order of the axes there, those that are not shown with a length of 1.
        whole = target.transpose(np.argsort(self.shown)) if self.rank > 1 else target
        whole = whole[tuple(slice(None) if axis in self.shown else None for axis in range(len(self._places)))]
        wanted: list[Wanted] = []
        along = [_stretches(places, size) for places, size in zip(self._places, stored.chunk, strict=True)]
        for parts in itertools.product(*along):
            found = stored.find(tuple(part.chunk for part in parts))
            wanted.append(Wanted(found.name, found.grid, found.at, partial(self._take, whole, parts)))
        few = sum(math.prod(stored.chunk) for _ in wanted) * stored.dtype.itemsize <= _FEW_BYTES
        stored.chunks.fetch(wanted, keep=few)

    def _take(self, target: Shaped[np.ndarray, "..."], parts: tuple[_Stretch, ...], number: int, data: Chunk) -> None:
        del number  # there is one
        stored = self._stored
        if stored.codec == "none":
            chunk = data.view(stored.dtype).reshape(stored.chunk)
        else:
            chunk = np.empty(stored.chunk, stored.dtype)
            decompress(stored.codec, data, chunk)  # pyright: ignore[reportArgumentType]
        target[_block(part.to for part in parts)] = chunk[_block(part.inside for part in parts)]


def _chosen(places: Places, part: Any) -> Places:
    """Returns the places that a whole number, a slice, or several numbers choose."""
    if isinstance(part, int | np.integer):
        one = int(places[int(part)])
        return range(one, one + 1)
    if isinstance(places, range) and not isinstance(part, slice):
        return places.start + places.step * np.asarray(part)
    return places[part]


def _stretches(chosen: Places, size: int) -> list[_Stretch]:
    places = np.asarray(chosen)
    numbers = places // size
    cuts = np.flatnonzero(np.diff(numbers)) + 1
    groups = np.split(np.arange(len(places)), cuts) if len(places) else []
    return [_Stretch(int(numbers[own[0]]), own, places[own] % size) for own in groups]


def _block(places: Iterable[Int64[np.ndarray, "place"]]) -> tuple[Any, ...]:
    """Returns an index of these places along each axis: of slices where they follow each other."""
    each = [*places]
    if all(own[-1] - own[0] == len(own) - 1 and (np.diff(own) == 1).all() for own in each):
        return tuple(slice(int(own[0]), int(own[-1]) + 1) for own in each)
    return np.ix_(*each)


def token_array(
    chunks: BucketChunks, layout: RunLayout, pieces: Sequence[Piece], slots: tuple[slice, ...]
) -> RangedArray:
    """Returns the token array ([layer,][head,] slot, d) that parts of kept arrays make up, along its layers."""
    planes: list[tuple[ArraySpec, int | None]] = []  # an array, and which of its layers, if it has any
    shows_layers, rest = False, pieces[0].lead
    for spec, lead in pieces:
        first, *others = lead or (slice(None),)
        if spec.layers:
            assert first is not None  # that makes the axis of an array without one
            wanted = range(len(spec.layers))[first]
            planes += [(spec, layer) for layer in ([wanted] if isinstance(wanted, int) else wanted)]
            shows_layers, rest = not isinstance(wanted, int), tuple(others)
        else:
            planes.append((spec, None))
            shows_layers, rest = first is None, tuple(others) if first is None else lead
    spec = planes[0][0]
    rows, width = layout.chunk_shape(spec)[-2:]
    n_slots = layout.shard_slots(spec.key.token_stack)
    per_shard = n_slots // rows
    heads = (len(spec.heads),) * bool(spec.heads)

    def find(chunk: tuple[int, ...]) -> _Chunk:
        own, layer = planes[chunk[0]]
        shard, inside = divmod(chunk[-2], per_shard)
        grid = (*(() if layer is None else (len(own.layers),)), *heads, per_shard, 1)
        at = (*(() if layer is None else (layer,)), *chunk[1:-2], inside, 0)
        return _Chunk(layout.shard_files(own, shard)[0], grid, at)

    shape = (len(planes), *heads, n_slots * layout.n_shards, spec.width)
    stored = _Stored(
        chunks, (1, *(1,) * len(heads), rows, width), layout.codec_of(spec), ON_DISK[layout.stored(spec)], find
    )
    whole = RangedArray(stored, tuple(map(range, shape)), tuple(range(len(shape))), stored.dtype)
    return whole[(slice(None) if shows_layers else 0, *rest, *slots)]


def example_array(chunks: BucketChunks, layout: RunLayout, spec: ArraySpec) -> RangedArray:
    """Returns an array with one row per example, (example[, layer, head], d)."""
    shape, chunk = layout.array_shape(spec), layout.chunk_shape(spec)
    per_shard = layout.shard_examples // chunk[0]
    rest = (1,) * (len(shape) - 1)

    def find(at: tuple[int, ...]) -> _Chunk:
        shard, inside = divmod(at[0], per_shard)
        return _Chunk(layout.shard_files(spec, shard)[0], (per_shard, *rest), (inside, *at[1:]))

    stored = _Stored(chunks, chunk, layout.codec_of(spec), ON_DISK[layout.stored(spec)], find)
    return RangedArray(stored, tuple(map(range, shape)), tuple(range(len(shape))), stored.dtype)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_READS, thread_name_prefix="read")
