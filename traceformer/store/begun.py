"""How a run that several may write begins: its head is created once, and whoever comes later joins, or is refused.

In a bucket a run lies at its final prefix from the start. It is finished when it has a manifest; one that replaces it
begins by removing it, since nothing can be moved aside there.
"""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from traceformer.errors import NotFound, RunExists, Unsupported, UsageError
from traceformer.store.commits import RunHead
from traceformer.store.layout import MANIFEST, META
from traceformer.store.leases import refuse_at_work
from traceformer.store.locks import (
    begun_head,
    claiming,
    final_folder,
    refuse_existing,
    refuse_other_writers,
    unfinished_folder,
)
from traceformer.store.objects.path import AnyPath, ObjectPath
from traceformer.store.replacing import check_place, check_replaceable, check_unfinished, remove_run

__all__ = ["begin", "check_free", "go_on", "has_head", "is_begun", "where_built"]


def where_built(folder: AnyPath) -> AnyPath:
    """Returns where the run that will be `folder` is written: beside it on disk, there in a bucket."""
    return folder if isinstance(folder, ObjectPath) else unfinished_folder(folder)


def is_begun(folder: AnyPath) -> bool:
    """Returns whether an unfinished run, or what may become one, is where the run that will be `folder` is written."""
    if isinstance(folder, ObjectPath):
        return (folder / META).is_file() and not (folder / MANIFEST).is_file()
    return unfinished_folder(folder).exists()


def has_head(folder: AnyPath) -> bool:
    """Returns whether the run that will be `folder` has been begun: one of several writers may come a moment early."""
    return (where_built(folder) / META).is_file()


def check_free(folder: AnyPath, *, overwrite: bool, resume: bool = False, joins: bool = False) -> None:
    """Finds out whether a run can be written at a place, before anything is computed.

    Raises:
        UsageError: no run can lie there.
        RunExists: something is there that may not be replaced: a finished run unless `overwrite`, an unfinished one
            unless one of the three, and anything else.
        Unreachable: the bucket does not answer, or refuses.
    """
    if not isinstance(folder, ObjectPath):
        refuse_existing(final_folder(folder), overwrite, resume)
        if not resume and not joins:
            check_unfinished(unfinished_folder(folder), overwrite=overwrite)
        return
    if not folder.key:
        raise UsageError(f"{folder} is a bucket", why="a run lies under a name in it", hint=str(folder / "run"))
    has_head, is_finished = ((folder / name).is_file() for name in (META, MANIFEST))
    if not has_head:
        if folder.is_dir():
            raise RunExists(f"{folder} exists and is not a run", hint="choose another `out`")
        return
    if is_finished:
        if not overwrite:
            what = "is finished" if resume else "exists"
            raise RunExists(f"{folder} {what}", hint="choose another `out`; `overwrite=True` replaces it")
        check_replaceable(folder)
    elif not resume and not joins:
        if not overwrite:
            hint = "`resume=True` continues it, `overwrite=True` starts anew"
            raise RunExists(f"an unfinished run is in {folder}", hint=hint)
        check_replaceable(folder)


def begin(folder: AnyPath, head: RunHead, *, joins: bool, overwrite: bool) -> RunHead:
    """Returns the head of the run that was begun at a place: this one, or with `joins` the one that it was begun with.

    Raises:
        RunExists: as `check_free`.
        ConfigurationChanged: the run that would be joined was begun differently.
        Unsupported: the bucket knows no writes on a condition.
    """
    with _alone(folder):
        check_free(folder, overwrite=overwrite, joins=joins)
        built = where_built(folder)
        _refuse_locked(built)
        if (built / META).is_file():
            if joins and is_begun(folder):
                return begun_head(built, head)
            refuse_at_work(built)
            remove_run(built)
        if isinstance(built, Path):
            built.mkdir(parents=True, exist_ok=True)
        try:
            head.write(built, exclusive=True)
        except FileExistsError:  # somebody was quicker
            if joins:
                return begun_head(built, head)
            raise RunExists(
                f"another process is writing {built}", hint="wait for it, or choose another `out`"
            ) from None
        if isinstance(built, ObjectPath):
            _check_conditions(built)
        return head


def go_on(folder: AnyPath, head: RunHead, *, overwrite: bool) -> RunHead:
    """Returns the head that the unfinished run which will be at a place was begun with.

    Raises:
        NotFound: there is none.
        ConfigurationChanged: `head` means another run; the message names what differs.
        RunExists: a finished run is there, or a process that holds a lock writes the unfinished one.
    """
    check_free(folder, overwrite=overwrite, resume=True)
    built = where_built(folder)
    if not is_begun(folder):
        raise NotFound(f"nothing to resume at {folder}", hint="leave out `resume=True`")
    _refuse_locked(built)
    return begun_head(built, head)


def _refuse_locked(built: AnyPath) -> None:
    if isinstance(built, Path):
        refuse_other_writers(built, (0, 0), of_any_number=True)


@contextmanager
def _alone(folder: AnyPath) -> Generator[None]:
    """Keeps others of this machine from beginning the same run meanwhile; in a bucket the writing of its head does."""
    if isinstance(folder, ObjectPath):
        yield
        return
    check_place(folder)
    unfinished_folder(folder).parent.mkdir(parents=True, exist_ok=True)
    with claiming(unfinished_folder(folder)):
        yield


def _check_conditions(run: ObjectPath) -> None:
    """Makes sure that a bucket does not overwrite what is to be written only where nothing is.

    Raises:
        Unsupported: it does.
    """
    path = run / META
    if path.store.put_if_absent(path.key, path.read_bytes()):
        raise Unsupported(
            f"{path.store.name} overwrites what is to be written only if it is not there",
            why="it does not know If-None-Match: *",
            hint="a newer version of its server; or a folder, which is uploaded when it is finished",
        )
