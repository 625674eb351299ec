"""Writes a run that can be read already to a folder, shard by shard: from memory to disk, or a copy."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from traceformer.errors import UsageError
from traceformer.progress import quiet
from traceformer.store.aliases import Aliases
from traceformer.store.source import Source
from traceformer.store.writer import RunWriter
from traceformer.store.zarr3 import reading

__all__ = ["save_run"]

_PLACES = ("shard", "slot", "dec_slot")


def save_run(
    source: Source,
    folder: Path,
    *,
    overwrite: bool,
    aliases: Aliases | None = None,
    progress: Callable[[int], object] = quiet,
) -> Path:
    """Returns the folder of the run that was written there; its array files are those of a run recorded there.

    Args:
        source: What is written.
        folder: Where it goes.
        overwrite: Whether to replace a run that is there.
        aliases: Which layers are another one's, and need not be stored; those of the source for None.
        progress: Told how many shards are written.

    Raises:
        UsageError: the run is not finished.
        RunExists: something is at `folder` and may not be replaced.
        OutOfSpace: the disk is full.
    """
    if not source.finished:
        raise UsageError(f"{source.name} is not finished", why="a part of a run is not saved as a whole one")
    index, layout, table = source.index, source.head.layout, source.token_table()
    layout = layout if aliases is None else replace(layout, aliases=aliases)
    table = table.drop_columns([name for name in _PLACES if name in table.column_names])
    meta = {**source.head.meta, "run_id": folder.name}
    with RunWriter.create(
        folder, layout, meta, digest=source.head.configuration, overwrite=overwrite, resumable=False
    ) as writer:
        for done, shard in enumerate(writer.pending, 1):
            rows, buffer = index.rows_of(shard), writer.buffer()
            buffer.begin({stack: own[rows.start : rows.stop].tolist() for stack, own in index.lengths.items()})
            for spec in layout.kept:
                lead = (slice(None),) * (bool(spec.layers) + bool(spec.heads))
                for b, row in enumerate(rows):
                    view = source.part(spec, range(row, row + 1), lead)
                    with reading(f"{source.name}/{layout.array_path(spec.key)}"):
                        values = view.read().result()
                    buffer.part(spec, b)[...] = values if spec.site.is_per_token else values[0]
            writer.commit(shard, buffer, table.slice(rows.start, len(rows)))
            progress(done)
        return writer.finish()
