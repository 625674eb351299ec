"""Memory of a recording's own, taken from the system once and used again.

What is kept from batch to batch must not lie between what a model takes and frees: each piece would hold a hole of the
heap open, and the heap would grow with every batch.
"""

import math
import mmap
import threading
from typing import Any

import numpy as np

from traceformer.shapes import Shaped
from traceformer.store.codecs import Chunk

__all__ = ["Kept", "zeros"]

_HUGE_PAGE = 2 << 20
_BLOCK_BYTES = 4 << 20


def zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Shaped[np.ndarray, "..."]:
    """Returns zeros in memory that comes in huge pages, where the system has them: the first touch is costly."""
    size = math.prod(shape) * dtype.itemsize
    if size < _HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.zeros(shape, dtype)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(shape)


class Kept:
    """Copies of chunks, one behind the other, in blocks that are used again after `clear`; several threads may keep."""

    def __init__(self) -> None:
        self._blocks: list[Chunk] = []
        self._block, self._used = 0, 0
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Forgets all chunks: what `keep` returned will be written over."""
        self._block, self._used = 0, 0

    def keep(self, chunk: Chunk) -> Chunk:
        """Returns a copy of a chunk."""
        with self._lock:
            kept = self._room(chunk.size)
        kept[:] = chunk
        return kept

    def _room(self, size: int) -> Chunk:
        while self._block < len(self._blocks) and self._used + size > self._blocks[self._block].size:
            self._block, self._used = self._block + 1, 0
        if self._block == len(self._blocks):
            self._blocks.append(zeros((max(_BLOCK_BYTES, size),), np.dtype(np.uint8)))
        kept = self._blocks[self._block][self._used : self._used + size]
        self._used += size
        return kept
