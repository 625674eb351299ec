"""Writes a shard of an array straight from memory, in zarr's sharding format.

1. The chunks follow each other in the array's order: each is its bytes as they lie in memory, little endian, perhaps
   compressed, and the crc32c of that.
2. The index at the end holds the offset and the size of every chunk of the shard (2^64 - 1 twice for those that are
   left out), and its own crc32c.

tensorstore, which reads these files like its own, copies all of it twice when it writes them, through the operating
system's page cache: 0.28 core-seconds for 129 MB that this writes in 0.07. A core that writes is a core that the model
does not have.
"""

import itertools
import math
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import google_crc32c
import numpy as np

from traceformer.core import kernels
from traceformer.core.library import Core, core
from traceformer.shapes import Bool, Int64, Shaped
from traceformer.store.codecs import Chunk, compressor
from traceformer.store.durable import WriteGroup
from traceformer.store.files import Checksum
from traceformer.store.names import Codec, MatrixCodec
from traceformer.store.objects.path import AnyPath
from traceformer.store.placing import Group
from traceformer.store.system import processors

__all__ = [
    "ABSENT",
    "CutChunks",
    "compress",
    "crc32c",
    "framed",
    "index_of",
    "is_written_directly",
    "write_chunk",
    "write_shard",
]

ABSENT = (2**64 - 1, 2**64 - 1)
"""Offset and size of a chunk that is left out."""
_MOST_CORES = 8
_AT_ONCE = 256 << 10  # bytes that are framed, hashed and copied while they are in the processor's cache


def is_written_directly(codec: Codec | MatrixCodec) -> bool:
    """Returns whether `write_shard` can write arrays with this compression on this machine."""
    return codec != "lz4" and sys.byteorder == "little"


class CutChunks:
    """The chunks of a shard as they lie in memory, in order; None for those that the array does not reach."""

    def __init__(self, array: np.ndarray, axis: int, chunk: int, in_shard: int) -> None:
        """Cuts an array.

        Args:
            array: What the shard holds, whole chunks of it. Behind `axis` it lies in one piece of memory.
            axis: The axis along which there are several chunks for each index of those before it.
            chunk: How long a chunk is there.
            in_shard: How long the whole shard is there.
        """
        self._there, self._of = array.shape[axis] // chunk, in_shard // chunk
        self._lines = array.reshape(math.prod(array.shape[:axis]), -1).view(np.uint8)
        self._lines.flags.writeable = False

    def __iter__(self) -> Iterator[Chunk | None]:
        for line in self._lines:
            yield from line.reshape(self._there, -1)
            yield from itertools.repeat(None, self._of - self._there)

    def places(self) -> "_Places":
        """Returns where its chunks lie."""
        size = self._lines.shape[1] // self._there
        there = np.arange(self._of) < self._there
        lines = self._lines.ctypes.data + self._lines.strides[0] * np.arange(len(self._lines))[:, None]
        addresses = (lines + size * np.arange(self._there)).reshape(-1)
        return _Places(addresses, np.full(len(addresses), size), np.tile(there, len(self._lines)))


class _Places(NamedTuple):
    """Where the chunks of a shard lie: addresses and bytes of those that are there, and for each whether it is."""

    addresses: Int64[np.ndarray, "present"]
    sizes: Int64[np.ndarray, "present"]
    present: Bool[np.ndarray, "chunk"]

    @classmethod
    def of(cls, chunks: Sequence[Chunk | None]) -> "_Places":
        there = [chunk for chunk in chunks if chunk is not None]
        addresses = [chunk.__array_interface__["data"][0] for chunk in there]
        sizes, present = [chunk.nbytes for chunk in there], [chunk is not None for chunk in chunks]
        return cls(np.array(addresses, np.int64), np.array(sizes, np.int64), np.array(present, np.bool_))


def compress(chunks: Iterable[Chunk | None]) -> list[Chunk | None]:
    """Returns the chunks compressed with zstd, by all cores that the process may use (eight at most)."""
    zstd = compressor("zstd")
    with ThreadPoolExecutor(min(processors(), _MOST_CORES), thread_name_prefix="compress") as pool:
        return list(pool.map(lambda chunk: None if chunk is None else zstd(chunk), chunks))


def write_shard(group: Group, path: AnyPath, chunks: Iterable[Chunk | None]) -> Checksum:
    """Writes a shard's chunks to its file, and returns the file's checksum and mark (see `marks`)."""
    there = core()
    if there is not None and isinstance(group, WriteGroup):
        return _write_gathered(group, path, chunks, there)
    crcs: deque[bytes] = deque(maxlen=2)  # that of the last chunk and that of the index
    written = group.write_parts(path, _parts(chunks, crcs))
    return written._replace(mark=b"".join(crcs).hex())


def _write_gathered(group: WriteGroup, path: AnyPath, chunks: Iterable[Chunk | None], there: Core) -> Checksum:
    """Does the same without the interpreter's lock: chunks are copied, and summed up while they are in the cache."""
    kept = chunks if isinstance(chunks, CutChunks) else list(chunks)
    places = kept.places() if isinstance(kept, CutChunks) else _Places.of(kept)
    gathered = kernels.Gathered(there, places.addresses, places.sizes)
    table = np.empty((len(places.present), 2), "<u8")
    table[:] = ABSENT
    framed_sizes = places.sizes + 4
    table[places.present, 0] = np.cumsum(framed_sizes) - framed_sizes
    table[places.present, 1] = framed_sizes
    index = table.reshape(-1).view(np.uint8)
    crc = kernels.crc32c(there, index).to_bytes(4, "little")
    written = group.write_filled(path, gathered.write, index.tobytes() + crc)
    return written._replace(mark=(gathered.crcs[-1:].astype("<u4").tobytes() + crc).hex())


def write_chunk(group: Group, paths: Iterable[AnyPath], chunk: Chunk) -> None:
    """Writes the files of arrays without shards that all hold this one chunk, compressed with zstd."""
    parts = framed(compressor("zstd")(chunk))
    for path in paths:
        group.write_parts(path, parts)


def framed(chunk: Chunk) -> tuple[memoryview, memoryview]:
    """Returns a chunk as it is stored: its bytes, and their crc32c."""
    return chunk.data, memoryview(crc32c(chunk))


def _parts(chunks: Iterable[Chunk | None], crcs: deque[bytes]) -> Iterator[memoryview]:
    """Yields what the file consists of, in order, small chunks together, and appends each crc32c to `crcs`, too."""
    index: list[tuple[int, int]] = []
    together: list[memoryview | bytes] = []
    offset = gathered = 0
    for chunk in chunks:
        if chunk is None:
            index.append(ABSENT)
            continue
        crcs.append(crc32c(chunk))
        index.append((offset, chunk.nbytes + 4))
        offset += chunk.nbytes + 4
        if chunk.nbytes < _AT_ONCE:
            together += chunk.data, crcs[-1]
            gathered += chunk.nbytes + 4
        else:
            yield memoryview(b"".join(together))
            yield chunk.data
            together, gathered = [], 4
            together.append(crcs[-1])
        if gathered >= _AT_ONCE:
            yield memoryview(b"".join(together))
            together, gathered = [], 0
    table = index_of(np.array(index, "<u8").reshape(-1, 2))
    crcs.append(table[-4:])
    yield memoryview(b"".join((*together, table)))


def index_of(places: Shaped[np.ndarray, "*chunks 2"]) -> bytes:
    """Returns the index that ends a file: offset and size of each of its chunks, and the crc32c of these."""
    table = places.reshape(-1).view(np.uint8)
    return table.tobytes() + crc32c(table)


def crc32c(data: Chunk) -> bytes:
    """Returns the crc32c of some bytes, as it stands behind them."""
    if data.flags.writeable:  # the library takes nothing that could change under it
        data = data.view()
        data.flags.writeable = False
    return google_crc32c.value(data).to_bytes(4, "little")
