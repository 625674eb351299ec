"""What all writers of runs on disk and in buckets do with one shard: its arrays, its token table, its memory."""

import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from traceformer.errors import OutOfSpace, UsageError
from traceformer.sites import ArraySpec, Stack
from traceformer.store.appended import Scratch
from traceformer.store.buffer import ShardBuffer
from traceformer.store.commits import CommitRecord, RunHead, configuration_digest
from traceformer.store.durable import WriteGroup
from traceformer.store.files import Checksum, checksum
from traceformer.store.filled import check_finite
from traceformer.store.hosts import Host
from traceformer.store.layout import RunLayout
from traceformer.store.marks import marked
from traceformer.store.objects.path import AnyPath
from traceformer.store.placing import Group
from traceformer.store.shards import is_written_directly, write_shard
from traceformer.store.sizes import filled_bytes
from traceformer.store.system import HAS_DIRECT_WRITES
from traceformer.store.tables import PARQUET, encodable
from traceformer.store.zarr3 import open_array, shard_region, write_metadata

if TYPE_CHECKING:
    import tensorstore as ts

__all__ = ["Buffers", "check_space", "check_writer", "record_of", "shard_files", "token_file", "write_arrays"]

_BUFFERS = 2
_SPARE_BYTES = 4 << 20


class Buffers:
    """The memory of the shards of one writer: one is filled while another is written.

    `scratch` says of each buffer, by number, where matrices go that no memory holds.
    """

    def __init__(self, layout: RunLayout, scratch: Callable[[int], Scratch | None] = lambda _: None) -> None:
        self._layout, self._scratch = layout, scratch
        self._free: list[ShardBuffer] = []
        self._made: list[ShardBuffer] = []
        self._returned = threading.Condition()

    def take(self) -> ShardBuffer:
        """Returns a buffer to fill; waits for one to be given back when both are in use."""
        with self._returned:
            while not self._free and len(self._made) == _BUFFERS:
                self._returned.wait()
            if self._free:
                return self._free.pop()
            self._made.append(ShardBuffer(self._layout, scratch=self._scratch(len(self._made))))
            return self._made[-1]

    def give_back(self, buffer: ShardBuffer) -> None:
        buffer.forget()
        with self._returned:
            self._free.append(buffer)
            self._returned.notify()

    def close(self) -> None:
        """Removes what went to files and was never committed."""
        for buffer in self._made:
            buffer.close()


def shard_files(layout: RunLayout, shard: int) -> list[str]:
    """Returns the names of all array files that a shard may have."""
    parts = (part for spec in layout.kept for part in layout.parts(spec))
    return [path for part in parts for path in layout.shard_files(part, shard)]


def write_arrays(
    group: Group,
    folder: AnyPath,
    shard: int,
    buffer: ShardBuffer,
    *,
    nan_is_unknown: bool,
    in_place: bool,
) -> dict[str, Checksum]:
    """Writes all arrays of a shard, a few at a time, those first that take longest, and returns their checksums.

    Args:
        group: What they are written with.
        folder: The run's.
        shard: Its number.
        buffer: Its content.
        nan_is_unknown: Whether a NaN stands for a row that an imported run lacks.
        in_place: Whether tensorstore, which some compressions need, may write where the run lies.

    Raises:
        NumericError: a value is inf or NaN.
    """

    def write(spec: ArraySpec) -> Sequence[tuple[str, Checksum]]:
        check_finite(shard, spec, buffer, nan_is_unknown=nan_is_unknown)
        files, appending = buffer.layout.shard_files(spec, shard), buffer.appending(spec)
        if appending is not None:
            assert isinstance(group, WriteGroup), "only what is written to a disk is begun there"
            assert isinstance(folder, Path)
            appended = appending.name(group, [folder / file for file in files])
            if appended is not None:
                return list(zip(files, appended, strict=True))
        return [each for part in buffer.parts(spec) for each in write_part(part)]

    def write_part(part: ArraySpec) -> Sequence[tuple[str, Checksum]]:
        files = buffer.layout.shard_files(part, shard)
        if is_written_directly(buffer.layout.codec_of(part)):
            chunks = zip(files, buffer.chunks(part), strict=True)
            return [(file, write_shard(group, folder / file, own)) for file, own in chunks]
        if in_place and isinstance(folder, Path):
            return _through_tensorstore(folder, shard, part, buffer)
        with TemporaryDirectory() as place:
            with WriteGroup() as aside:
                write_metadata(aside, Path(place), buffer.layout)
            written = _through_tensorstore(Path(place), shard, part, buffer)
            for file, _ in written:
                group.write_parts(folder / file, [memoryview((Path(place) / file).read_bytes())])
        return written

    pool = ThreadPoolExecutor(buffer.cores)
    specs = sorted(buffer.layout.kept, key=lambda spec: not spec.site.is_matrix)
    try:
        return {path: found for files in pool.map(write, specs) for path, found in files}
    finally:
        pool.shutdown(cancel_futures=True)


def _through_tensorstore(
    folder: Path, shard: int, spec: ArraySpec, buffer: ShardBuffer
) -> Sequence[tuple[str, Checksum]]:
    layout = buffer.layout
    files, index_bytes = layout.shard_files(spec, shard), layout.index_bytes(spec)
    array: Any = open_array(folder, layout, spec, _nothing_kept())
    used = int(buffer.offsets[spec.key.token_stack][-1]) if spec.site.is_per_token else 0
    region = array[shard_region(layout, spec, shard, used)]
    # The buffer is not touched before the write is done, so tensorstore need not copy it first.
    region.write(buffer.stored_rows(spec), can_reference_source_data_indefinitely=True).result()
    written = {file: checksum(folder / file, "xxh3_128") for file in files}
    return [(file, marked(folder / file, found, index_bytes)) for file, found in written.items()]


@cache
def _nothing_kept() -> "ts.Context":
    """Where tensorstore keeps nothing: a shard is written once and whole."""
    import tensorstore as ts  # most runs are written without it

    past_the_cache = {"file_io_mode": {"mode": "direct"}} if HAS_DIRECT_WRITES else {}
    return ts.Context({"cache_pool": {"total_bytes_limit": 0}, "data_copy_concurrency": {"limit": 2}, **past_the_cache})


def token_file(layout: RunLayout, shard: int, buffer: ShardBuffer, tokens: pa.Table) -> bytes:
    """Returns the file of a shard's token table: with where each example lies, `shard`, `slot`, and `dec_slot`."""
    tokens = encodable(tokens)
    count = tokens.num_rows
    tokens = tokens.append_column("shard", pa.array(np.full(count, shard, np.int32)))
    for stack in layout.stacks:
        slots = shard * layout.shard_slots(stack) + buffer.offsets[stack][:-1]
        name = "slot" if stack == layout.stacks[0] else f"{stack}_slot"
        tokens = tokens.append_column(name, pa.array(slots))
    sink = pa.BufferOutputStream()
    pq.write_table(tokens, sink, **PARQUET)
    return sink.getvalue().to_pybytes()


def record_of(
    head: RunHead,
    shard: int,
    writer: tuple[int, int],
    buffer: ShardBuffer,
    ids: Sequence[str],
    files: Mapping[str, Checksum],
    host: Host,
    source: Mapping[str, Any] | None = None,
) -> CommitRecord:
    """Returns the record that makes a shard of what was written."""
    return CommitRecord(
        shard=shard,
        writer=writer,
        configuration=configuration_digest(head.configuration),
        examples=tuple(ids),
        lengths={stack: tuple(map(int, own)) for stack, own in buffer.lengths.items()},
        files=files,
        host=host,
        source=source,
        rounded=buffer.roundings(),
    )


def check_space(folder: Path, buffer: ShardBuffer, tokens: pa.Table, *, kept: str, hint: str) -> None:
    """Looks whether the disk has room for a shard.

    Raises:
        OutOfSpace: it has not; `kept` and `hint` say what is there, and what would work.
    """
    lengths: dict[Stack, list[int]] = {stack: own.tolist() for stack, own in buffer.lengths.items()}
    pending = [spec for spec in buffer.layout.kept if buffer.appending(spec) is None]
    needed = filled_bytes(buffer.layout, lengths, pending) + tokens.nbytes + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutOfSpace(
            f"{free >> 20} MiB free for {folder}", why=f"the next shard may need {needed >> 20} MiB; {kept}", hint=hint
        )


def check_writer(writer: tuple[int, int], *, handed_out: bool = False) -> None:
    """Makes sure that writer w of W can be meant; with `handed_out`, W is 0 where somebody hands out the shards.

    Raises:
        UsageError: it cannot.
    """
    of = writer[0] + 1 if handed_out and writer[1] == 0 else writer[1]
    if not 0 <= writer[0] < of:
        raise UsageError(f"writer {writer[0]} of {writer[1]}", hint=f"number them 0 to {max(0, writer[1] - 1)}")
