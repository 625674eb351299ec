"""The lines of a UTF-8 file, counted in lines and bytes while they are read."""

from io import BufferedIOBase
from pathlib import Path

from traceformer.errors import Unreadable

__all__ = ["Lines"]


class Lines:
    """Iterates over lines with their ends, which are LF or CRLF; a byte order mark at the start is dropped.

    `number` is that of the last line read, from 1, and `position` the byte after it.
    """

    def __init__(self, stream: BufferedIOBase, path: Path, position: int = 0, number: int = 0) -> None:
        self.path = path
        self.number = number
        self.position = position
        self._stream = stream

    def __iter__(self) -> "Lines":
        return self

    def __next__(self) -> str:
        raw = self._stream.readline()
        if not raw:
            raise StopIteration
        start = self.position
        self.number += 1
        self.position += len(raw)
        try:
            return raw.decode("utf-8-sig" if start == 0 else "utf-8")
        except UnicodeDecodeError as error:
            raise Unreadable(
                f"{self.path} is not UTF-8",
                why=f"line {self.number} holds 0x{error.object[error.start]:02x}, {error.start} bytes into the line "
                f"and {start + error.start} into the file",
                hint="save it as UTF-8, for instance with iconv -f latin1 -t utf-8",
            ) from None
