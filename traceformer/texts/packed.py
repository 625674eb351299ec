"""Files, compressed or not, as bytes that can be read from any place.

A compressed file is unpacked as far as it is read. What was unpacked lies in a temporary file that has no name, so that
a row can be read again, and is gone with the last reader.
"""

import bz2
import gzip
import io
import lzma
import tempfile
import threading
import zlib
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from io import BufferedIOBase
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from traceformer.errors import OutOfSpace, Unreadable

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["PACKED", "OpenBytes", "is_packed", "opener", "unpacked_name"]

OpenBytes: TypeAlias = Callable[[], BufferedIOBase]

_BLOCK = 1 << 18


def _open_zstd(path: Path) -> Any:
    import pyarrow as pa

    return pa.input_stream(str(path), compression="zstd")


PACKED: Mapping[str, Callable[[Path], Any]] = {
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _open_zstd,
}
"""How a compressed file is opened, by the end of its name."""


def is_packed(path: Path) -> bool:
    """Returns whether a file's name says that it is compressed."""
    return path.suffix.lower() in PACKED


def unpacked_name(path: Path) -> Path:
    """Returns the path that a file would have if it were not compressed: `a.jsonl` of `a.jsonl.gz`."""
    return path.with_suffix("") if is_packed(path) else path


def opener(path: Path) -> OpenBytes:
    """Returns a function that opens the file's bytes, unpacked, at their beginning, as often as it is called."""
    return _Unpacked(path).open if is_packed(path) else partial(path.open, "rb")


class _Unpacked:
    """A compressed file's contents, as far as they were asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._kept: IO[bytes] | None = None
        self._rest: Any = None
        self._size = 0
        with self._damage_explained():
            self._rest = PACKED[path.suffix.lower()](path)

    def __del__(self) -> None:
        for file in (self._rest, self._kept):
            if file is not None:
                file.close()

    def open(self) -> BufferedIOBase:
        return io.BufferedReader(_View(self), _BLOCK)

    def read(self, position: int, count: int) -> bytes:
        """Returns up to `count` bytes from a place; less at the end only."""
        with self._lock:
            while self._rest is not None and self._size < position + count:
                self._unpack(self._rest)
            if self._kept is None:
                return b""
            self._kept.seek(position)
            return self._kept.read(count)

    def _unpack(self, rest: Any) -> None:
        with self._damage_explained():
            block = rest.read(_BLOCK)
        if not block:
            rest.close()
            self._rest = None
            return
        try:
            self._kept = self._kept or tempfile.TemporaryFile(prefix="traceformer-")  # noqa: SIM115
            self._kept.seek(self._size)
            self._kept.write(block)
            self._kept.flush()
        except OSError as error:
            raise OutOfSpace(
                f"no room to unpack {self._path}",
                why=f"{error.strerror or error}, in {tempfile.gettempdir()}",
                hint="set TMPDIR to a folder on a larger disk, or unpack the file yourself",
            ) from error
        self._size += len(block)

    @contextmanager
    def _damage_explained(self) -> Generator[None]:
        import pyarrow as pa

        try:
            yield
        except (EOFError, OSError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
            if isinstance(error, FileNotFoundError | PermissionError):
                raise
            raise Unreadable(
                f"{self._path} cannot be unpacked",
                why=str(error) or type(error).__name__,
                hint=f"it is damaged, or no {self._path.suffix} file",
            ) from error


class _View(io.RawIOBase):
    """One reader's place in a file that is being unpacked."""

    def __init__(self, unpacked: _Unpacked) -> None:
        self._unpacked = unpacked
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end of a compressed file is not known")
        self._position = offset + (self._position if whence == io.SEEK_CUR else 0)
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        target: Any = memoryview(buffer).cast("B")
        found = self._unpacked.read(self._position, len(target))
        target[: len(found)] = found
        self._position += len(found)
        return len(found)
