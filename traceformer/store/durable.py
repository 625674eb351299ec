"""Files that become durable together, so that the disk is waited for once a step and not once a file.

1. Inside the `with` block each file is written whole, under a temporary name.
2. At its end all of them are made durable; then they take their names; then the folders that list them are made
   durable, each once.

So nothing has its name before everything has its bytes, and once the block has ended all of it would survive a crash.
What a killed process leaves has temporary names, and the next one that writes the same file writes over it.
"""

import threading
from collections.abc import Callable, Collection, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self

from traceformer.store.direct import BlockWriter
from traceformer.store.files import TEMPORARY, Checksum, sha256
from traceformer.store.objects.path import AnyPath
from traceformer.store.system import replace, sync, sync_folder

__all__ = ["WriteGroup", "temporary_of"]

_MOST_OPEN = 64  # of the 256 files that some systems let a process have open
_SYNCS_AT_A_TIME = 8  # which the disk does together: 60 files took 39 to 58 ms, one after the other 136


def temporary_of(path: Path, attempt: str = "") -> Path:
    """Returns the name under which a group writes a file: one process at a time may write it, or each its attempt."""
    return path.with_name(f".{path.name}{f'.{attempt}' if attempt else ''}{TEMPORARY}")


class WriteGroup:
    """Files that are written in a `with` block, from one or more threads, and durable when it has ended.

    If it ends with an error none of them is there, unless it struck while they took their names.
    """

    def __init__(self, *, attempt: str = "", place: Callable[[Path, Path], None] | None = None) -> None:
        """Begins a group; with `attempt`, a name, others may write the same files, and `place` gives them theirs."""
        self._attempt = attempt
        self._place = place
        self._paths: list[Path] = []
        self._folders: set[Path] = set()
        # Files stay open until they are durable: one that is opened again might not be told of a failed write.
        self._open: list[IO[bytes]] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            for file in self._open:
                file.close()
            for path in self._paths:
                self._temporary(path).unlink(missing_ok=True)

    def make_folder(self, folder: AnyPath) -> None:
        """Makes a folder, if it is not there; that it is there will survive a crash, too."""
        assert isinstance(folder, Path)
        folder.mkdir(parents=True, exist_ok=True)
        self._folders.add(folder.parent)

    @contextmanager
    def open(self, path: AnyPath) -> Generator[IO[bytes]]:
        """Yields a file to write, which will be at `path`."""
        assert isinstance(path, Path)
        self._paths.append(path)
        file = self._temporary(path).open("wb")
        try:
            yield file
            file.flush()
        except BaseException:
            file.close()
            raise
        with self._lock:
            self._open.append(file)
            if len(self._open) >= _MOST_OPEN:
                self._sync()

    def adopt(self, path: AnyPath, begun: Path) -> None:
        """Takes a file of the same folder, durable already, which will be at `path`."""
        assert isinstance(path, Path)
        self._paths.append(path)
        replace(begun, self._temporary(path))

    def write(self, path: AnyPath, data: bytes) -> Checksum:
        """Writes a small file, and returns its checksum."""
        with self.open(path) as file:
            file.write(data)
        return Checksum(len(data), "sha256", sha256(data))

    def write_parts(self, path: AnyPath, parts: Iterable[memoryview]) -> Checksum:
        """Writes a large file from parts that lie anywhere in memory, and returns its checksum."""
        import xxhash

        digest, size = xxhash.xxh3_128(), 0
        with self.open(path) as file, BlockWriter(file.fileno()) as blocks:
            for part in parts:
                blocks.write(part)
                digest.update(part)
                size += len(part)
        return Checksum(size, "xxh3_128", digest.hexdigest())

    def write_filled(self, path: AnyPath, fill: Callable[[memoryview], int], last: bytes) -> Checksum:
        """Writes a large file, whose bytes `fill` writes until there are no more, and `last`; returns its checksum."""
        import xxhash

        digest, size = xxhash.xxh3_128(), len(last)
        with self.open(path) as file, BlockWriter(file.fileno()) as blocks:
            while written := blocks.fill(fill, digest.update):
                size += written
            blocks.write(memoryview(last))
            digest.update(last)
        return Checksum(size, "xxh3_128", digest.hexdigest())

    def _sync(self) -> None:
        _all_at_once(sync, [file.fileno() for file in self._open])
        for file in self._open:
            file.close()
        self._open.clear()

    def _finish(self) -> None:
        self._sync()
        for path in self._paths:
            (self._place or replace)(self._temporary(path), path)
        _all_at_once(sync_folder, {path.parent for path in self._paths} | self._folders)
        if not self._attempt:
            self._paths.clear()

    def _temporary(self, path: Path) -> Path:
        return temporary_of(path, self._attempt)


def _all_at_once(call: Callable[[Any], None], these: Collection[Any]) -> None:
    with ThreadPoolExecutor(_SYNCS_AT_A_TIME, thread_name_prefix="sync") as pool:
        list(pool.map(call, these))
