"""WebDataset's archives: `KEY.txt` and `KEY.json`, side by side, are one record.

1. Members are read in their order, each once. Those that share a key follow each other: a key is a member's path up to
   the first dot of its last part. Folders, and names that begin with a dot, are passed over.
2. `KEY.txt` is the record's `text`; the values of `KEY.json`, an object, are its other columns, and hold the text where
   there is no `KEY.txt`. The key is in `__key__`.
3. An archive ends with two blocks of zeros. One that does not was cut off, though tarfile may take it for whole.
"""

import tarfile
from collections.abc import Iterator, Mapping
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NamedTuple

from traceformer.errors import Unreadable
from traceformer.plain_json import parse_json
from traceformer.texts.examples import Row
from traceformer.texts.streams.forward import damage, forward
from traceformer.texts.streams.parts import Found, cannot_be_read

__all__ = ["TarFile"]

_END = 1024  # bytes of zeros
_BLOCK = 1 << 16
_KINDS = (".txt", ".json")


class _Record(NamedTuple):
    """A record's key, and what its members hold, by kind."""

    key: str
    members: Mapping[str, bytes]


class TarFile:
    """An archive, packed or not, as a part of a stream."""

    has_every_field = False
    restarts = True

    def __init__(self, path: Path) -> None:
        self.name, self.label, self.size = path.name, str(path), path.stat().st_size
        self._path = path

    def read(self, start: int) -> Iterator[Found]:
        number = 0
        try:
            with forward(self._path) as stream:
                ending = _Ending(stream)
                with tarfile.open(fileobj=ending, mode="r|") as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
                    for record in self._records(archive, start):
                        if number >= start:
                            where = f"record {number} ({record.key})"
                            yield Found(_row(record, f"{self._path}, {where}"), where)
                        number += 1
                ending.check()
        except damage() as error:
            if isinstance(error, FileNotFoundError | PermissionError):
                raise
            raise cannot_be_read(f"{self._path}, from record {number} on", error) from error

    def _records(self, archive: tarfile.TarFile, start: int) -> Iterator[_Record]:
        """Yields all records; the members of those before `start` are not looked into."""
        key, members, number = "", dict[str, bytes](), 0
        for member in archive:
            archive.members = []  # pyright: ignore[reportAttributeAccessIssue] - all of them would come to be there
            folder, _, base = member.name.rpartition("/")
            if not member.isfile() or base.startswith("."):
                continue
            stem, _, end = base.partition(".")
            own = f"{folder}/{stem}" if folder else stem
            if members and own != key:
                yield _Record(key, members)
                members, number = {}, number + 1
            key, kind = own, f".{end.lower()}"
            where = f"{self._path}, record {number} ({member.name})"
            if kind not in _KINDS:
                raise Unreadable(f"{where}: no text", why="a record is KEY.txt, KEY.json or both")
            if kind in members:
                raise Unreadable(f"{where}: a second member of this name")
            content = archive.extractfile(member)
            members[kind] = content.read() if content is not None and number >= start else b""
        if members:
            yield _Record(key, members)


def _row(record: _Record, where: str) -> Row:
    text, told = record.members.get(".txt"), record.members.get(".json")
    row: Any = {}
    if told is not None:
        try:
            row = parse_json(told)
        except ValueError as error:
            raise Unreadable(f"{where}: its .json is not JSON", why=str(error)) from None
        if not isinstance(row, dict):
            raise Unreadable(f"{where}: its .json is no object with named values")
    if text is not None:
        try:
            decoded = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise Unreadable(f"{where}: its .txt is not UTF-8", why=str(error)) from None
        if row.setdefault("text", decoded) != decoded:
            raise Unreadable(f"{where}: its .txt is another text than its .json has")
    return {"__key__": record.key, **row}


class _Ending:
    """What tarfile reads, of which the last bytes are remembered."""

    def __init__(self, stream: BufferedIOBase) -> None:
        self._stream = stream
        self._last = b""

    def read(self, size: int) -> bytes:
        block = self._stream.read(size)
        self._last = (self._last + block)[-_END:]
        return block

    def check(self) -> None:
        """Reads what is left.

        Raises:
            EOFError: the end is missing.
        """
        while self.read(_BLOCK):
            pass
        if self._last != bytes(_END):
            raise EOFError("the archive has no end: it was cut off")
