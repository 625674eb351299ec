"""The lines of a UTF-8 file, counted in lines and bytes while they are read, and the rows that they are."""

from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from traceformer.errors import Unreadable
from traceformer.plain_json import parse_json

__all__ = ["Lines", "read_jsonl", "read_txt"]


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


def read_txt(lines: Lines) -> Iterator[dict[str, Any]]:
    """Yields a row for each line."""
    for line in lines:
        yield {"text": line.removesuffix("\n").removesuffix("\r")}


def read_jsonl(lines: Lines) -> Iterator[dict[str, Any]]:
    """Yields the object of each line that is not blank.

    Raises:
        Unreadable: a line is none; names it.
    """
    for line in lines:
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise Unreadable(f"{lines.path}, line {lines.number}: not JSON", why=str(error)) from None
        if not isinstance(row, dict):
            found = type(row).__name__
            raise Unreadable(f"{lines.path}, line {lines.number}: a JSON {found}, not an object with named values")
        yield row
