"""Files that appear whole or not at all, and never in place of another unasked."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from traceformer.errors import RunExists, UsageError
from traceformer.store.files import FileLock
from traceformer.store.objects.path import disk_path
from traceformer.store.system import rename, replace

__all__ = ["appearing_whole", "check_ending", "leftovers", "refuse_to_replace", "remove_leftovers"]


@contextmanager
def appearing_whole(path: Path) -> Generator[Path]:
    """Yields another name to write under: what is there takes the path's place at the end, or goes if writing failed.

    It may be a file or a folder, and replaces a file or a folder of the path's name. While it is written, a lock lies
    beside it, so that what a killed process left is told from what another one writes.

    Raises:
        RunExists: another process is writing it.
        UsageError: it is a place in a bucket.
    """
    path = disk_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part, replaced, lock = _part_of(path), path.with_name(f".{path.name}.old.part"), FileLock(_lock_of(path))
    lock.acquire()
    try:
        _remove(part)
        _remove(replaced)
        yield part
        if path.is_dir():
            rename(path, replaced)
        replace(part, path)
    finally:
        _remove(part)
        _remove(replaced)
        lock.release(remove=True)


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def leftovers(folder: Path) -> list[Path]:
    """Returns what killed processes left of the files that they were writing in a folder, or of the folder itself."""
    locks = [_lock_of(folder), *folder.glob(".*.lock"), *folder.glob("*/.*.lock")] if folder.name else []
    parts = [lock.with_name(lock.name.removesuffix(".lock") + ".part") for lock in locks if _is_left(lock)]
    return sorted(part for part in parts if part.exists())


def _is_left(path: Path) -> bool:
    """Returns whether a lock is there and nobody holds it."""
    if not path.is_file():
        return False
    lock = FileLock(path)
    try:
        lock.acquire()
    except RunExists:
        return False
    lock.release()
    return True


def remove_leftovers(folder: Path) -> None:
    """Removes what `leftovers` finds, with the locks beside it."""
    for part in leftovers(folder):
        _remove(part)
        part.with_name(part.name.removesuffix(".part") + ".lock").unlink(missing_ok=True)


def check_ending(path: Path, what: str, endings: tuple[str, ...] = (".safetensors",)) -> None:
    """Makes sure that a file's name has the ending of its format.

    Raises:
        UsageError: it has another one, or none.
    """
    if path.suffix not in endings:
        named = " or ".join(endings)
        raise UsageError(f"{what} in {path}", why=f"files of these end in {named}", hint=f"a name that ends in {named}")


def refuse_to_replace(path: Path, *, overwrite: bool) -> None:
    """Refuses to replace what is there, unless told to.

    Raises:
        RunExists: something is there.
    """
    if path.exists() and not overwrite:
        raise RunExists(f"{path} is there already", hint="`overwrite=True` replaces it")
