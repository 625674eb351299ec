"""Reads the chunks of a run's files: its matrices, and rows as they are stored.

1. The index that ends a file says where each chunk lies; it is read once, and again when the file is another.
2. Chunks that are asked for and lie behind each other are read together, up to 8 MiB of them. Each is held against
   its crc32c.
3. They are decompressed into one array, and packed triangles unfolded into squares.

tensorstore reads the same files, at less than half the speed, and a process that reads nothing else need not load it.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import google_crc32c
import numpy as np

from traceformer.shapes import Integer, Shaped
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.codecs import Chunk, decompress
from traceformer.store.dtypes import ON_DISK
from traceformer.store.layout import RunLayout
from traceformer.store.marks import Identity, identity
from traceformer.store.names import Codec, MatrixCodec
from traceformer.store.source import Lead
from traceformer.store.system import open_to_read, read_at
from traceformer.store.triangles import n_cells, unfold

if TYPE_CHECKING:
    from traceformer.store.fetching import BucketChunks

__all__ = ["FolderChunks", "MatrixFiles", "Wanted", "intact", "stretches"]

_INDEXES = 16  # that are kept, of files read last
_CRC_BYTES = 4
_AT_ONCE = 8 << 20  # bytes that one call reads


class Wanted(NamedTuple):
    """Chunks of one file: `grid` is how many it has along each axis, `at` an index of that.

    `take` is given the number of each in the order of `at`, and its bytes without the crc32c; in any thread, in any
    order.
    """

    name: str
    grid: tuple[int, ...]
    at: tuple[int | slice, ...]
    take: Callable[[int, Chunk], None]


class _Cut(NamedTuple):
    """How an array's files are cut into chunks, worked out once.

    `width` is that of a row of a square, 0 for triangles; `chunk` how many cells one has; `shape` how many there are,
    (slot, layer, head, chunk).
    """

    width: int
    chunk: int
    shape: tuple[int, ...]
    codec: Codec | MatrixCodec
    dtype: np.dtype[Any]


class _Indexes:
    """Where the chunks of the files of a folder lie; threads may ask together.

    What is known is never changed, but put in place as a whole, without a lock: a process that is forked meanwhile
    would wait for it for ever.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._known: dict[str, tuple[Identity | None, Integer[np.ndarray, "*grid 2"]]] = {}

    def of(self, name: str, grid: tuple[int, ...]) -> Integer[np.ndarray, "*grid 2"]:
        """Returns for each chunk of a file its first byte and how many there are.

        Raises:
            ValueError: the index is damaged.
        """
        path = f"{self._root}/{name}"  # joining paths takes as long as reading one
        now = identity(path)
        known, index = self._known.get(name, (None, None))
        if index is None or known != now:
            with open(path, "rb") as file:
                file.seek(-(16 * math.prod(grid) + _CRC_BYTES), os.SEEK_END)
                table = intact(np.frombuffer(file.read(), np.uint8)).view("<u8").astype(np.int64)
            index = table.reshape(*grid, 2)
            self._known = {**dict([*self._known.items()][1 - _INDEXES :]), name: (now, index)}
        return index


class FolderChunks:
    """The array files of a run in a folder. Whoever reads has looked whether they are those that were written."""

    def __init__(self, folder: Path) -> None:
        self._root = str(folder)
        self._indexes = _Indexes(self._root)

    def fetch(self, wanted: Sequence[Wanted], *, keep: bool = False) -> None:
        """Hands over all chunks that are wanted, one after the other; the system keeps them for who comes next.

        Raises:
            ValueError, OSError: a file is not as it was written.
        """
        del keep
        of_files: dict[str, list[Wanted]] = {}
        for each in wanted:
            of_files.setdefault(each.name, []).append(each)
        for name, own in of_files.items():
            file = open_to_read(f"{self._root}/{name}")
            try:
                for each in own:
                    places = self._indexes.of(name, each.grid)[each.at].reshape(-1, 2)
                    for number, (start, size) in enumerate(places.tolist()):
                        if start < 0:  # what the index has for chunks that were left out
                            raise ValueError("a chunk was left out")
                        each.take(number, intact(np.frombuffer(read_at(file, size, start), np.uint8, size)))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            finally:
                os.close(file)


class MatrixFiles:
    """The files of a run's matrices, in a folder or in a bucket.

    Whoever reads from a folder has looked whether they are those that were written; `BucketChunks` looks itself.
    """

    def __init__(self, files: "Path | BucketChunks", layout: RunLayout) -> None:
        self._root, self._bucket = (str(files), None) if isinstance(files, Path) else ("", files)
        self._layout = layout
        self._cuts: dict[ArrayKey, _Cut] = {}
        self._indexes = _Indexes(self._root)

    def read(
        self, spec: ArraySpec, files: Sequence[str], slot: int, lead: Lead, queries: range, keys: int
    ) -> Shaped[np.ndarray, "*lead query key"]:
        """Returns rows of an example's matrices as they are stored.

        Args:
            spec: The array.
            files: Those of the example's shard.
            slot: The example's place in them.
            lead: Which layers and heads.
            queries: Which rows.
            keys: How many keys a row has.

        Raises:
            ValueError, OSError: a file is not as it was written.
        """
        cut, (of_layers, of_heads) = self._cut_of(spec), lead
        layers, heads = range(len(spec.layers))[of_layers], range(len(spec.heads))[of_heads]
        shape = tuple(len(own) for own in (layers, heads) if isinstance(own, range))
        width, chunk, in_file = cut.width, cut.chunk, cut.shape[1]
        first, stop = (query * width if width else n_cells(query) for query in (queries.start, queries.stop))
        parts = range(first // chunk, -(-stop // chunk))
        cells = np.empty((*shape, len(parts) * chunk), cut.dtype)
        several = [layers] if isinstance(layers, int) else layers
        wanted: list[Wanted] = []
        for layer, own in zip(several, cells.reshape(len(several), -1, chunk), strict=True):
            name, at = files[layer // in_file], (slot, layer % in_file, of_heads, slice(parts.start, parts.stop))
            if self._bucket is None:
                self._fill(cut, name, self._indexes.of(name, cut.shape)[at].reshape(-1, 2).tolist(), own)
            else:
                wanted.append(Wanted(name, cut.shape, at, partial(_decompress, cut.codec, own)))
        if self._bucket is not None:
            self._bucket.fetch(wanted)
        cells = cells[..., first - parts.start * chunk : stop - parts.start * chunk]
        if width:
            return cells.reshape(*cells.shape[:-1], len(queries), width)[..., :keys]
        return unfold(cells, queries.start, len(queries), keys)

    def _cut_of(self, spec: ArraySpec) -> _Cut:
        if spec.key not in self._cuts:
            layout, shard = self._layout, self._layout.shard_shape(spec)
            chunk = math.prod(layout.chunk_shape(spec)[3:])
            self._cuts[spec.key] = _Cut(
                width=0 if layout.is_triangle(spec) else layout.max_tokens[spec.key.key_stack],
                chunk=chunk,
                shape=(*shard[:3], math.prod(shard[3:]) // chunk),
                codec=layout.codec_of(spec),
                dtype=ON_DISK[layout.stored(spec)],
            )
        return self._cuts[spec.key]

    def _fill(
        self,
        cut: _Cut,
        name: str,
        places: list[list[int]],
        cells: Shaped[np.ndarray, "chunk cell"],
    ) -> None:
        """Decompresses the chunks at these places of a file."""
        if not places:
            return
        file = open_to_read(f"{self._root}/{name}")
        try:
            for several in stretches(places):
                start, stop = places[several.start][0], sum(places[several.stop - 1])
                data = read_at(file, stop - start, start)
                for number in several:
                    at, size = places[number]
                    part = np.frombuffer(data[at - start : at - start + size], np.uint8, size)
                    decompress(cut.codec, intact(part), cells[number])
        finally:
            os.close(file)


def _decompress(codec: Codec | MatrixCodec, cells: Shaped[np.ndarray, "chunk cell"], number: int, data: Chunk) -> None:
    decompress(codec, data, cells[number])


def stretches(places: Sequence[Sequence[int]]) -> Iterator[range]:
    """Yields which of these chunks are read together: consecutive ones that lie behind each other, some MiB of them.

    For each chunk `places` has its first byte and how many there are.
    """
    first, size = 0, 0
    for number, (at, length) in enumerate(places):
        behind = number > 0 and at == sum(places[number - 1])
        if number > first and (not behind or size + length > _AT_ONCE):
            yield range(first, number)
            first, size = number, 0
        size += length
    if places:
        yield range(first, len(places))


def intact(data: Chunk) -> Chunk:
    """Returns stored bytes without the crc32c that ends them.

    Raises:
        ValueError: it is not theirs.
    """
    body = data[:-_CRC_BYTES]
    if google_crc32c.value(body) != int.from_bytes(data[-_CRC_BYTES:].tobytes(), "little"):
        raise ValueError("a chunk's crc32c is not that of its bytes")
    return body
