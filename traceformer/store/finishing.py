"""Turns the committed shards of all writers into a finished run; each step can be done again after a crash."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from traceformer.errors import CorruptRun, RunExists
from traceformer.shapes import Int32
from traceformer.sites import Stack
from traceformer.store.commits import CommitRecord, RunHead, read_commits, token_path, write_manifest
from traceformer.store.durable import WriteGroup
from traceformer.store.ending import closed_head
from traceformer.store.files import TEMPORARY
from traceformer.store.layout import TOKENS, RunLayout
from traceformer.store.locks import claiming, refuse_existing
from traceformer.store.replacing import move_aside, remove_aside
from traceformer.store.shards import write_chunk
from traceformer.store.system import patiently, rename, sync_folder
from traceformer.store.tables import PARQUET, common_schema, with_schema
from traceformer.store.zarr3 import EMPTY_SLOT, POSITIONS_PER_FILE, position_arrays, write_metadata

__all__ = ["finish_run"]


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
    records = list(read_commits(folder, head))
    if head.layout.is_open:
        head = _closed(folder, head, records)
    layout = head.layout
    last = layout.n_shards - 1
    n_slots: dict[Stack, int] = {s: last * layout.shard_slots(s) + sum(records[last].lengths[s]) for s in layout.stacks}
    for pattern in (f"*{TEMPORARY}", "*.__lock"):
        for path in folder.rglob(pattern):
            path.unlink()
    with WriteGroup() as group:
        write_metadata(group, folder, layout, n_slots)
        for stack in layout.stacks:
            lengths = [record.lengths[stack] for record in records]
            _write_positions(group, folder, layout, stack, lengths, n_slots[stack])
        _join_tokens(group, folder, records)
    for path in folder.glob(".lock-*"):
        patiently(path.unlink)  # whoever held one has written all, and is about to end
    write_manifest(folder, head)


def _closed(folder: Path, head: RunHead, records: Sequence[CommitRecord]) -> RunHead:
    """Returns the head of a stream's run, written once more with the number of its examples.

    Raises:
        CorruptRun: a shard in between has lost its record.
    """
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


def _join_tokens(group: WriteGroup, folder: Path, records: Sequence[CommitRecord]) -> None:
    paths = [folder / token_path(record.shard) for record in records]
    schema = common_schema([pq.read_schema(path) for path in paths])
    with group.open(folder / TOKENS) as file, pq.ParquetWriter(file, schema, **PARQUET) as writer:
        for path in paths:
            writer.write_table(with_schema(pq.read_table(path), schema))


def _write_positions(
    group: WriteGroup,
    folder: Path,
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
