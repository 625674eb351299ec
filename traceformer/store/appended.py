"""Files of matrices that are written while they are recorded: a long text's patterns are more than memory holds.

1. Where one text's matrices of an array may take more than 256 MiB, each of its files is begun with its first chunk,
   under a temporary name beside where it will lie.
2. Chunks are kept head by head until 64 MiB of them are there, or the layer ends. Then each head's go to the file
   together, so that what is read together lies together: a layer that fits into 64 MiB lies there as it would if it
   had been kept to the end.
3. The index is written when the file's last layer ends, the file made durable, and named when its shard is committed.
   Whoever is killed before that leaves a temporary file, which the next one writes over.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from traceformer.sites import ArraySpec
from traceformer.store.codecs import Chunk
from traceformer.store.direct import BlockWriter
from traceformer.store.durable import WriteGroup, temporary_of
from traceformer.store.files import Checksum
from traceformer.store.layout import SHARD_BYTES, RunLayout
from traceformer.store.pages import Kept
from traceformer.store.shards import ABSENT, crc32c, index_of
from traceformer.store.system import sync

__all__ = ["Appending", "Scratch", "is_appended"]

_HELD_BYTES = 64 << 20


class Scratch(NamedTuple):
    """Where files are begun, before it is known which shard's they are.

    Attributes:
        folder: The run's folder.
        name: What tells this buffer's files from another's.
        space: The block that writes go into; it turns a full disk into OutOfSpace.
    """

    folder: Path
    name: str
    space: Callable[[], AbstractContextManager[None]]

    def path(self, layout: RunLayout, spec: ArraySpec, number: int) -> Path:
        """Returns where file `number` of an array's shard is begun."""
        return temporary_of(self.folder / layout.array_path(spec.key) / f"begun.{self.name}.{number}")


def is_appended(layout: RunLayout, spec: ArraySpec) -> bool:
    """Returns whether the array's files are written while they are recorded."""
    size = math.prod(layout.stored_shape(spec)) * layout.itemsize(spec)
    return spec.site.is_matrix and layout.shard_examples == 1 and size > SHARD_BYTES


class Appending:
    """The files of one array's shard, which is one example: chunks are kept, layers end, and files are named."""

    def __init__(self, layout: RunLayout, spec: ArraySpec, scratch: Scratch) -> None:
        self._layout, self._spec, self._scratch = layout, spec, scratch
        shard, chunk = layout.shard_shape(spec), layout.chunk_shape(spec)
        self._in_file = shard[1]  # layers
        self._shape = (shard[1], shard[2], math.prod(shard[3:]) // math.prod(chunk[3:]))
        self._held: list[list[Chunk]] = [[] for _ in spec.heads]
        self._memory, self._size = Kept(), 0
        self._file: _Begun | None = None
        self._made: list[tuple[Path, Checksum]] = []

    def begin(self) -> None:
        """Forgets what was kept before."""
        self.close()
        self._made.clear()
        self._forget_held()

    def keep(self, layer: int, head: int, chunk: Chunk) -> None:
        """Takes the next chunk of a head of a layer; both count the stored ones."""
        self._held[head].append(self._memory.keep(chunk))
        self._size += chunk.size
        if self._size >= _HELD_BYTES:
            self._append(layer)

    def end(self, layer: int) -> None:
        """Says that a layer is whole."""
        self._append(layer)
        is_last = layer == len(self._spec.layers) - 1 or layer % self._in_file == self._in_file - 1
        if self._file is not None and is_last:
            with self._scratch.space():
                self._made.append((self._file.path, self._file.finish()))
            self._file = None

    def _append(self, layer: int) -> None:
        with self._scratch.space():
            if self._file is None:
                number = layer // self._in_file
                self._file = _Begun(self._scratch.path(self._layout, self._spec, number), self._shape)
            for head, chunks in enumerate(self._held):
                self._file.append(layer % self._in_file, head, chunks)
        self._forget_held()

    def _forget_held(self) -> None:
        for chunks in self._held:
            chunks.clear()
        self._memory.clear()
        self._size = 0

    def name(self, group: WriteGroup, paths: Sequence[Path]) -> list[Checksum] | None:
        """Has the files take their names with the others of a group, and returns their checksums and marks."""
        if not self._made:
            return None
        for path, (begun, _) in zip(paths, self._made, strict=True):
            group.adopt(path, begun)
        found = [checksum for _, checksum in self._made]
        self._made.clear()
        return found

    def close(self) -> None:
        """Closes and removes what was begun and never named."""
        if self._file is not None:
            self._file.close()
            self._file.path.unlink(missing_ok=True)
            self._file = None
        for path, _ in self._made:
            path.unlink(missing_ok=True)


class _Begun:
    """One file that is being written: chunk by chunk, then the index."""

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        import xxhash

        self.path = path
        self._places = np.full((*shape, 2), ABSENT, "<u8")
        self._counts = np.zeros(shape[:2], np.int64)
        self._digest = xxhash.xxh3_128()
        self._size, self._last = 0, b""
        with ExitStack() as undo:
            self._file: IO[bytes] = undo.enter_context(path.open("wb"))
            self._blocks = undo.enter_context(BlockWriter(self._file.fileno()))
            self._undo = undo.pop_all()

    def append(self, layer: int, head: int, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            self._places[layer, head, self._counts[layer, head]] = self._size, chunk.nbytes + 4
            self._counts[layer, head] += 1
            self._last = crc32c(chunk)
            self._write(chunk.data)
            self._write(memoryview(self._last))

    def finish(self) -> Checksum:
        """Returns the file's checksum and mark, once it is durable."""
        table = index_of(self._places)
        self._write(memoryview(table))
        self._blocks.__exit__(None)
        sync(self._file.fileno())
        self._undo.pop_all()
        self._file.close()
        mark = (self._last + table[-4:]).hex()
        return Checksum(self._size, "xxh3_128", self._digest.hexdigest(), mark)

    def close(self) -> None:
        """Closes a file that nobody will read."""
        self._blocks.__exit__(GeneratorExit)  # without flushing it
        self._undo.pop_all()
        self._file.close()

    def _write(self, data: memoryview) -> None:
        self._blocks.write(data)
        self._digest.update(data)
        self._size += len(data)
