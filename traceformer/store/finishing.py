"""Turns the committed shards of all writers into a finished run; each step can be done again after a crash."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from traceformer.errors import CorruptRun, RunExists
from traceformer.shapes import Int32
from traceformer.sites import ArraySpec, Stack
from traceformer.store.commits import CommitRecord, RunHead, manifest_of, read_commits, token_path, write_manifest
from traceformer.store.durable import WriteGroup
from traceformer.store.ending import closed_head
from traceformer.store.files import TEMPORARY
from traceformer.store.layout import EXAMPLES, LEASES, TOKENS, RunLayout
from traceformer.store.locks import claiming, refuse_existing
from traceformer.store.lookup import FEW_SHARDS, lookup_bytes
from traceformer.store.objects.path import AnyPath, ObjectPath, each_of
from traceformer.store.placing import CheckMine, Group, ObjectGroup
from traceformer.store.replacing import move_aside, remove_aside
from traceformer.store.shards import write_chunk
from traceformer.store.system import patiently, rename, sync_folder
from traceformer.store.tables import PARQUET, common_schema, with_schema
from traceformer.store.zarr3 import (
    EMPTY_SLOT,
    POSITIONS_PER_FILE,
    massive_arrays,
    massive_per_file,
    position_arrays,
    write_metadata,
)

__all__ = ["complete_in_bucket", "finish_run"]


def finish_run(unfinished: Path, final: Path, head: RunHead, *, overwrite: bool) -> None:
    """Completes the run in `unfinished` and renames it to `final`; returns at once if another writer did.

    Raises:
        RunExists: something is at `final` and may not be replaced; the unfinished run stays.
    """
    with claiming(unfinished):
        if unfinished.exists():
            _complete(unfinished, head)
            _move_in(unfinished, final, overwrite=overwrite)


def _complete(folder: Path, head: RunHead) -> None:
    for pattern in (f"*{TEMPORARY}", "*.__lock"):
        for path in folder.rglob(pattern):
            path.unlink(missing_ok=True)
    head = _closed(folder, head)
    with WriteGroup() as group:
        _write_whole(group, folder, head)
    shutil.rmtree(folder / LEASES, ignore_errors=True)
    for path in folder.glob(".lock-*"):
        patiently(path.unlink)  # whoever held one has written all, and is about to end
    write_manifest(folder, head)


def complete_in_bucket(folder: ObjectPath, head: RunHead, check_mine: CheckMine) -> bytes:
    """Completes the run at a prefix, where it stays, and returns its manifest, with which it will be finished.

    Whoever else does the same writes the same; `check_mine` raises once nobody need any more.
    """
    with ObjectGroup(check_mine) as group:
        _write_whole(group, folder, head)
    return manifest_of(folder, head)


def _write_whole(group: Group, folder: AnyPath, head: RunHead) -> None:
    """Writes what all shards together have: metadata with the true sizes, positions of tokens, the token table."""
    layout = head.layout
    records = list(read_commits(folder, head))
    last = layout.n_shards - 1
    n_slots: dict[Stack, int] = {s: last * layout.shard_slots(s) + sum(records[last].lengths[s]) for s in layout.stacks}
    errors = {
        spec.key: max(record.rounded[str(spec.key)].error for record in records) for _, spec in massive_arrays(layout)
    }
    write_metadata(group, folder, layout, n_slots, errors)
    for path, spec in massive_arrays(layout):
        _write_massive(group, folder / path, layout, spec, records)
    for stack in layout.stacks:
        lengths = [record.lengths[stack] for record in records]
        _write_positions(group, folder, layout, stack, lengths, n_slots[stack])
    schema = _join_tokens(group, folder, records)
    if layout.n_shards > FEW_SHARDS:
        group.write(folder / EXAMPLES, lookup_bytes(head, records, schema))


def _closed(folder: Path, head: RunHead) -> RunHead:
    """Returns the head of a stream's run, written once more with the number of its examples; any other as it is.

    Raises:
        CorruptRun: a shard in between has lost its record.
    """
    if not head.layout.is_open:
        return head
    records = list(read_commits(folder, head))
    if [record.shard for record in records] != list(range(len(records))):
        raise CorruptRun(f"{folder} has lost commit records", hint="traceformer verify lists the damage")
    tables = (pq.read_table(folder / token_path(record.shard), columns=["truncated"]) for record in records)
    head = closed_head(head, records, tables)
    head.write(folder)
    return head


def _move_in(unfinished: Path, final: Path, *, overwrite: bool) -> None:
    """Renames the run. One that it replaces is moved aside first and deleted last, so one of both is always there."""
    if final.exists():
        if not overwrite:
            raise RunExists(f"{final} was made meanwhile", hint=f"move it away; this run is complete in {unfinished}")
        refuse_existing(final, overwrite)
        remove_aside(final)
        move_aside(final)
    rename(unfinished, final)
    sync_folder(final.parent)
    remove_aside(final)


def _join_tokens(group: Group, folder: AnyPath, records: Sequence[CommitRecord]) -> pa.Schema:
    """Writes the tables of all shards as one, and returns its schema."""
    paths = [folder / token_path(record.shard) for record in records]
    schema = common_schema([*each_of(folder, lambda path: pq.read_schema(_to_read(path)), paths)])
    with group.open(folder / TOKENS) as file, pq.ParquetWriter(file, schema, **PARQUET) as writer:
        for table in each_of(folder, lambda path: pq.read_table(_to_read(path)), paths):
            writer.write_table(with_schema(table, schema))
    return schema


def _to_read(path: AnyPath) -> Any:
    return pa.BufferReader(path.read_bytes()) if isinstance(path, ObjectPath) else path


def _write_massive(
    group: Group, folder: AnyPath, layout: RunLayout, spec: ArraySpec, records: Sequence[CommitRecord]
) -> None:
    """Writes which channels of an array each shard keeps exactly; of shards without any there is no file."""
    lead, most, per_file = layout.buffer_shape(spec)[:-2], layout.parts(spec)[-1].width, massive_per_file(layout)
    for start in range(0, len(records), per_file):
        named = np.full((per_file, *lead, most), EMPTY_SLOT, "<i4")
        for own, record in zip(named, records[start : start + per_file], strict=False):
            for at, channels in zip(np.ndindex(lead), record.rounded[str(spec.key)].massive, strict=True):
                own[at][: len(channels)] = channels
        if (named != EMPTY_SLOT).any():
            path = folder / ".".join(("c", str(start // per_file), *"0" * (len(lead) + 1)))
            write_chunk(group, [path], named.reshape(-1).view(np.uint8))


def _write_positions(
    group: Group,
    folder: AnyPath,
    layout: RunLayout,
    stack: Stack,
    lengths: Sequence[Sequence[int]],
    n_slots: int,
) -> None:
    arrays = [folder / path for path, of in position_arrays(layout) if of == stack]
    for start, examples, positions in _position_blocks(layout, stack, lengths, n_slots):
        for what, values in (("example", examples), ("position", positions)):
            chunk = np.full(POSITIONS_PER_FILE, EMPTY_SLOT, "<i4")
            chunk[: len(values)] = values
            paths = [path / f"c.{start // POSITIONS_PER_FILE}" for path in arrays if path.name.endswith(what)]
            write_chunk(group, paths, chunk.view(np.uint8))


def _position_blocks(
    layout: RunLayout, stack: Stack, lengths: Sequence[Sequence[int]], n_slots: int
) -> Iterator[tuple[int, Int32[np.ndarray, "slot"], Int32[np.ndarray, "slot"]]]:
    """Yields, file by file, the first slot and for each slot its example and its position there, or -1."""
    per_shard = layout.shard_slots(stack)
    for start in range(0, n_slots, POSITIONS_PER_FILE):
        stop = min(start + POSITIONS_PER_FILE, n_slots)
        examples = np.full(stop - start, EMPTY_SLOT, np.int32)
        positions = np.full(stop - start, EMPTY_SLOT, np.int32)
        for shard in range(start // per_shard, (stop - 1) // per_shard + 1):
            own = np.asarray(lengths[shard])
            within = np.arange(own.sum()) - np.repeat(np.cumsum(own) - own, own)
            of = np.repeat(layout.shard_range(shard).start + np.arange(len(own)), own)
            first = shard * per_shard - start
            skipped = max(0, -first)
            kept = min(len(of), stop - start - first)
            if kept > skipped:
                examples[first + skipped : first + kept] = of[skipped:kept]
                positions[first + skipped : first + kept] = within[skipped:kept]
        yield start, examples, positions
