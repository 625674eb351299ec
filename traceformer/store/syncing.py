"""Copies a finished run file by file, to a bucket or back, so that it can be interrupted and gone on with.

1. `meta.json` goes first, shards before their records, and the manifest last: what an interrupted copy leaves is an
   unfinished run, of which each committed shard is whole.
2. A file that is there already, as the manifest has it, is not copied again.
3. What is copied is held against the manifest before it is written, and again as it lies there then. Only if all
   files are there and no others, the manifest is written; on a disk the folder then takes its name.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from traceformer.errors import CorruptRun, RunExists, UsageError
from traceformer.progress import OnStep, steps_watched
from traceformer.store.commits import differing_files, files_of, read_manifest
from traceformer.store.durable import WriteGroup
from traceformer.store.files import TEMPORARY, Checksum, checksum_of, durable_write, free_space
from traceformer.store.folders import open_run
from traceformer.store.layout import COMMITS, MANIFEST, META, TOKENS
from traceformer.store.locks import claiming, unfinished_folder
from traceformer.store.objects.at_once import at_once
from traceformer.store.objects.path import AnyPath, ObjectPath, as_path
from traceformer.store.replacing import check_place
from traceformer.store.run import Run
from traceformer.store.system import rename, sync_folder

__all__ = ["sync"]

_AT_ONCE = 256 << 20  # bytes of files that are in memory together; a larger file alone
_FILES = 64


def sync(run: Run | str | AnyPath, place: str | AnyPath, *, progress: OnStep | None = None) -> Run:
    """Returns a finished run as it lies at another place, where it is copied: in a bucket, or from one to a disk.

        sync("traces/demo", "s3://bucket/traces/demo")
        sync("hf://buckets/me/traces/demo", "traces/demo")

    Every file is compared with the manifest's checksums, before it is written and as it lies there then. Interrupted,
    the same call goes on where it stopped; where the same run is already, nothing is copied.

    Args:
        run: The run: itself, a folder or a place in a bucket, its name in ./traces, or `latest`.
        place: Where it shall lie: a folder, or `s3://bucket/name`, `gs://bucket/name`, `hf://buckets/OWNER/NAME/name`.
        progress: Told how many bytes of how many are there.

    Raises:
        UsageError: the run is not finished, or `place` is none.
        Unsupported: the run is in memory.
        RunExists: another run is there, or something else.
        CorruptRun: a file of the run is not as its manifest has it.
        Unreachable: a bucket does not answer, or refuses.
        OutOfSpace: the disk is full.
    """
    source, to = (run if isinstance(run, Run) else open_run(run)).on_disk(), as_path(place)
    if not source.finished:
        hint = "`resume=True` finishes it"
        raise UsageError(f"{source.name} is not finished", why="only finished runs are copied", hint=hint)
    manifest = (source.folder / MANIFEST).read_bytes()
    listed = read_manifest(source.folder)
    if not _is_there(to, manifest):
        with steps_watched("copying", progress) as step:
            if isinstance(to, ObjectPath):
                _copy(source.folder, to, listed, step)
                _write_all(to, {MANIFEST: manifest})
            else:
                _copy_to_disk(source.folder, to, listed, manifest, step)
    return Run(to)


def _is_there(to: AnyPath, manifest: bytes) -> bool:
    """Returns whether the same run is at a place already.

    Raises:
        RunExists: another one is, or something else.
    """
    if isinstance(to, Path):
        check_place(to)
    if (to / MANIFEST).is_file():
        if (to / MANIFEST).read_bytes() == manifest:
            return True
        raise RunExists(f"another run is in {to}", hint="choose another place, or remove it")
    if isinstance(to, Path) and to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise RunExists(f"{to} exists and is not this run", hint="choose another place, or move it away")
    return False


def _copy_to_disk(source: AnyPath, to: Path, listed: Mapping[str, Checksum], manifest: bytes, step: OnStep) -> None:
    building = unfinished_folder(to)
    building.parent.mkdir(parents=True, exist_ok=True)
    with claiming(building), free_space(building.parent):
        if building.exists() and not building.is_dir():
            raise RunExists(f"{building} exists and is not a run", why="the run is copied there", hint="move it away")
        for left in building.rglob(f".*{TEMPORARY}"):
            left.unlink()  # of a copy that was killed
        _copy(source, building, listed, step)
        durable_write(building / MANIFEST, manifest)
        if to.exists():
            to.rmdir()  # it is empty
        rename(building, to)
        sync_folder(to.parent)


def _copy(source: AnyPath, to: AnyPath, listed: Mapping[str, Checksum], step: OnStep) -> None:
    """Copies all but the manifest.

    Raises:
        RunExists: another run was begun there, or a file is there that is none of this one's.
        CorruptRun: a file is not as the manifest has it, here or there.
    """
    there = set(files_of(to))
    if META in there and dict(differing_files(to, {META: listed[META]}))[META]:
        raise RunExists(f"another run was begun in {to}", hint="choose another place, or remove it")
    if foreign := sorted(there - listed.keys() - {MANIFEST}):
        raise RunExists(f"{to} holds what is not this run's: {', '.join(foreign[:3])}", hint="choose another place")
    names = sorted(listed, key=lambda name: (_rank(name), name))
    different = dict(differing_files(to, {name: listed[name] for name in names if name in there}))
    missing = [name for name in names if different.get(name, "is missing")]
    total = sum(each.bytes for each in listed.values())
    done = total - sum(listed[name].bytes for name in missing)
    step(done, total)
    for group in _groups(missing, listed):
        data = dict(zip(group, at_once(lambda name: (source / name).read_bytes(), group), strict=True))
        for name, content in data.items():
            if checksum_of(content, listed[name].algorithm)[:3] != listed[name][:3]:
                raise _damaged(source, name)
        _write_all(to, data)
        del data
        for name, what in differing_files(to, {name: listed[name] for name in group}):
            if what:
                raise CorruptRun(f"{to / name} {what}", why="it was just copied there", hint="the same again")
        done += sum(listed[name].bytes for name in group)
        step(done, total)
    if lacking := sorted(listed.keys() - files_of(to)):
        raise CorruptRun(f"{to} lacks {lacking[0]}", why="somebody removed it meanwhile", hint="the same again")


def _damaged(source: AnyPath, name: str) -> CorruptRun:
    return CorruptRun(f"{source / name} was changed after it was written", hint="traceformer verify lists the damage")


def _rank(name: str) -> int:
    """Where a file comes in the order of copying: the head, all that shards consist of, their records, their sum."""
    if name == META:
        return 0
    return 2 if name.startswith(f"{COMMITS}/") else 3 if name == TOKENS else 1


def _groups(names: Sequence[str], listed: Mapping[str, Checksum]) -> Iterator[list[str]]:
    """Yields files that are copied together: of one rank, and no more than fit into memory."""
    group: list[str] = []
    size = 0
    for name in names:
        full = len(group) >= _FILES or size + listed[name].bytes > _AT_ONCE
        if group and (full or _rank(name) != _rank(group[-1])):
            yield group
            group, size = [], 0
        group.append(name)
        size += listed[name].bytes
    if group:
        yield group


def _write_all(to: AnyPath, data: Mapping[str, bytes]) -> None:
    """Writes files, each whole or not at all; on a disk they are durable then."""
    if isinstance(to, ObjectPath):
        to.store.put_all([((to / name).key, content) for name, content in data.items()])
        return
    with WriteGroup() as group:
        for name, content in data.items():
            group.make_folder((to / name).parent)
            group.write(to / name, content)
