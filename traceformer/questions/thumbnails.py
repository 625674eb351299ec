"""What do all heads look like in small? Thumbnails of an example's patterns, made once and kept beside the run."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from traceformer.analysis.thumbnails import long_thumbnail, part_starts, thumbnail
from traceformer.errors import NotRecorded, SelectionError, UsageError
from traceformer.progress import OnStep, steps_watched
from traceformer.shapes import UInt8
from traceformer.sites import ArraySpec
from traceformer.store.beside import kept
from traceformer.store.run import Run

__all__ = ["keep_thumbnails", "pattern_arrays", "thumbnail_groups", "thumbnails"]

_CELLS = 8 << 20  # of patterns that are read for one group: the first is there in a twentieth of a second


def pattern_arrays(run: Run) -> list[ArraySpec]:
    """Returns the patterns that a run holds: one array for each attention."""
    return [spec for spec in run.layout.arrays if spec.key.site == "attn_pattern"]


def thumbnail_groups(run: Run, example: int | str, spec: ArraySpec) -> list[range]:
    """Returns which heads of an attention are made and kept together.

    Those that are stored are counted layer by layer: number h is of layer h // heads, and there head h % heads.
    """
    queries, keys = (run.length(example, stack) for stack in (spec.key.stack, spec.key.key_stack))
    count = len(spec.layers) * len(spec.heads)
    step = max(1, _CELLS // max(1, queries * keys))
    if step > len(spec.heads):
        step -= step % len(spec.heads)  # whole layers
    return [range(start, min(start + step, count)) for start in range(0, count, step)]


def thumbnails(
    run: Run, example: int | str, spec: ArraySpec, heads: Sequence[int]
) -> UInt8[np.ndarray, "head row column"]:
    """Returns the thumbnails of one group of heads; see `traceformer.analysis.thumbnails`.

    Raises:
        SelectionError: these heads are no group.
        CorruptRun: the patterns are not as they were written.
    """
    row = run.row(example)
    if heads not in thumbnail_groups(run, row, spec):
        asked = f"heads {heads[0]} to {heads[-1]}" if heads else "no heads"
        raise SelectionError(f"{asked} of {spec.key} together", why="they are no group", hint="thumbnail_groups")
    shape = [len(part_starts(run.length(row, stack))) for stack in (spec.key.stack, spec.key.key_stack)]
    name = f"thumbnails-{row}-{spec.key.stack}-{spec.key.attention}-{heads[0]}-{heads[-1]}"
    pixels = kept(run, name, lambda: b"".join(_one(run, row, spec, head) for head in heads))
    return np.frombuffer(pixels, np.uint8).reshape(len(heads), *shape)


def _one(run: Run, row: int, spec: ArraySpec, head: int) -> bytes:
    layer, number = divmod(head, len(spec.heads))
    read = partial(run.get, row, spec.key, spec.layers[layer], spec.heads[number], dtype="stored")
    queries, keys = (run.length(row, stack) for stack in (spec.key.stack, spec.key.key_stack))
    if queries * keys <= _CELLS:
        return thumbnail(read()).tobytes()
    return long_thumbnail(lambda rows: read(queries=rows), queries, keys, _CELLS).tobytes()


def keep_thumbnails(run: Run, progress: OnStep | None = None) -> None:
    """Makes the thumbnails of all examples of a run and keeps them beside it, for the viewer.

    Raises:
        UsageError: the run is in memory, or not finished.
        NotRecorded: it holds no patterns.
    """
    if run.folder is None or not run.finished:
        why = "they are kept beside its folder" if run.folder is None else "some of its examples are yet to come"
        raise UsageError("thumbnails of a run that is not on disk, finished", why=why)
    specs = pattern_arrays(run)
    if not specs:
        why = run.about.why_no_patterns
        hint = 'record it with `capture="attn"`' if why is None else ""
        raise NotRecorded("this run holds no attention patterns", why=why or "", hint=hint)
    with steps_watched("drawing", progress) as told:
        for row in range(run.n):
            for spec in specs:
                for heads in thumbnail_groups(run, row, spec):
                    thumbnails(run, row, spec, heads)
            told(row + 1, run.n)
