"""Writes a run shard by shard, so that it can be killed at any moment and resumed to the same bytes.

1. `create` makes `_tmp_<name>` beside the run's folder: zarr metadata, then the head, which makes it a run.
2. `commit` writes a shard's arrays and its token table, which become durable together, and then its record, which makes
   it a shard. Files of a shard without a record are removed before it is written again.
3. `finish`, once all shards of all writers have records, trims the token axes, adds their coordinates, joins the
   token tables, writes the manifest, and renames the folder.

Writer w of W writes the shards k with k mod W = w under its own lock; no two write the same file.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from traceformer.errors import NotFound, UsageError
from traceformer.progress import quiet
from traceformer.store.appended import Scratch
from traceformer.store.buffer import ShardBuffer
from traceformer.store.commits import (
    CommitRecord,
    RunHead,
    committed_shards,
    record_path,
    token_path,
)
from traceformer.store.durable import WriteGroup, temporary_of
from traceformer.store.files import FileLock, free_space
from traceformer.store.filled import example_ids
from traceformer.store.finishing import finish_run
from traceformer.store.hosts import UNKNOWN, Host
from traceformer.store.layout import COMMITS, META, TOKEN_SHARDS, RunLayout
from traceformer.store.locks import (
    begun_head,
    claiming,
    empty_folder,
    final_folder,
    find_unfinished,
    lock_writer,
    refuse_existing,
    refuse_other_writers,
    unfinished_folder,
)
from traceformer.store.meta import RunMeta
from traceformer.store.replacing import check_place, check_unfinished, is_run, remove_run
from traceformer.store.writing import (
    Buffers,
    check_space,
    check_writer,
    record_of,
    shard_files,
    token_file,
    write_arrays,
)
from traceformer.store.zarr3 import write_metadata

__all__ = ["RunWriter", "ShardBuffer", "find_unfinished", "unfinished_folder"]


class RunWriter:
    """One writer of a run: fill a `buffer()` for each of the `pending` shards, `commit` it, and `finish`.

    Use it as a context manager: leaving it gives the lock back, and what was committed stays. `commit` may run on
    a background thread while the other of the two buffers is filled.

        with RunWriter.create(folder, layout, meta, digest=configuration) as writer:
            for shard in writer.pending:
                buffer = writer.buffer()
                buffer.begin({"dec": lengths})
                ...
                writer.commit(shard, buffer, tokens)
            run = writer.finish()

    Attributes:
        folder: Where the run is built.
        layout: What goes into it.
        bytes_written: What this writer has committed so far, as it lies on disk.
        on_commit: Called with the record of each shard that it has committed, by the thread that did.
    """

    def __init__(
        self,
        folder: Path,
        head: RunHead,
        writer: tuple[int, int],
        lock: FileLock,
        overwrite: bool,
        resumable: bool = True,
    ) -> None:
        self.folder = folder
        self.layout = head.layout
        self._head = head
        self._writer = writer
        self._lock = lock
        self._overwrite = overwrite
        self._resumable = resumable
        self._kept = "what was committed is kept" if resumable else "nothing of it is kept"
        self._hint = f"free some space, then {'`resume=True`' if resumable else 'the same again'}"
        self._space = partial(free_space, folder, kept=self._kept, hint=self._hint)
        self._nan_is_unknown = head.about.unknown_rows == "NaN"
        self._buffers = Buffers(head.layout, self._scratch)
        self.bytes_written = 0
        self.on_commit: Callable[[CommitRecord], object] = quiet
        if self.pending:
            self._prepare_folder()

    @classmethod
    def create(
        cls,
        folder: Path,
        layout: RunLayout,
        meta: RunMeta | Mapping[str, Any],
        *,
        digest: Mapping[str, Any],
        writer: tuple[int, int] = (0, 1),
        overwrite: bool = False,
        resumable: bool = True,
    ) -> Self:
        """Begins a run, or, as one of several writers, joins the one that another began with the same `digest`.

        Args:
            folder: The finished run's folder.
            layout: What goes into the run.
            meta: What `meta.json` says beside the layout; JSON values only.
            digest: What must be equal to resume, name by name; JSON values only.
            writer: (w, W): this one is the w-th of W.
            overwrite: Replace a finished run at `folder`, when this one is finished, and an unfinished one now
                (unless there are several writers).
            resumable: Whether what an error leaves can be gone on with. If not, it is removed, and messages do not
                speak of it.

        Raises:
            RunExists: something is at `folder`, or an unfinished run beside it, and may not be replaced; or another
                process is writing there.
            ConfigurationChanged: another writer began the run differently; also with `overwrite`.
        """
        check_writer(writer)
        check_place(folder)
        final, unfinished = final_folder(folder), unfinished_folder(folder)
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        with claiming(unfinished):
            refuse_existing(final, overwrite)
            check_unfinished(unfinished, overwrite=overwrite or writer[1] > 1, resumable=resumable)
            unfinished.mkdir(exist_ok=True)
            lock = lock_writer(unfinished, writer)
            try:
                head = RunHead.of(meta, layout, digest)
                if not (unfinished / META).exists():
                    head.write(unfinished)
                elif writer[1] > 1:  # never started anew: it may hold what another writer has committed
                    head = begun_head(unfinished, head)
                else:
                    refuse_other_writers(unfinished, writer, of_any_number=True)
                    empty_folder(unfinished, keep=lock.path)
                    head.write(unfinished)
                return cls(unfinished, head, writer, lock, overwrite, resumable)
            except BaseException:
                lock.release()
                raise

    @classmethod
    def resume(
        cls,
        folder: Path,
        layout: RunLayout,
        meta: RunMeta | Mapping[str, Any],
        *,
        digest: Mapping[str, Any],
        writer: tuple[int, int] = (0, 1),
        overwrite: bool = False,
    ) -> Self:
        """Continues the unfinished run that will be `folder` (or is it). The head it was begun with stays as it is.

        Raises:
            NotFound: there is nothing to resume.
            ConfigurationChanged: it was begun with another digest or layout; the message names what differs.
            RunExists: a finished run is at `folder`, or another process is writing.
        """
        check_writer(writer)
        check_place(folder)
        final, unfinished = final_folder(folder), unfinished_folder(folder)
        if not (unfinished / META).exists():
            refuse_existing(final, overwrite=False)
            raise NotFound(f"nothing to resume at {final}", hint="leave out `resume=True`")
        with claiming(unfinished):
            refuse_existing(final, overwrite)
            head = begun_head(unfinished, RunHead.of(meta, layout, digest))
            lock = lock_writer(unfinished, writer)
            try:
                return cls(unfinished, head, writer, lock, overwrite)
            except BaseException:
                lock.release()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not self._resumable and is_run(self.folder):
            self._lock.make_way()
            remove_run(self.folder)
        self.close()

    def close(self) -> None:
        """Gives the lock back. What was committed stays, and the run can be resumed."""
        self._buffers.close()
        self._lock.release()

    @property
    def pending(self) -> Sequence[int]:
        """The shards this writer still has to write, in order; of a stream those that may come."""
        w, of = self._writer
        committed = committed_shards(self.folder)
        if not self.layout.is_open:
            return sorted(set(range(w, self.layout.n_shards, of)) - set(committed))
        ended = committed and len(CommitRecord.read(self.folder, committed[-1]).examples) < self.layout.shard_examples
        return range(0) if ended else range(len(committed), self.layout.n_shards)

    def record_of(self, shard: int) -> CommitRecord | None:
        """Returns the record of a shard, whoever committed it; None where nobody has."""
        try:
            return CommitRecord.read(self.folder, shard)
        except NotFound:
            return None

    def claims(self) -> Iterator[int]:
        """Yields each of the `pending` shards; none of them is anybody else's."""
        yield from self.pending

    @property
    def last_host(self) -> Host:
        """What computed the last of the committed shards, as far as its record says."""
        committed = committed_shards(self.folder)
        return CommitRecord.read(self.folder, committed[-1]).host if committed else UNKNOWN

    def buffer(self) -> ShardBuffer:
        """Returns a buffer to fill; waits for a commit when both are in use."""
        return self._buffers.take()

    def _scratch(self, number: int) -> Scratch:
        return Scratch(self.folder, f"{self._writer[0]}.{number}", self._space)

    def commit(
        self,
        shard: int,
        buffer: ShardBuffer,
        tokens: pa.Table,
        host: Host = UNKNOWN,
        source: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes a shard durably and takes the buffer back, also when it fails.

        Args:
            shard: One of `pending`.
            buffer: Filled for the shard's examples.
            tokens: One row per example in the data set's order, with at least `example_id`.
            host: What computed it, where that is known.
            source: Where a stream stood before the shard's first text, and what was read; JSON values only.

        Raises:
            NumericError: a value is inf or NaN.
            OutOfSpace: the disk is full; what was committed before is untouched.
            UsageError: the rows are not the shard's.
        """
        try:
            ids = self._check_rows(shard, buffer, tokens)
            self._remove_leftovers(shard)
            self._check_space(buffer, tokens)
            buffer.compress()
            with self._space(undo=lambda: self._remove_leftovers(shard)):
                path = token_path(shard)
                with WriteGroup() as group:
                    files = write_arrays(
                        group, self.folder, shard, buffer, nan_is_unknown=self._nan_is_unknown, in_place=True
                    )
                    table = token_file(self.layout, shard, buffer, tokens)
                    files[path] = group.write(self.folder / path, table)
                record = record_of(self._head, shard, self._writer, buffer, ids, files, host, source)
                record.write(self.folder)
                self.bytes_written += sum(file.bytes for file in record.files.values())
                self.on_commit(record)
        finally:
            self._buffers.give_back(buffer)

    def finish(self) -> Path:
        """Returns the finished run's folder, or the unfinished one while shards (of other writers) are missing.

        A stream ends with what is committed.
        """
        final = final_folder(self.folder)
        if self.layout.is_open or len(committed_shards(self.folder)) == self.layout.n_shards:
            self._lock.make_way()
            with self._space():
                finish_run(self.folder, final, self._head, overwrite=self._overwrite)
        elif self.folder.exists():
            return self.folder
        self.close()  # all is done, perhaps by another writer
        return final

    def _prepare_folder(self) -> None:
        """Makes folders and zarr metadata, which follow from the head, where a crash left none."""
        with self._space(), WriteGroup() as group:
            for folder in (self.folder, self.folder / COMMITS, self.folder / TOKEN_SHARDS):
                group.make_folder(folder)
            write_metadata(group, self.folder, self.layout)

    def _check_rows(self, shard: int, buffer: ShardBuffer, tokens: pa.Table) -> list[str]:
        w, of = self._writer
        mine = shard % of == w and 0 <= shard < self.layout.n_shards
        if not mine or record_path(self.folder, shard).exists():
            raise UsageError(f"shard {shard} is not pending", why="it is committed, another writer's, or out of range")
        return example_ids(shard, buffer, tokens)

    def _remove_leftovers(self, shard: int) -> None:
        """Removes what a writer that was killed left of a shard: tensorstore would read it before writing."""
        for path in (self.folder / file for file in (*shard_files(self.layout, shard), token_path(shard))):
            path.unlink(missing_ok=True)
            temporary_of(path).unlink(missing_ok=True)

    def _check_space(self, buffer: ShardBuffer, tokens: pa.Table) -> None:
        check_space(self.folder, buffer, tokens, kept=self._kept, hint=self._hint)
