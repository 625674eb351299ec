"""Writes a run that can be read already to a folder, shard by shard: from memory to disk, or a copy."""

from collections.abc import Callable
from pathlib import Path

from traceformer.errors import Unsupported, UsageError
from traceformer.progress import quiet
from traceformer.store.layout import RunLayout
from traceformer.store.objects.path import AnyPath, is_bucket
from traceformer.store.source import Source
from traceformer.store.writer import RunWriter
from traceformer.store.zarr3 import reading

__all__ = ["save_run"]

_PLACES = ("shard", "slot", "dec_slot")


def save_run(
    source: Source,
    folder: AnyPath,
    *,
    overwrite: bool,
    layout: RunLayout | None = None,
    progress: Callable[[int], object] = quiet,
) -> Path:
    """Returns the folder of the run that was written there; its array files are those of a run recorded there.

    Args:
        source: What is written.
        folder: Where it goes.
        overwrite: Whether to replace a run that is there.
        layout: How it is laid out, with the same arrays and shards; as the source is for None.
        progress: Told how many shards are written.

    Raises:
        UsageError: the run is not finished.
        Unsupported: the folder is in a bucket.
        RunExists: something is at `folder` and may not be replaced.
        OutOfSpace: the disk is full.
    """
    if not isinstance(folder, Path) or is_bucket(folder):
        hint = "save it on a disk, then copy it there: tf.sync(run, place)"
        raise Unsupported(f"a run cannot be saved to {folder}", why="that is a bucket", hint=hint)
    if not source.finished:
        raise UsageError(f"{source.name} is not finished", why="a part of a run is not saved as a whole one")
    index, table, layout = source.index, source.token_table(), layout or source.head.layout
    table = table.drop_columns([name for name in _PLACES if name in table.column_names])
    meta = {**source.head.meta, "run_id": folder.name}
    with RunWriter.create(
        folder, layout, meta, digest=source.head.configuration, overwrite=overwrite, resumable=False
    ) as writer:
        for done, shard in enumerate(writer.pending, 1):
            rows, buffer = index.rows_of(shard), writer.buffer()
            buffer.begin({stack: own[rows.start : rows.stop].tolist() for stack, own in index.lengths.items()})
            for spec in layout.kept:
                if layout.stored(spec) == "q8":
                    buffer.put_rounded(spec, source.rounded(spec, shard))
                    continue
                lead = (slice(None),) * (bool(spec.layers) + bool(spec.heads))
                for b, row in enumerate(rows):
                    if spec.site.is_matrix:
                        buffer.put(spec, b, source.matrix(spec, row, lead))
                        continue
                    view = source.part(spec, range(row, row + 1), lead)
                    with reading(f"{source.name}/{layout.array_path(spec.key)}"):
                        values = view.read().result()
                    buffer.put(spec, b, values if spec.site.is_per_token else values[0])
            writer.commit(shard, buffer, table.slice(rows.start, len(rows)), index.hosts[shard])
            progress(done)
        return writer.finish()
