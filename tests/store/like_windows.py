"""A process in which Linux behaves like Windows, as far as what the store asks of a system goes.

    python -m tests.store.like_windows FOLDER ...    # `tests.store.runs` in such a process

It is no Windows: that has its own file systems, and errors that nobody foresaw. What is taken away here, or made to
fail as it does there:

1. `fcntl`, `pread`, direct writes, huge pages, the set of processors, the C library's settings.
2. Locks are `msvcrt.locking`, made of locks on a byte that belong to an open file, as Windows's do.
3. A file that any process has open is neither removed nor renamed, nor is a folder that holds one.
4. A file is opened as text unless it is said that it is not; a folder is not opened at all.
5. What was opened for reading cannot be made durable. A folder takes the place of nothing.
"""

import errno
import os
import stat
import struct
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

O_BINARY = 1 << 30
_GONE = ("pread", "sched_getaffinity", "confstr", "confstr_names", "O_DIRECT")


def install() -> None:
    """Makes this process such a one, before anything of the package is imported."""
    import fcntl
    import mmap
    import shutil
    import subprocess  # which asks by msvcrt where it is

    assert subprocess
    sys.modules["msvcrt"] = msvcrt()
    sys.modules["fcntl"] = None  # type: ignore[assignment]
    _open, _fsync = os.open, os.fsync

    def opened(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        if sys._getframe(1).f_globals.get("__name__", "").startswith("traceformer"):
            assert flags & O_BINARY, f"{path} is opened as text"
        return _open(path, flags & ~O_BINARY, *more, **named)

    def synced(file: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(file).st_mode)
        if is_folder or fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        _fsync(file)

    def moving(call: Callable[..., None], *, replaces: bool) -> Callable[..., None]:
        def moved(source: Any, target: Any, **named: Any) -> None:
            if os.path.exists(target) and (not replaces or os.path.isdir(target)):
                raise FileExistsError(errno.EEXIST, "File exists", str(target))
            _refuse_if_open(source, target)
            call(source, target, **named)

        return moved

    def removing(call: Callable[..., None]) -> Callable[..., None]:
        def removed(path: Any, **named: Any) -> None:
            _refuse_if_open(path)
            call(path, **named)

        return removed

    os.open, os.fsync, os.O_BINARY = opened, synced, O_BINARY  # type: ignore[attr-defined]
    os.rename, os.replace = moving(os.rename, replaces=False), moving(os.replace, replaces=True)
    os.unlink, os.remove = removing(os.unlink), removing(os.remove)
    for name in _GONE:
        delattr(os, name)
    del mmap.MADV_HUGEPAGE
    shutil._use_fd_functions = False  # type: ignore[attr-defined]


def msvcrt() -> ModuleType:
    """Returns a module with Windows's locks of bytes."""
    import fcntl

    module: Any = ModuleType("msvcrt")
    module.__spec__ = ModuleSpec("msvcrt", None)
    module.LK_UNLCK, module.LK_LOCK, module.LK_NBLCK = 0, 1, 2

    def locking(file: int, mode: int, size: int) -> None:
        kind = fcntl.F_UNLCK if mode == module.LK_UNLCK else fcntl.F_WRLCK
        start = os.lseek(file, 0, os.SEEK_CUR)
        asked = struct.pack("hhqqi", kind, os.SEEK_SET, start, size, 0)
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, asked)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None

    module.locking = locking
    return module


def _refuse_if_open(*paths: Any) -> None:
    """Refuses to touch what some process has open, or folders that hold such."""
    touched = [os.path.realpath(path) for path in paths if os.path.exists(path)]
    for place in (file for process in _fellows() for file in (process / "fd").glob("*")):
        try:
            found = os.readlink(place)
        except OSError:  # it was closed meanwhile, or is not ours to know
            continue
        if any(found == path or found.startswith(f"{path}/") for path in touched):
            raise PermissionError(errno.EACCES, "it is being used by another process", found)


def _fellows() -> list[Path]:
    """The processes that are like this one: what others have open concerns nobody here."""
    found: list[Path] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"like_windows" in (process / "cmdline").read_bytes():
                found.append(process)
        except OSError:
            continue
    return found


if __name__ == "__main__":
    install()
    from tests.store import runs

    runs.main(sys.argv[1:])
