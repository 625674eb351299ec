"""Who may write a run: where it is built, which process holds it, and whether it was begun with the same configuration.

A run is built in `_tmp_<name>` beside its folder. Each writer holds a lock there, which the operating system drops
with the process, so a crash leaves nothing in the way.
"""

import itertools
import os
import shutil
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from traceformer.errors import ConfigurationChanged, NotFound, RunExists, Unreadable
from traceformer.filenames import file_name
from traceformer.store.commits import RunHead
from traceformer.store.files import FileLock, canonical
from traceformer.store.hosts import deciding
from traceformer.store.layout import META, UNFINISHED, as_of
from traceformer.store.leases import refuse_at_work
from traceformer.store.objects.path import AnyPath
from traceformer.store.replacing import aside_of, check_place, check_replaceable, is_marked, remove_run

__all__ = [
    "begun_head",
    "claiming",
    "clear_unfinished",
    "empty_folder",
    "final_folder",
    "find_unfinished",
    "lock_writer",
    "refuse_existing",
    "refuse_other_writers",
    "timestamped_folder",
    "unfinished_folder",
]


def unfinished_folder(folder: Path) -> Path:
    """Returns where the run that will be `folder` is built: `_tmp_<name>` beside it."""
    return folder if folder.name.startswith(UNFINISHED) else folder.with_name(UNFINISHED + folder.name)


@contextmanager
def claiming(unfinished: Path) -> Generator[None]:
    """Keeps other processes from beginning, joining or finishing the run inside the block; waits for one that does.

    The lock lies beside the folder, which is renamed under it.
    """
    lock = FileLock(unfinished.with_name(f"{unfinished.name}.lock"))
    lock.acquire(wait=True)
    try:
        yield
    finally:
        lock.release(remove=True)


def find_unfinished(traces: Path, digest: Mapping[str, Any]) -> Path | None:
    """Returns the newest unfinished run under `traces` that was begun with the same configuration, or None."""
    begun: list[tuple[int, Path]] = []
    wanted = deciding(digest)
    for path in traces.glob(f"{UNFINISHED}*/{META}"):
        try:
            head = RunHead.read(path.parent)
        except (NotFound, Unreadable):
            continue
        if canonical(deciding(head.configuration)) == canonical(as_of(head.version, wanted)):
            begun.append((path.stat().st_mtime_ns, path.parent))
    return max(begun)[1] if begun else None


def final_folder(folder: Path) -> Path:
    return folder.with_name(folder.name.removeprefix(UNFINISHED))


def timestamped_folder(parent: Path, name: str) -> Path:
    """Returns `parent/DATE-TIME_name`, with `-2`, `-3`, ... after the time where a run of the same second has it.

    The name is what a file may have of it.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    stamps = itertools.chain([stamp], (f"{stamp}-{number}" for number in itertools.count(2)))
    folders = (parent / f"{each}_{file_name(name)}" for each in stamps)
    return next(folder for folder in folders if not folder.exists() and not unfinished_folder(folder).exists())


def refuse_existing(final: Path, overwrite: bool, resume: bool = False) -> None:
    """Refuses a folder that a run cannot be put at, because of what it is or of what is there.

    Raises:
        UsageError: as `check_place` raises it.
        RunExists: something is there, and may not be replaced.
    """
    for place in (final, unfinished_folder(final)):
        check_place(place)
    if not final.exists():
        return
    if resume and not overwrite and (final / META).exists():
        raise RunExists(
            f"{final} is finished", why="there is nothing to resume", hint="`overwrite=True` begins it anew"
        )
    check_replaceable(final)
    if not overwrite:
        raise RunExists(f"{final} exists", hint="choose another `out`; `overwrite=True` replaces it")
    aside = aside_of(final)
    if aside.exists() and not is_marked(aside):
        raise RunExists(f"{aside} is in the way", why=f"{final} is moved there until it is replaced", hint="rename it")


def lock_writer(unfinished: Path, writer: tuple[int, int]) -> FileLock:
    """Returns the writer's lock, taken. Writers of different counts W would take each other's shards."""
    refuse_at_work(unfinished)
    lock = FileLock(unfinished / f".lock-{writer[0]}-of-{writer[1]}")
    lock.acquire()
    try:
        refuse_other_writers(unfinished, writer, of_any_number=False)
    except BaseException:
        lock.release()
        raise
    return lock


def refuse_other_writers(unfinished: Path, writer: tuple[int, int], *, of_any_number: bool) -> None:
    own = f".lock-{writer[0]}-of-{writer[1]}"
    for path in unfinished.glob(".lock-*"):
        fellow = path.name.endswith(f"-of-{writer[1]}") and not of_any_number
        if path.name != own and not fellow:
            other = FileLock(path)
            other.acquire()
            other.release()


_UNLESS_STATED = {"pattern kernel": "torch"}
"""What the configuration of a run means that does not say it."""


def clear_unfinished(unfinished: Path) -> None:
    """Removes an unfinished run that another one is to take the place of, if there is one.

    Raises:
        RunExists: another process is writing there.
    """
    with claiming(unfinished):
        if unfinished.exists():
            refuse_other_writers(unfinished, (-1, 0), of_any_number=True)
            remove_run(unfinished)


def begun_head(unfinished: AnyPath, head: RunHead) -> RunHead:
    """Returns the head that an unfinished run was begun with, if `head` means the same run, in whatever format.

    Raises:
        ConfigurationChanged: it does not; the message names what differs.
    """
    begun = RunHead.read(unfinished)
    laid_out = begun.layout
    if head.layout.is_open and begun.is_of_stream:  # it may have been interrupted while it was being finished
        laid_out = replace(laid_out, n_examples=head.layout.n_examples)
    stated = [(begun.configuration, head.configuration), (laid_out.to_json(), head.layout.to_json())]
    for before, now in ((deciding(as_of(begun.version, each)) for each in pair) for pair in stated):
        names = [*before, *(name for name in now if name not in before)]
        both = {name: [each.get(name, _UNLESS_STATED.get(name)) for each in (before, now)] for name in names}
        changed = [name for name, (one, other) in both.items() if canonical(one) != canonical(other)]
        if changed:
            raise ConfigurationChanged(
                f"{unfinished} was begun with another {' and '.join(changed)}",
                why="; ".join(_difference(name, *both[name]) for name in changed),
                hint="start a new run, or resume with what it was begun with",
            )
    return begun


def _difference(name: str, before: object, now: object) -> str:
    """What changed, in words; of two lists only what one has and the other has not."""
    if isinstance(before, list) and isinstance(now, list):
        gone, new = ([each for each in one if each not in other] for one, other in ((before, now), (now, before)))
        parts = [f"without {', '.join(map(str, gone))}"] * bool(gone) + [f"with {', '.join(map(str, new))}"] * bool(new)
        return f"{name} is now {' and '.join(parts) or 'in another order'}"
    return f"{name} was {_short(before)}, is {_short(now)}"


def _short(value: object) -> str:
    text = canonical(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def empty_folder(folder: Path, keep: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path != keep:
            os.unlink(path)
