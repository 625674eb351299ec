"""Files of a run that several may write: who comes second cannot replace what the first has put there.

Two may be at work on one shard, as `leases` says, and their bytes need not be the same: another processor adds in
another order, and a response has the time of day in its row. The record of the shard lists checksums, so what it lists
must stay there.

1. A file is put only where none is: `If-None-Match: *` in a bucket, a link on disk.
2. If one is there with the same bytes, it is as good: most often somebody was killed after he had put it.
3. If its bytes differ, who puts asks whether the shard is still his: nobody has committed it, and his lease is the
   newest. If not, he has lost, and touches nothing. If so, what is there was left by somebody whose lease has run out,
   and it is replaced: in a bucket only if it still is what was looked at (`If-Match`), on disk while a lock is held.

So somebody who wakes up after his lease ran out finds the file of who took over, asks, and stops. What he had sent
before is refused, since it was to go where nothing was, or in place of what is no longer there. It would be taken only
if, between his question and his writing, another came, had the very bytes that he meant to replace, and committed
them: three with different bytes for one shard. Checksums would show it.
"""

import filecmp
import io
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Self, TypeAlias

from traceformer.store.durable import WriteGroup
from traceformer.store.files import Checksum, FileLock, checksum_of
from traceformer.store.objects.path import AnyPath, ObjectPath
from traceformer.store.system import link, replace

__all__ = ["CheckMine", "Group", "ObjectGroup", "keep_object", "place_once"]

CheckMine: TypeAlias = Callable[[], None]
"""Raises if what is to be replaced is not the caller's to replace any more."""

_PUTS_AT_A_TIME = 8


class ObjectGroup:
    """Objects that are put while the `with` block runs, several at a time, and are all there when it has ended.

    It has `WriteGroup`'s methods. What is there before is replaced as `keep_object` says; without a `check_mine` it
    stays as it is.
    """

    def __init__(self, check_mine: CheckMine | None = None) -> None:
        self._check_mine = check_mine
        self._pool = ThreadPoolExecutor(_PUTS_AT_A_TIME, thread_name_prefix="put")
        self._putting: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for future in self._putting:
                future.result()

    def make_folder(self, folder: AnyPath) -> None:
        """Does nothing: a bucket has no folders."""

    @contextmanager
    def open(self, path: AnyPath) -> Generator[IO[bytes]]:
        """Yields a file to write, which will be the object at `path`."""
        file = io.BytesIO()
        yield file
        self._put(path, file.getvalue())

    def write(self, path: AnyPath, data: bytes) -> Checksum:
        """Writes a small object, and returns its checksum."""
        self._put(path, data)
        return checksum_of(data, "sha256")

    def write_parts(self, path: AnyPath, parts: Iterable[memoryview]) -> Checksum:
        """Writes a large object from parts that lie anywhere in memory, and returns its checksum."""
        data = b"".join(parts)
        self._put(path, data)
        return checksum_of(data, "xxh3_128")

    def _put(self, path: AnyPath, data: bytes) -> None:
        assert isinstance(path, ObjectPath)
        if len(self._putting) >= _PUTS_AT_A_TIME:  # or all of a shard would lie in memory once more
            self._putting.popleft().result()
        self._putting.append(self._pool.submit(keep_object, path, data, self._check_mine))


Group: TypeAlias = WriteGroup | ObjectGroup
"""What files of a run are written with, on disk or in a bucket."""


def keep_object(path: ObjectPath, data: bytes, check_mine: CheckMine | None) -> None:
    """Writes an object where none is, or in place of one that was left there by somebody who has lost.

    Args:
        path: Where.
        data: Its bytes.
        check_mine: Raises if somebody else has what is written here; with None, what is there stays.
    """
    store = path.store
    while not store.put_if_absent(path.key, data):
        if check_mine is None:
            return
        seen = store.head(path.key)
        if seen is None:
            continue
        if seen.size == len(data) and store.find(path.key) == data:
            return
        check_mine()
        if store.replace(path.key, data, seen):
            return


def place_once(lock: Path, check_mine: CheckMine | None) -> Callable[[Path, Path], None]:
    """Returns what gives a file that was written whole its name on disk, as `keep_object` puts objects.

    A disk has no `If-Match`: between looking and replacing nobody else does either, while `lock` is held.
    """

    def place(temporary: Path, path: Path) -> None:
        try:
            link(temporary, path)
        except FileExistsError:
            if check_mine is None:
                return
            held = FileLock(lock)
            held.acquire(wait=True)
            try:
                if not filecmp.cmp(temporary, path, shallow=False):
                    check_mine()
                    replace(temporary, path)
            finally:
                held.release()

    return place
