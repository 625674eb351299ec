"""Writes a large file past the operating system's page cache, where the file system allows it.

1. What is to be written is copied into one aligned block, right after it was read for its checksum.
2. A full block goes to the disk in one write. The last one is padded to a whole sector, and cut off after.

A recording is written once, by a machine whose cores the model needs. On a virtual machine, checksums included,
19 MB took 0.010 core-seconds this way, 0.015 through pages of the cache that had been in use before, and 0.085 through
pages that the machine first had to get from its host: a long recording asks for those all the time, while it drives
out of the cache what others had there.
"""

import errno
import mmap
import os
from collections.abc import Callable
from typing import Self

import numpy as np

from traceformer.store.system import is_direct, set_direct

__all__ = ["BlockWriter"]

_BLOCK_BYTES = 4 << 20
_AT_ONCE = 512 << 10
_SECTOR_BYTES = 4096  # a multiple of what any disk asks for
_blocks: list[mmap.mmap] = []  # to be used again: memory that was never touched costs a page fault per 4 kB


class BlockWriter:
    """Appends to an empty file that is open for writing; leaving the `with` block without an error flushes it."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._block = _blocks.pop() if _blocks else mmap.mmap(-1, _BLOCK_BYTES)
        self._bytes = np.frombuffer(self._block, np.uint8)  # numpy lets other threads run while it copies
        self._used = 0
        self._size = 0

    def __enter__(self) -> Self:
        set_direct(self._file, True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and self._used:
                padded = -(-self._used // _SECTOR_BYTES) * _SECTOR_BYTES
                self._flush(padded)
                os.ftruncate(self._file, self._size)
        finally:
            _blocks.append(self._block)

    def write(self, data: memoryview) -> None:
        """Appends bytes; nothing of `data` is kept."""
        while data:
            part = data[: _BLOCK_BYTES - self._used]
            self._bytes[self._used : self._used + len(part)] = np.frombuffer(part, np.uint8)
            self._used += len(part)
            self._size += len(part)
            data = data[len(part) :]
            if self._used == _BLOCK_BYTES:
                self._flush(_BLOCK_BYTES)

    def fill(self, fill: Callable[[memoryview], int], tell: Callable[[memoryview], object]) -> int:
        """Appends what is written into a piece of the block, and returns how many bytes that are; `tell` is shown them.

        The piece stays in the processor's cache until then.
        """
        with memoryview(self._block) as block:
            written = fill(block[self._used : min(self._used + _AT_ONCE, _BLOCK_BYTES)])
            tell(block[self._used : self._used + written])
        self._used += written
        self._size += written
        if self._used == _BLOCK_BYTES:
            self._flush(_BLOCK_BYTES)
        return written

    def _flush(self, size: int) -> None:
        with memoryview(self._block) as block:
            done = 0
            while done < size:
                try:
                    done += os.write(self._file, block[done:size])
                except OSError as error:
                    # Some file systems take the flag, and then no write: those go through the cache.
                    if error.errno != errno.EINVAL or not is_direct(self._file):
                        raise
                    set_direct(self._file, False)
        self._used = 0
