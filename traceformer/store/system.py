"""What operating systems do differently, each behind one name: no other part of the store asks which one it runs on.

1. A lock on an open file, which ends with its process: `flock`, or on Windows a lock on the file's first byte.
2. What survives a loss of power: `fsync`; on macOS `F_FULLFSYNC`, since its `fsync` leaves bytes in the disk's own
   memory. Windows has no such call for folders: names are its file system's journal's.
3. Writes past the page cache: `O_DIRECT`, which Linux has.
4. Reading at a place of a file: `pread`, or on Windows seeking and then reading.
5. How many processors there are for this process, which not all systems tell.
6. Names: Windows neither renames nor removes what somebody has open, were it a search index for a moment; and some
   file systems have no hard links.

What is there is asked, not what the system is called, so that Linux without it goes the other ways as well.
"""

import errno
import os
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from traceformer.errors import Unsupported

__all__ = [
    "HAS_DIRECT_WRITES",
    "KEEPS_OPEN_FILES",
    "is_direct",
    "is_running",
    "link",
    "lock",
    "open_to_read",
    "patiently",
    "processors",
    "read_at",
    "rename",
    "replace",
    "set_direct",
    "sync",
    "sync_folder",
    "unlock",
]

T = TypeVar("T")

_fcntl: Any = import_module("fcntl") if find_spec("fcntl") else None
_msvcrt: Any = import_module("msvcrt") if find_spec("msvcrt") else None
_F_FULLFSYNC: int | None = getattr(_fcntl, "F_FULLFSYNC", None)  # macOS's
_O_DIRECT: int = getattr(os, "O_DIRECT", 0)  # Linux's
_O_BINARY: int = getattr(os, "O_BINARY", 0)  # Windows's, which else changes the ends of lines
_HELD = (errno.EACCES, errno.EDEADLK)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_PAUSE = 0.05
_TRIES = 100

HAS_DIRECT_WRITES = _fcntl is not None and _O_DIRECT != 0
"""Whether files can be written past the page cache."""
KEEPS_OPEN_FILES = _fcntl is None
"""Whether a file that is open, and a folder that holds one, keeps its name until it is closed, as on Windows."""


def lock(file: int, *, wait: bool) -> bool:
    """Returns whether this process has an open file locked now; with `wait` it does, once its holder lets go.

    Raises:
        Unsupported: this system has no locks.
    """
    if _fcntl is not None:
        try:
            _fcntl.flock(file, _fcntl.LOCK_EX | (0 if wait else _fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True
    if _msvcrt is None:
        raise Unsupported("runs cannot be written on this system", why="it has no locks: neither fcntl nor msvcrt")
    while not _has_locked_first_byte(file):
        if not wait:
            return False
        time.sleep(_PAUSE)
    return True


def _has_locked_first_byte(file: int) -> bool:
    os.lseek(file, 0, os.SEEK_SET)
    try:
        _msvcrt.locking(file, _msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno not in _HELD:
            raise
        return False
    return True


def unlock(file: int) -> None:
    """Gives a lock back before its file is closed, which for Windows's may be too late."""
    if _fcntl is None:
        os.lseek(file, 0, os.SEEK_SET)
        _msvcrt.locking(file, _msvcrt.LK_UNLCK, 1)


def is_running(process: int) -> bool:
    """Returns whether a process of this number may be there; where that cannot be asked, as on Windows, it may."""
    if _fcntl is None:
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def sync(file: int) -> None:
    """Makes the content of a file that is open for writing survive a loss of power."""
    if _F_FULLFSYNC is not None:
        try:
            _fcntl.fcntl(file, _F_FULLFSYNC)
        except OSError:  # file systems of other machines have none
            os.fsync(file)
    else:
        os.fsync(file)


def sync_folder(folder: Path) -> None:
    """Makes what was created, renamed or removed in a folder survive a loss of power; on Windows nothing can."""
    if _fcntl is None:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def is_direct(file: int) -> bool:
    """Returns whether what is written to an open file goes past the page cache."""
    return HAS_DIRECT_WRITES and bool(_fcntl.fcntl(file, _fcntl.F_GETFL) & _O_DIRECT)


def set_direct(file: int, direct: bool) -> None:
    """Has what is written to an open file go past the page cache, or through it, where there is that choice."""
    if not HAS_DIRECT_WRITES:
        return
    flags = _fcntl.fcntl(file, _fcntl.F_GETFL)
    try:
        _fcntl.fcntl(file, _fcntl.F_SETFL, flags | _O_DIRECT if direct else flags & ~_O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has no such writes
            raise


def open_to_read(path: Path | str) -> int:
    """Returns a descriptor of a file, whose bytes come as they are.

    Raises:
        FileNotFoundError, NotADirectoryError: there is none.
        IsADirectoryError: it is a folder, and the system opens none.
    """
    try:
        return os.open(path, os.O_RDONLY | _O_BINARY)
    except PermissionError:
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path)) from None
        raise


def _read_after_seeking(file: int, size: int, start: int, /) -> bytes:
    os.lseek(file, start, os.SEEK_SET)
    return os.read(file, size)


read_at: Callable[[int, int, int], bytes] = getattr(os, "pread", _read_after_seeking)
"""Returns so many bytes of an open file from a place on; no other thread may read by the same descriptor meanwhile."""


def processors() -> int:
    """Returns how many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def patiently(call: Callable[[], T]) -> T:
    """Returns what a call gives, tried again for five seconds where files that others have open are in its way."""
    for _ in range(_TRIES if KEEPS_OPEN_FILES else 0):
        try:
            return call()
        except PermissionError:
            time.sleep(_PAUSE)
    return call()


def rename(path: Path, to: Path) -> None:
    """Renames a file or a folder; nothing is at `to`."""
    patiently(lambda: path.rename(to))


def replace(path: Path, to: Path) -> None:
    """Renames a file, in place of what may be at `to`."""
    patiently(lambda: path.replace(to))


def link(path: Path, to: Path) -> None:
    """Gives a file a second name, or where the file system has no such a new one. Only its writer may name it so.

    Raises:
        FileExistsError: there is a file of that name.
    """
    try:
        os.link(path, to)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if to.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(to)) from None
        replace(path, to)
