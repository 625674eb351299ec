"""A file's bytes, unpacked, from the beginning on: nothing of it is kept, neither in memory nor on a disk."""

import io
import lzma
import tarfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from traceformer.texts.packed import PACKED

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["damage", "forward"]

_BLOCK = 1 << 18


def damage() -> tuple[type[Exception], ...]:
    """Returns what is raised where a file is not what its name says, or ends in the middle."""
    import pyarrow as pa

    return (EOFError, OSError, zlib.error, lzma.LZMAError, pa.ArrowException, tarfile.TarError)


def forward(path: Path) -> io.BufferedReader:
    """Returns a file's bytes, unpacked if its name says that it is packed; `seek` reads on, or begins anew."""
    end = ".gz" if path.suffix.lower() == ".tgz" else path.suffix.lower()
    return io.BufferedReader(_Forward(path, end), _BLOCK) if end in PACKED else path.open("rb")


class _Forward(io.RawIOBase):
    """What a packed file holds, read once."""

    def __init__(self, path: Path, end: str) -> None:
        self._path, self._end = path, end
        self._file: IO[bytes] | Any = PACKED[end](path)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        target: Any = memoryview(buffer).cast("B")
        found = self._file.read(len(target))
        target[: len(found)] = found
        self._position += len(found)
        return len(found)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end of a packed file is not known")
        wanted = offset + (self._position if whence == io.SEEK_CUR else 0)
        if wanted < self._position:
            self._file.close()
            self._file, self._position = PACKED[self._end](self._path), 0
        while self._position < wanted:
            passed = len(self._file.read(min(_BLOCK, wanted - self._position)))
            if not passed:
                break
            self._position += passed
        return self._position

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
