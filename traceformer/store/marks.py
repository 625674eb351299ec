"""A few bytes of each array file's own, compared when a reader first touches it: what sizes cannot tell apart.

The mark of a file in zarr's sharding format is the crc32c of its last chunk and that of its index. Both lie at the
file's end, which is read first anyway. Of arrays that are not compressed, all files of a size have the same index, and
the first chunks of all shards are the same where texts begin alike; the last ones, which come from other texts or
other sites, are not. Hashing a whole file is for `verify`.
"""

import os
import stat
from pathlib import Path
from typing import TypeAlias

from traceformer.errors import CorruptRun
from traceformer.store.files import Checksum
from traceformer.store.system import open_to_read, read_at

__all__ = ["Identity", "check_file", "identity", "marked"]

Identity: TypeAlias = tuple[int, int, int, int]
"""Device, inode, size and time of the last change of a file."""

_CRC_BYTES = 4


def marked(path: Path, written: Checksum, index_bytes: int) -> Checksum:
    """Returns the checksum of a file that ends with an index of `index_bytes`, and its mark."""
    with path.open("rb") as file:
        return written._replace(mark=_mark(file.fileno(), written.bytes, index_bytes))


def check_file(path: Path, expected: Checksum, index_bytes: int) -> None:
    """Looks whether the file is the one that was written, by size and mark (which format 1 has not).

    Raises:
        CorruptRun: it is missing, a folder, or another file.
    """
    if what := _difference(path, expected, index_bytes):
        raise CorruptRun(f"{path} {what}", hint="traceformer verify lists the damage")


def identity(path: Path | str) -> Identity | None:
    """Returns what a file is told by without being read; None if it is not there."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _difference(path: Path, expected: Checksum, index_bytes: int) -> str:
    try:
        file = open_to_read(path)
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except IsADirectoryError:
        return "is no file"
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            return "is no file"
        if found.st_size != expected.bytes:
            return f"has {found.st_size} bytes instead of {expected.bytes}"
        if expected.mark and _mark(file, found.st_size, index_bytes) != expected.mark:
            return "is another file than the one that was written there"
    finally:
        os.close(file)
    return ""


def _mark(file: int, size: int, index_bytes: int) -> str:
    ends = (size - index_bytes, size)
    return b"".join(read_at(file, _CRC_BYTES, end - _CRC_BYTES) for end in ends).hex()
