"""What may be replaced, or removed: a run and nothing else; and where a run can lie at all.

1. A run's folder is renamed into place, so it is no `.`, no `/`, no symbolic link and no mount point.
2. A run is a folder whose `meta.json` has its seal and the format's name. Files in it that no run has are somebody's:
   a run that holds any is not replaced.
3. What is replaced is moved aside, to `_old_<name>`, marked, and removed once the new run is in its place. The head
   goes last, so that what a kill leaves of it is still known for what it is.
"""

import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from traceformer.errors import RunExists, Unreadable, UsageError
from traceformer.store.commits import FORMAT, RunHead
from traceformer.store.files import read_sealed
from traceformer.store.layout import COMMITS, EXAMPLES, LEASES, MANIFEST, META, TOKEN_SHARDS, TOKENS
from traceformer.store.objects.path import AnyPath, ObjectPath, as_path, is_bucket
from traceformer.store.system import rename, sync_folder

__all__ = [
    "aside_of",
    "check_place",
    "check_replaceable",
    "check_unfinished",
    "foreign_files",
    "is_marked",
    "is_run",
    "move_aside",
    "remove_aside",
    "remove_run",
]

_OF_ANY_RUN = re.compile(
    rf"{META}|{MANIFEST}|{TOKENS}|{EXAMPLES}|{TOKEN_SHARDS}/\d+\.parquet|{COMMITS}/\d+\.json|{LEASES}(/[^/]+)?"
    rf"|(.*/)?\.[^/]+\.part|(.*/)?[^/]+\.__lock|\.lock-\d+-of-\d+"
)
_OF_A_GROUP = re.compile(r"zarr\.json|\w+/(zarr\.json|c(\.\d+)*)")


def check_place(folder: Path) -> None:
    """Finds out whether a folder of this name can be put in place whole, before anything is computed.

    Raises:
        UsageError: it is `.`, `..` or `/`, or holds the working folder; a symbolic link; or a mount point.
    """
    if is_bucket(folder):
        why = "tf.record and tf.generate write runs there, and nothing else does yet"
        raise UsageError(f"{as_path(folder)} is a place in a bucket", why=why, hint="a folder on disk")
    inside = f"a folder in it, such as {folder / 'run'}"
    if folder.name in ("", "..") or Path.cwd().is_relative_to(folder.absolute()):
        what = "the root of the file system" if folder == Path("/") else "the folder that you are in, or above it"
        raise UsageError(f"{str(folder)!r} cannot be written as a whole", why=f"it is {what}", hint=inside)
    if folder.is_symlink():
        to = folder.parent / os.readlink(folder)
        why = f"it is a symbolic link to {to}, which would be replaced and not what it leads to"
        raise UsageError(f"{folder} cannot be written as a whole", why=why, hint=f"{to} itself, or another name")
    if os.path.ismount(folder):
        why = "a file system is mounted there, which cannot be moved"
        raise UsageError(f"{folder} cannot be written as a whole", why=why, hint=inside)


def is_run(folder: AnyPath) -> bool:
    """Returns whether a folder is a run, finished or not: its head has its seal and the name of the format."""
    if folder.is_symlink() or not (folder / META).is_file():
        return False
    try:
        return read_sealed(folder / META).get("format") == FORMAT
    except Unreadable:
        return False


def foreign_files(run: AnyPath) -> list[str]:
    """Returns the files in a run's folder that are none of the run's: not in its manifest, and of no name it may have.

    Raises:
        Unreadable: its head cannot be read.
    """
    layout = RunHead.read(run).layout
    groups = {layout.array_path(spec.key).split("/")[0] for spec in layout.arrays}
    listed: set[str] = set()
    if (run / MANIFEST).is_file():
        with suppress(Unreadable):  # what a run may have is known all the same
            listed = {*read_sealed(run / MANIFEST)["files"]}
    return sorted(path for path in _all_in(run) if not _is_own(path, groups, listed))


def _is_own(path: str, groups: Collection[str], listed: Collection[str]) -> bool:
    group, _, rest = path.partition("/")
    named = _OF_ANY_RUN.fullmatch(path) or (group in groups and _OF_A_GROUP.fullmatch(rest))
    return path in listed or bool(named)


def _all_in(run: AnyPath) -> Iterator[str]:
    """Yields the names of all files in a folder, and of symbolic links to folders."""
    if isinstance(run, ObjectPath):
        yield from run.objects()
        return
    for place, folders, files in os.walk(run):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        yield from ((Path(place) / name).relative_to(run).as_posix() for name in (*files, *links))


def check_replaceable(folder: AnyPath) -> None:
    """Finds out whether a folder may go: it is a run with nothing foreign in it, or empty.

    Raises:
        RunExists: it is something else, or holds something else; nothing of it was touched.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if not is_run(folder):
        damaged = (folder / META).is_file() and FORMAT.encode() in (folder / META).read_bytes()
        why = f"its {META} was changed after it was written" if damaged else ""
        what = "is a damaged run" if damaged else "exists and is not a run"
        raise RunExists(f"{folder} {what}", why=why, hint="move it away, or choose another `out`")
    try:
        foreign = foreign_files(folder)
    except (Unreadable, KeyError, TypeError) as error:
        raise RunExists(f"{folder} is a run that cannot be read", why=str(error), hint="move it away") from error
    if foreign:
        some = f"{', '.join(foreign[:3])}{f' and {len(foreign) - 3} more' if len(foreign) > 3 else ''}"
        raise RunExists(
            f"the run {folder} holds what is not its own: {some}", hint="move that away, or choose another `out`"
        )


def check_unfinished(unfinished: Path, *, overwrite: bool, resumable: bool = True) -> None:
    """Finds out whether a run can be begun in a folder: nothing is there, or a run that may be replaced.

    Args:
        unfinished: Where runs are built.
        overwrite: Whether one that was begun may go.
        resumable: Whether whoever asks could go on with it.

    Raises:
        RunExists: something is there that may not.
    """
    if not unfinished.exists():
        return
    if (unfinished / META).exists():
        if not overwrite:
            begins = "`overwrite=True` starts anew"
            hint = f"`resume=True` continues it, {begins}" if resumable else begins
            raise RunExists(f"an unfinished run is in {unfinished}", hint=hint)
        check_replaceable(unfinished)
    elif not unfinished.is_dir() or not all(_OF_ANY_RUN.fullmatch(path.name) for path in unfinished.iterdir()):
        raise RunExists(
            f"{unfinished} exists and is not a run", why="the run would be built there", hint="move it away"
        )


def aside_of(final: Path) -> Path:
    return final.with_name(f"_old_{final.name}")


def _mark_of(aside: Path) -> Path:
    return aside.with_name(f".{aside.name}.replaced")


def is_marked(aside: Path) -> bool:
    """Returns whether a folder was moved aside, and does not only have such a name."""
    return _mark_of(aside).is_file() and not aside.is_symlink()


def move_aside(final: Path) -> None:
    """Renames a run that another one replaces; `remove_aside` takes it away, also after a crash."""
    aside = aside_of(final)
    _mark_of(aside).touch()
    rename(final, aside)
    sync_folder(final.parent)


def remove_aside(final: Path) -> None:
    """Removes what was moved aside from `final`, if it was."""
    aside = aside_of(final)
    if is_marked(aside):
        if aside.exists():
            remove_run(aside)
        _mark_of(aside).unlink()


def remove_run(folder: AnyPath) -> None:
    """Removes a folder that `check_replaceable` passed, its head last; in a bucket what says that it is whole, first.

    So what a kill leaves of it is known for what it is, and for no more.
    """
    if isinstance(folder, ObjectPath):
        names = [*folder.objects()]
        records = [name for name in names if name.startswith(f"{COMMITS}/")]
        for several in ([MANIFEST], records, [name for name in names if name not in (MANIFEST, META)], [META]):
            folder.store.delete([(folder / name).key for name in several])
        return
    for path in [path for path in folder.iterdir() if path.name != META]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    shutil.rmtree(folder)
