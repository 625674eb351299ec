"""Reads the matrices of a run's files, chunk by chunk.

1. The index that ends a file says where each chunk lies; it is read once, and again when the file is another.
2. The chunks of one layer that are asked for lie together, and are read together. Each is held against its crc32c.
3. They are decompressed into one array, and packed triangles unfolded into squares.

tensorstore reads the same files, at less than half the speed, and a process that reads nothing else need not load it.
"""

import os
from pathlib import Path

import google_crc32c
import numpy as np

from traceformer.shapes import Integer, Shaped
from traceformer.sites import ArraySpec
from traceformer.store.codecs import Chunk, decompress
from traceformer.store.dtypes import ON_DISK
from traceformer.store.layout import RunLayout
from traceformer.store.marks import Identity, identity
from traceformer.store.source import Lead
from traceformer.store.triangles import n_cells, unfold

__all__ = ["MatrixFiles"]

_INDEXES = 16  # that are kept, of files read last
_CRC_BYTES = 4


class MatrixFiles:
    """The files of a run's matrices. Whoever reads has looked whether they are those that were written."""

    def __init__(self, root: Path, layout: RunLayout) -> None:
        self._root, self._layout = root, layout
        self._indexes: dict[str, tuple[Identity | None, Integer[np.ndarray, "slot layer head chunk 2"]]] = {}

    def read(
        self, spec: ArraySpec, shard: int, slot: int, lead: Lead, queries: range, keys: int
    ) -> Shaped[np.ndarray, "*lead query key"]:
        """Returns rows of an example's matrices as they are stored.

        Args:
            spec: The array.
            shard: The example's shard.
            slot: The example's place there.
            lead: Which layers and heads.
            queries: Which rows.
            keys: How many keys a row has.

        Raises:
            ValueError, OSError: a file is not as it was written.
        """
        layout, files = self._layout, self._layout.shard_files(spec, shard)
        layers, heads = (np.arange(len(own))[at] for own, at in zip((spec.layers, spec.heads), lead, strict=True))
        width = 0 if layout.is_triangle(spec) else layout.max_tokens[spec.key.key_stack]
        first, stop = (query * width if width else n_cells(query) for query in (queries.start, queries.stop))
        chunk, in_file = int(np.prod(layout.chunk_shape(spec)[3:])), layout.shard_shape(spec)[1]
        parts = range(first // chunk, -(-stop // chunk))
        cells = np.empty((layers.size, heads.size * len(parts), chunk), ON_DISK[layout.stored(spec)])
        for own, layer in zip(cells, layers.reshape(-1).tolist(), strict=True):
            index = self._index(spec, files[layer // in_file])
            places = index[slot, layer % in_file, heads.reshape(-1), parts.start : parts.stop].reshape(-1, 2)
            self._fill(spec, files[layer // in_file], places, own)
        cells = cells.reshape(*layers.shape, *heads.shape, len(parts) * chunk)
        cells = cells[..., first - parts.start * chunk : stop - parts.start * chunk]
        if width:
            return cells.reshape(*cells.shape[:-1], len(queries), width)[..., :keys]
        return unfold(cells, queries.start, len(queries), keys)

    def _fill(
        self,
        spec: ArraySpec,
        name: str,
        places: Integer[np.ndarray, "chunk 2"],
        cells: Shaped[np.ndarray, "chunk cell"],
    ) -> None:
        """Decompresses the chunks at these places of a file."""
        if not len(places):
            return
        codec = self._layout.codec_of(spec)
        ends = places.sum(axis=1)
        start, together = int(places[0, 0]), bool((places[1:, 0] == ends[:-1]).all())
        file = os.open(self._root / name, os.O_RDONLY)
        try:
            data = os.pread(file, int(ends[-1]) - start, start) if together else b""
            for (at, size), own in zip(places.tolist(), cells, strict=True):
                part = np.frombuffer(data, np.uint8, size, at - start) if together else _pread(file, size, at)
                decompress(codec, _intact(part), own)
        finally:
            os.close(file)

    def _index(self, spec: ArraySpec, name: str) -> Integer[np.ndarray, "slot layer head chunk 2"]:
        """Returns where the chunks of a file lie: for each its first byte and how many there are.

        Raises:
            ValueError: it is damaged.
        """
        path = self._root / name
        now = identity(path)
        known, index = self._indexes.get(name, (None, None))
        if index is None or known != now:
            size, layout = self._layout.index_bytes(spec), self._layout
            with path.open("rb") as file:
                file.seek(-size, os.SEEK_END)
                table = _intact(np.frombuffer(file.read(), np.uint8)).view("<u8").astype(np.int64)
            shard, chunk = layout.shard_shape(spec), layout.chunk_shape(spec)
            index = table.reshape(*shard[:3], int(np.prod(shard[3:])) // int(np.prod(chunk[3:])), 2)
            while len(self._indexes) >= _INDEXES:
                del self._indexes[next(iter(self._indexes))]
            self._indexes[name] = now, index
        return index


def _pread(file: int, size: int, at: int) -> Chunk:
    return np.frombuffer(os.pread(file, size, at), np.uint8, size)


def _intact(data: Chunk) -> Chunk:
    """Returns stored bytes without the crc32c that ends them.

    Raises:
        ValueError: it is not theirs.
    """
    body = data[:-_CRC_BYTES]
    if google_crc32c.value(body) != int.from_bytes(data[-_CRC_BYTES:].tobytes(), "little"):
        raise ValueError("a chunk's crc32c is not that of its bytes")
    return body
