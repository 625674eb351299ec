"""What a run's folder holds between any two system calls that write it, and what a disk without power would have."""

import io
import os
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.store import runs
from traceformer.errors import NotFound
from traceformer.store.layout import RunLayout

_CHANGES = ("fsync", "ftruncate", "write", "rename", "replace", "link", "unlink", "remove", "mkdir", "rmdir")


def small_plan() -> RunLayout:
    """Returns the layout of two shards with a pattern, tokens of a head, and those of the stream."""
    return runs.plan(arrays=[runs.FEW[0], runs.FEW[1], runs.FEW[4]], n_examples=3, shard_examples=2)


def write_or_resume(folder: Path) -> Path:
    """Does what is left to do of a small run."""
    if folder.exists():
        return folder
    try:
        return runs.complete(folder, small_plan())
    except NotFound:
        return runs.write(folder, small_plan())


def watch_changes(patch: pytest.MonkeyPatch, before: Callable[[], None]) -> None:
    """Has `before` called before each change of a file or folder, which waits for it; what it changes is not watched.

    What is made durable is not, which takes time and makes no difference to those who read.
    """
    lock, busy = threading.Lock(), threading.local()

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def calling(*arguments: Any, **named: Any) -> Any:
            if not getattr(busy, "now", False):
                with lock:
                    busy.now = True
                    before()
                    busy.now = False
            return call(*arguments, **named)

        return calling

    patch.setattr(os, "fsync", lambda _: None)
    for name in _CHANGES:
        patch.setattr(os, name, watched(getattr(os, name)))
    patch.setattr(io, "open", watched(io.open))


class Snapshots:
    """Copies of a folder, each in a folder of its own; one that is like the last is not kept."""

    def __init__(self, source: Path, into: Path) -> None:
        self.taken: list[Path] = []
        self._source, self._into, self._last = source, into, dict[str, bytes]()

    def take(self) -> None:
        found = runs.contents(self._source)
        if not self.taken or found != self._last:
            self.taken.append(self._into / f"{len(self.taken)}")
            shutil.copytree(self._source, self.taken[-1])
            self._last = found


class Survivors:
    """What of a folder would be there after a loss of power: what was synced, and nothing else.

    Each state is written to a folder of its own, after each file or folder that was synced.
    """

    def __init__(self, root: Path, into: Path, patch: pytest.MonkeyPatch) -> None:
        self.taken: list[Path] = []
        self._root, self._into = os.stat(root).st_ino, into
        self._contents: dict[int, bytes] = {}
        self._entries: dict[int, dict[str, tuple[int, bool]]] = {}
        self._kept: list[int] = []  # open, so that no other file gets the number of one that is gone
        patch.setattr(os, "fsync", self._sync)

    def _sync(self, file: int) -> None:
        number, path = os.fstat(file).st_ino, Path(os.readlink(f"/proc/self/fd/{file}"))
        self._kept.append(os.dup(file))
        if stat.S_ISDIR(os.fstat(file).st_mode):
            self._entries[number] = {each.name: (each.inode(), each.is_dir()) for each in os.scandir(path)}
        else:
            self._contents[number] = path.read_bytes()
        self.taken.append(self._into / f"{len(self.taken)}")
        self._write(self._root, self.taken[-1])

    def _write(self, number: int, folder: Path) -> None:
        """Writes a folder's synced entries. A file that is listed and was not synced is empty."""
        folder.mkdir(parents=True)
        for name, (inode, is_folder) in self._entries.get(number, {}).items():
            if is_folder:
                self._write(inode, folder / name)
            else:
                (folder / name).write_bytes(self._contents.get(inode, b""))

    def close(self) -> None:
        for file in self._kept:
            os.close(file)
