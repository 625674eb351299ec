"""Writes a run shard by shard, so that it can be killed at any moment and resumed to the same bytes.

1. `create` makes `_tmp_<name>` beside the run's folder: zarr metadata, then the head, which makes it a run.
2. `commit` writes a shard's arrays and its token table, which become durable together, and then its record, which makes
   it a shard. Files of a shard without a record are removed before it is written again.
3. `finish`, once all shards of all writers have records, trims the token axes, adds their coordinates, joins the
   token tables, writes the manifest, and renames the folder.

Writer w of W writes the shards k with k mod W = w under its own lock; no two write the same file.
"""

import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from traceformer.errors import NotFound, OutOfSpace, UsageError
from traceformer.sites import ArraySpec, Stack
from traceformer.store.buffer import ShardBuffer
from traceformer.store.commits import (
    CommitRecord,
    RunHead,
    committed_shards,
    configuration_digest,
    record_path,
    token_path,
)
from traceformer.store.durable import WriteGroup, temporary_of
from traceformer.store.files import Checksum, FileLock, checksum, free_space
from traceformer.store.filled import check_finite, example_ids
from traceformer.store.finishing import finish_run
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
from traceformer.store.marks import marked
from traceformer.store.meta import RunMeta
from traceformer.store.replacing import check_place, check_unfinished, is_run, remove_run
from traceformer.store.shards import is_written_directly, write_shard
from traceformer.store.sizes import filled_bytes
from traceformer.store.system import HAS_DIRECT_WRITES
from traceformer.store.tables import PARQUET, encodable
from traceformer.store.zarr3 import Array, open_array, shard_region, write_metadata

if TYPE_CHECKING:
    import tensorstore as ts

__all__ = ["RunWriter", "ShardBuffer", "find_unfinished", "unfinished_folder"]

_BUFFERS = 2
_SPARE_BYTES = 4 << 20


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
        self._arrays: dict[str, Array] = {}
        self._free: list[ShardBuffer] = []
        self._made = 0
        self.bytes_written = 0
        self._returned = threading.Condition()
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
        _check_writer(writer)
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
        _check_writer(writer)
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
        self._lock.release()

    @property
    def pending(self) -> list[int]:
        """The shards this writer still has to write, in order."""
        w, of = self._writer
        return sorted(set(range(w, self.layout.n_shards, of)) - set(committed_shards(self.folder)))

    def buffer(self) -> ShardBuffer:
        """Returns a buffer to fill; waits for a commit when both are in use."""
        with self._returned:
            while not self._free and self._made == _BUFFERS:
                self._returned.wait()
            if self._free:
                return self._free.pop()
            self._made += 1
        return ShardBuffer(self.layout)

    def commit(self, shard: int, buffer: ShardBuffer, tokens: pa.Table) -> None:
        """Writes a shard durably and takes the buffer back, also when it fails.

        Args:
            shard: One of `pending`.
            buffer: Filled for the shard's examples.
            tokens: One row per example in the data set's order, with at least `example_id`.

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
                path, table = token_path(shard), self._with_places(shard, buffer, encodable(tokens))
                with WriteGroup() as group:
                    files = self._write_arrays(group, shard, buffer)
                    files[path] = group.write(self.folder / path, _parquet(table))
                record = CommitRecord(
                    shard=shard,
                    writer=self._writer,
                    configuration=configuration_digest(self._head.configuration),
                    examples=tuple(ids),
                    lengths={stack: tuple(map(int, own)) for stack, own in buffer.lengths.items()},
                    files=files,
                )
                record.write(self.folder)
                self.bytes_written += sum(file.bytes for file in record.files.values())
        finally:
            buffer.compressed.clear()
            with self._returned:
                self._free.append(buffer)
                self._returned.notify()

    def finish(self) -> Path:
        """Returns the finished run's folder, or the unfinished one while shards (of other writers) are missing."""
        final = final_folder(self.folder)
        if len(committed_shards(self.folder)) == self.layout.n_shards:
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
        files = [path for spec in self.layout.kept for path in self.layout.shard_files(spec, shard)]
        for path in (self.folder / file for file in (*files, token_path(shard))):
            path.unlink(missing_ok=True)
            temporary_of(path).unlink(missing_ok=True)

    def _check_space(self, buffer: ShardBuffer, tokens: pa.Table) -> None:
        lengths: dict[Stack, list[int]] = {stack: own.tolist() for stack, own in buffer.lengths.items()}
        needed = filled_bytes(self.layout, lengths) + tokens.nbytes + _SPARE_BYTES
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OutOfSpace(
                f"{free >> 20} MiB free for {self.folder}",
                why=f"the next shard may need {needed >> 20} MiB; {self._kept}",
                hint=self._hint,
            )

    def _write_arrays(self, group: WriteGroup, shard: int, buffer: ShardBuffer) -> dict[str, Checksum]:
        """Writes all arrays, a few at a time, those first that take longest."""
        pool = ThreadPoolExecutor(buffer.cores)
        specs = sorted(self.layout.kept, key=lambda spec: not spec.site.is_matrix)
        try:
            written = pool.map(lambda spec: self._write_array(group, shard, spec, buffer), specs)
            return {path: found for files in written for path, found in files}
        finally:
            pool.shutdown(cancel_futures=True)

    def _write_array(
        self, group: WriteGroup, shard: int, spec: ArraySpec, buffer: ShardBuffer
    ) -> Sequence[tuple[str, Checksum]]:
        check_finite(shard, spec, buffer, nan_is_unknown=self._nan_is_unknown)
        layout = self.layout
        files, index_bytes = layout.shard_files(spec, shard), layout.index_bytes(spec)
        if is_written_directly(layout.codec_of(spec)):
            chunks = zip(files, buffer.chunks(spec), strict=True)
            return [(file, write_shard(group, self.folder / file, part)) for file, part in chunks]
        path = layout.array_path(spec.key)
        if path not in self._arrays:
            self._arrays[path] = open_array(self.folder, layout, spec, self._context)
        used = int(buffer.offsets[spec.key.token_stack][-1]) if spec.site.is_per_token else 0
        region = self._arrays[path][shard_region(layout, spec, shard, used)]
        # The buffer is not touched before the write is done, so tensorstore need not copy it first.
        region.write(buffer.filled(spec), can_reference_source_data_indefinitely=True).result()
        written = {file: checksum(self.folder / file, "xxh3_128") for file in files}
        return [(file, marked(self.folder / file, found, index_bytes)) for file, found in written.items()]

    @cached_property
    def _context(self) -> "ts.Context":
        """Where tensorstore keeps nothing: a shard is written once and whole."""
        import tensorstore as ts  # most runs are written without it

        past_the_cache = {"file_io_mode": {"mode": "direct"}} if HAS_DIRECT_WRITES else {}
        return ts.Context(
            {"cache_pool": {"total_bytes_limit": 0}, "data_copy_concurrency": {"limit": 2}, **past_the_cache}
        )

    def _with_places(self, shard: int, buffer: ShardBuffer, tokens: pa.Table) -> pa.Table:
        """Returns the table with where each example lies: `shard`, `slot`, and `dec_slot` beside an encoder's."""
        count = tokens.num_rows
        tokens = tokens.append_column("shard", pa.array(np.full(count, shard, np.int32)))
        for stack in self.layout.stacks:
            slots = shard * self.layout.shard_slots(stack) + buffer.offsets[stack][:-1]
            name = "slot" if stack == self.layout.stacks[0] else f"{stack}_slot"
            tokens = tokens.append_column(name, pa.array(slots))
        return tokens


def _parquet(tokens: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(tokens, sink, **PARQUET)
    return sink.getvalue().to_pybytes()


def _check_writer(writer: tuple[int, int]) -> None:
    if not 0 <= writer[0] < writer[1]:
        raise UsageError(f"writer {writer[0]} of {writer[1]}", hint=f"number them 0 to {max(0, writer[1] - 1)}")
