"""Writes a run whose shards are claimed by leases: by any number of writers, to a folder or to a bucket.

    with LeasedWriter.create(place, layout, meta, digest=configuration, joins=True) as writer:
        for shard in writer.claims():       # the next one that nobody is at work on, until all are committed
            buffer = writer.buffer()
            ...
            writer.commit(shard, buffer, tokens)
        run = writer.finish()               # whoever comes last has finished it

1. `create` begins the run, or with `joins` becomes one more writer of it. On disk it is built in `_tmp_<name>`, as
   `RunWriter` builds it; in a bucket at its final prefix, since objects cannot be renamed.
2. `claims` takes a shard's lease before it gives the shard out (see `leases`), and waits for shards that others have
   until they are committed, or their writer is no more and they are taken over.
3. `commit` puts the shard's files so that nobody's are replaced who may have committed (see `placing`), concludes its
   lease, and creates its record. Whoever comes second has lost, which is no error: the shard is there.
4. `finish`, once all shards have records, is done by one writer, under a lease of its own, and waited for by the
   others. In a bucket the run is finished when `manifest.json` is there, which is put last.

It can be killed at any moment, and resumed to the same bytes. Records say of all writers that they are writer 0 of 1:
which one wrote a shard is a matter of chance.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from traceformer.errors import NotFound, Unreachable, UsageError
from traceformer.progress import quiet
from traceformer.store.begun import begin, go_on, where_built
from traceformer.store.buffer import ShardBuffer
from traceformer.store.commits import CommitRecord, RunHead, committed_shards, record_path, token_path
from traceformer.store.durable import WriteGroup
from traceformer.store.files import durable_write, free_space
from traceformer.store.filled import example_ids
from traceformer.store.finishing import complete_in_bucket, finish_run
from traceformer.store.hosts import UNKNOWN, Host
from traceformer.store.layout import COMMITS, LEASES, MANIFEST, META, TOKEN_SHARDS, RunLayout
from traceformer.store.leases import LEASE_SECONDS, Leases
from traceformer.store.locks import final_folder
from traceformer.store.meta import RunMeta
from traceformer.store.objects.path import AnyPath, ObjectPath
from traceformer.store.placing import CheckMine, Group, ObjectGroup, place_once
from traceformer.store.replacing import remove_run
from traceformer.store.writing import (
    Buffers,
    check_space,
    check_writer,
    record_of,
    token_file,
    write_arrays,
)
from traceformer.store.zarr3 import write_metadata

__all__ = ["LeasedWriter"]

_REPLACING = ".replacing"  # the lock of who replaces what a writer left
_FINISHING = "finish"  # what is claimed by who finishes the run
_KEPT, _HINT = "what was committed is kept", "free some space, then `resume=True`"
_LONGEST_WAIT = 1.0


class _Lost(Exception):
    """What is to be written is another writer's by now."""


class LeasedWriter:
    """One of any number of writers of a run, with `RunWriter`'s interface; see the module for its use.

    `commit` may run on a background thread while the next shard is filled.

    Attributes:
        folder: Where the run is built.
        layout: What goes into it.
        bytes_written: What this writer has committed so far.
        lost: How many shards it computed that another writer had committed, or taken over, before.
        on_commit: Called with the record of each shard that it has committed, by the thread that did.
    """

    def __init__(
        self,
        folder: AnyPath,
        head: RunHead,
        *,
        writer: tuple[int, int] = (0, 1),
        overwrite: bool = False,
        resumable: bool = True,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self.folder = folder
        self.layout = head.layout
        self.bytes_written = 0
        self.lost = 0
        self.on_commit: Callable[[CommitRecord], object] = quiet
        self._head = head
        self._writer = writer
        self._overwrite = overwrite
        self._resumable = resumable
        self._wait = min(_LONGEST_WAIT, lease_seconds / 4)
        self._leases = Leases(folder, seconds=lease_seconds)
        self._claimed = set[int]()
        self._buffers = Buffers(head.layout)
        if not self._is_finished():
            self._prepare()
            self._leases.announce()

    @classmethod
    def create(
        cls,
        folder: AnyPath,
        layout: RunLayout,
        meta: RunMeta | Mapping[str, Any],
        *,
        digest: Mapping[str, Any],
        writer: tuple[int, int] = (0, 1),
        overwrite: bool = False,
        resumable: bool = True,
        joins: bool = False,
        lease_seconds: float = LEASE_SECONDS,
    ) -> Self:
        """Begins a run, or with `joins` becomes one more writer of one that was begun with the same `digest`.

        Args:
            folder: The finished run's folder, or its place in a bucket.
            layout: What goes into the run.
            meta: What `meta.json` says beside the layout; JSON values only.
            digest: What must be equal to join or resume, name by name; JSON values only.
            writer: (w, W): this one takes the shards k with k mod W = w only; W is 0 where shards are handed out.
            overwrite: Replace a finished run, on disk when this one is finished, in a bucket now; and an unfinished one
                now, unless it can be joined.
            resumable: Whether what an error leaves can be gone on with. If not, it is removed.
            joins: Whether an unfinished run of the same configuration is taken part in. Of several writers, too.
            lease_seconds: How long others wait for the shard of a writer that is no more.

        Raises:
            RunExists: something is there, and may not be replaced.
            ConfigurationChanged: the run that would be joined was begun differently.
            Unreachable: the bucket does not answer, or refuses.
        """
        check_writer(writer, handed_out=True)
        stated = RunHead.of(meta, layout, digest)
        head = begin(folder, stated, joins=joins or writer[1] != 1, overwrite=overwrite)
        return cls(
            where_built(folder),
            head,
            writer=writer,
            overwrite=overwrite,
            resumable=resumable,
            lease_seconds=lease_seconds,
        )

    @classmethod
    def resume(
        cls,
        folder: AnyPath,
        layout: RunLayout,
        meta: RunMeta | Mapping[str, Any],
        *,
        digest: Mapping[str, Any],
        writer: tuple[int, int] = (0, 1),
        overwrite: bool = False,
        lease_seconds: float = LEASE_SECONDS,
    ) -> Self:
        """Continues the unfinished run that will be `folder`, beside whoever else is at work on it.

        Raises:
            NotFound: there is nothing to resume.
            ConfigurationChanged: it was begun with another digest or layout; the message names what differs.
            RunExists: a finished run is there.
        """
        check_writer(writer, handed_out=True)
        head = go_on(folder, RunHead.of(meta, layout, digest), overwrite=overwrite)
        return cls(where_built(folder), head, writer=writer, overwrite=overwrite, lease_seconds=lease_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        gone_wrong = error is not None and not self._resumable and not self._is_finished()
        if gone_wrong and (self.folder / META).is_file():
            remove_run(self.folder)

    def close(self) -> None:
        """Gives all leases back. What was committed stays, and the run can be resumed."""
        self._leases.close()

    @property
    def pending(self) -> list[int]:
        """The shards of this writer's part that nobody has committed yet, in order."""
        if self._is_finished():
            return []
        w, of = self._writer
        own = range(w, self.layout.n_shards, of) if of else range(self.layout.n_shards)
        return sorted(set(own) - set(committed_shards(self.folder)))

    def record_of(self, shard: int) -> CommitRecord | None:
        """Returns the record of a shard, whoever committed it; None where nobody has."""
        try:
            return CommitRecord.read(self.folder, shard)
        except NotFound:
            return None

    @property
    def last_host(self) -> Host:
        """What computed the last of the committed shards, as far as its record says."""
        committed = committed_shards(self.folder)
        return CommitRecord.read(self.folder, committed[-1]).host if committed else UNKNOWN

    def claims(self, *, wait: bool = True) -> Iterator[int]:
        """Yields, one after the other, the shards that nobody else is at work on, each with its lease taken.

        It ends when all shards of this writer's part are committed, or in its own hands. Until then it waits for those
        that others have, to take over what they leave; without `wait` it ends when it finds no shard to take.
        """
        while others := [shard for shard in self.pending if shard not in self._claimed]:
            free, concluded = self._leases.look(map(str, others))
            taken = next((int(shard) for shard in free if self._take(int(shard))), None)
            if taken is not None:
                yield taken
            elif concluded:
                self._write_concluded(concluded)
            elif wait:
                time.sleep(self._wait)
            else:
                return

    def _take(self, shard: int, *, by_force: bool = False) -> bool:
        if not self._leases.take(str(shard), by_force=by_force):
            self._write_concluded(self._leases.look([str(shard)])[1])
            return False
        if self._is_finished() or record_path(self.folder, shard).is_file():  # committed since it was listed
            self._leases.release(str(shard), done=True)
            return False
        self._claimed.add(shard)
        return True

    def _write_concluded(self, records: Mapping[str, bytes]) -> None:
        """Writes records of shards whose owners came so far as to conclude them, and no further."""
        for shard, record in records.items():
            with suppress(FileExistsError, FileNotFoundError):  # he was not dead; or all have been, and it is finished
                durable_write(record_path(self.folder, int(shard)), record, exclusive=True)

    def buffer(self) -> ShardBuffer:
        """Returns a buffer to fill; waits for a commit when both are in use."""
        return self._buffers.take()

    def commit(
        self,
        shard: int,
        buffer: ShardBuffer,
        tokens: pa.Table,
        host: Host = UNKNOWN,
        source: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes a shard, unless another writer has, and takes the buffer back, also when it fails.

        Args:
            shard: One that `claims` gave, or was handed out: its lease is taken now.
            buffer: Filled for the shard's examples.
            tokens: One row per example in the data set's order, with at least `example_id`.
            host: What computed it, where that is known.

        Raises:
            NumericError: a value is inf or NaN.
            OutOfSpace: the disk is full; what was committed before is untouched.
            Unreachable: the bucket does not answer any more; likewise.
            UsageError: the rows are not the shard's.
        """
        done = False
        try:
            ids = self._check_rows(shard, buffer, tokens)
            buffer.compress()
            try:
                if shard not in self._claimed and not self._take(shard, by_force=self._writer[1] == 0):
                    raise _Lost
                record = self._write(shard, buffer, tokens, ids, host, source)
                self.bytes_written += sum(file.bytes for file in record.files.values())
                self.on_commit(record)
                done = True
            except _Lost:
                self.lost += 1
                done = not self._is_pending(shard)  # or an older owner might conclude in place of who has it now
        finally:
            self._buffers.give_back(buffer)
            with nullcontext() if done else suppress(Unreachable):  # or it would hide what went wrong
                self._leases.release(str(shard), done=done)
            self._claimed.discard(shard)

    def _check_rows(self, shard: int, buffer: ShardBuffer, tokens: pa.Table) -> list[str]:
        w, of = self._writer
        if not 0 <= shard < self.layout.n_shards or (of and shard % of != w):
            raise UsageError(f"shard {shard} is not pending", why="it is another writer's, or out of range")
        return example_ids(shard, buffer, tokens)

    def _write(
        self,
        shard: int,
        buffer: ShardBuffer,
        tokens: pa.Table,
        ids: list[str],
        host: Host,
        source: Mapping[str, Any] | None,
    ) -> CommitRecord:
        check_mine = partial(self._check_mine, str(shard), lambda: not self._is_pending(shard))
        check_mine()
        try:
            with self._space(buffer, tokens), self._group(check_mine) as group:
                files = write_arrays(
                    group,
                    self.folder,
                    shard,
                    buffer,
                    nan_is_unknown=self._head.about.unknown_rows == "NaN",
                    in_place=False,
                )
                path = token_path(shard)
                files[path] = group.write(self.folder / path, token_file(self.layout, shard, buffer, tokens))
            record = record_of(self._head, shard, (0, 1), buffer, ids, files, host, source)
            if not self._leases.conclude(str(shard), record.to_bytes()):
                raise _Lost
            with suppress(FileExistsError):  # another writer has written it in this one's place
                durable_write(record_path(self.folder, shard), record.to_bytes(), exclusive=True)
            if record_path(self.folder, shard).read_bytes() != record.to_bytes():
                raise _Lost
        except FileNotFoundError:
            if not self._is_pending(shard):  # who finished the run meanwhile has cleared up, or renamed its folder
                raise _Lost from None
            raise
        return record

    def finish(self) -> AnyPath:
        """Returns the finished run's place, or that of the unfinished one while shards (of other writers) are missing.

        Of several writers one finishes it, and the others wait.
        """
        final = final_folder(self.folder) if isinstance(self.folder, Path) else self.folder
        while not self._is_finished():
            if len(committed_shards(self.folder)) < self.layout.n_shards:
                if self._is_finished():
                    break
                return self.folder
            if not self._leases.take(_FINISHING):
                _, concluded = self._leases.look([_FINISHING])
                if concluded:
                    self._write_manifest(concluded[_FINISHING])
                else:
                    time.sleep(self._wait)
                continue
            try:
                self._complete()
            except _Lost:
                continue
            finally:
                self._leases.release(_FINISHING, done=self._is_finished())
        self.close()
        return final

    def _complete(self) -> None:
        if isinstance(self.folder, ObjectPath):
            check_mine = partial(self._check_mine, _FINISHING, self._is_finished)
            manifest = complete_in_bucket(self.folder, self._head, check_mine)
            if not self._leases.conclude(_FINISHING, manifest):
                raise _Lost
            self._write_manifest(manifest)
            left = [name for name in self.folder.objects() if name.startswith(f"{LEASES}/")]
            self.folder.store.delete((self.folder / name).key for name in left)
            return
        with free_space(self.folder, kept=_KEPT, hint=_HINT):
            finish_run(self.folder, final_folder(self.folder), self._head, overwrite=self._overwrite)

    def _write_manifest(self, manifest: bytes) -> None:
        with suppress(FileExistsError):
            durable_write(self.folder / MANIFEST, manifest, exclusive=True)

    def _is_finished(self) -> bool:
        if isinstance(self.folder, ObjectPath):
            return (self.folder / MANIFEST).is_file()
        return not self.folder.exists()

    def _is_pending(self, shard: int) -> bool:
        return not self._is_finished() and not record_path(self.folder, shard).is_file()

    def _check_mine(self, thing: str, is_done: Callable[[], bool]) -> None:
        if is_done() or not self._leases.holds(thing):
            raise _Lost

    def _group(self, check_mine: CheckMine) -> Group:
        if isinstance(self.folder, ObjectPath):
            return ObjectGroup(check_mine)
        return WriteGroup(attempt=self._leases.owner, place=place_once(self.folder / LEASES / _REPLACING, check_mine))

    def _space(self, buffer: ShardBuffer, tokens: pa.Table) -> AbstractContextManager[None]:
        if isinstance(self.folder, ObjectPath):
            return nullcontext()
        check_space(self.folder, buffer, tokens, kept=_KEPT, hint=_HINT)
        return free_space(self.folder, kept=_KEPT, hint=_HINT)

    def _prepare(self) -> None:
        """Writes zarr metadata, which follow from the head, where there are none, and makes folders."""
        if isinstance(self.folder, ObjectPath):
            with ObjectGroup() as group:
                write_metadata(group, self.folder, self.layout)
            return
        with WriteGroup(attempt=self._leases.owner, place=place_once(self.folder / LEASES / _REPLACING, None)) as group:
            for folder in (self.folder, *(self.folder / name for name in (COMMITS, TOKEN_SHARDS, LEASES))):
                group.make_folder(folder)
            write_metadata(group, self.folder, self.layout)
