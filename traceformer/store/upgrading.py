"""A run of an older format, written anew in the newest one.

1. Which rows are another array's is not known of an older run: all its rows are read, shard by shard, and compared bit
   for bit. Layers that are equal in every example are kept once.
2. So it is with patterns: those in which no query of any example looks at a later key become packed triangles.
3. The run is written as any other is: beside its place, and renamed when it is complete.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from traceformer.errors import Unsupported, UsageError
from traceformer.progress import OnStep, steps_watched
from traceformer.shapes import Shaped
from traceformer.sites import ArrayKey, Stack
from traceformer.store.aliases import Aliases, Rows, each_once
from traceformer.store.folder import RunFolder
from traceformer.store.folders import open_run
from traceformer.store.layout import FORMAT_VERSION
from traceformer.store.objects.path import is_bucket
from traceformer.store.run import Run
from traceformer.store.saving import save_run
from traceformer.store.zarr3 import reading

__all__ = ["upgrade"]


def upgrade(
    run: Run | str | Path,
    out: str | Path | None = None,
    *,
    replace: bool = False,
    overwrite: bool = False,
    progress: OnStep | None = None,
) -> Run:
    """Returns the run in the newest format: equal rows stored once, causal patterns as triangles; all numbers stay.

        tf.upgrade("traces/old")                  # to traces/old_format3; the old run stays
        tf.upgrade("traces/old", replace=True)    # in its place

    A run that is of the newest format already is returned as it is, and nothing is written.

    Args:
        run: A finished run on disk, or what `open_run` takes.
        out: Where the new run goes; beside the old one, under a name of its own, for None.
        replace: Put it in the old one's place. That one is removed when the new one is complete.
        overwrite: Replace a run that is at `out`, finished or not.
        progress: Told of each shard that has been compared, or written.

    Raises:
        UsageError: `out` beside `replace`, or the run is not finished.
        Unsupported: the run is in memory, or the new one would go to a bucket.
        RunExists: something is in the way.
        CorruptRun: the old run is not as it was written; it stays.
        OutOfSpace: the disk is full; the old run stays.
    """
    if out is not None and replace:
        raise UsageError(
            "`out` and `replace`", why="one says where the new run goes, the other that it is the old place"
        )
    old = run if isinstance(run, Run) else open_run(run)
    source = old.on_disk()
    if source.head.version == FORMAT_VERSION:
        return old
    beside = source.folder.with_name(f"{source.folder.name}_format{FORMAT_VERSION}")
    folder = source.folder if replace else beside if out is None else Path(out)
    if is_bucket(folder):
        hint = "give `out` on a disk; tf.sync(run, place) copies it to a bucket"
        raise Unsupported(
            f"a run in the newest format cannot be written to {folder}", why="that is a bucket", hint=hint
        )
    with steps_watched("upgrading", progress) as step:
        count = len(source.index.shards)
        aliases = _equal_rows(source, lambda done: step(done, 2 * count))
        layout = source.head.layout.packed(frozenset(_causal_patterns(source)))
        save_run(
            source,
            folder,
            layout=dataclasses.replace(layout, aliases=aliases),
            overwrite=replace or overwrite,
            progress=lambda done: step(count + done, 2 * count),
        )
    return Run(folder)


def _causal_patterns(source: RunFolder) -> Iterator[ArrayKey]:
    """Yields the arrays of patterns in which no query looks at a later key, in all examples."""
    for spec in source.head.layout.arrays:
        if spec.key.site == "attn_pattern" and spec.key.attention == "self":
            matrices = (source.matrix(spec, row, (slice(None),) * 2) for row in range(source.index.n))
            if not any(np.triu(matrix, 1).any() for matrix in matrices):
                yield spec.key


def _equal_rows(source: RunFolder, progress: Callable[[int], object]) -> Aliases:
    """Returns which layers of a run are another one's, in all its examples, as they are stored."""
    arrays, about = source.head.layout.arrays, source.head.about
    depths: dict[Stack, int] = {}
    for stack in source.head.layout.stacks:
        if (n_layers := about.dims_of(stack).n_layers) is not None:
            depths[stack] = n_layers
    equal: list[tuple[Rows, Rows]] = []
    each_once(arrays, depths, lambda one, other: equal.append((one, other)) or False)  # every two that may be
    for done, shard in enumerate(source.index.shards, 1):
        equal = _equal_in(source, shard, equal)
        progress(done)
    return each_once(arrays, depths, lambda one, other: (one, other) in equal)


def _equal_in(source: RunFolder, shard: int, pairs: Sequence[tuple[Rows, Rows]]) -> list[tuple[Rows, Rows]]:
    """Returns those of the pairs that are equal in a shard."""
    specs = {spec.key: spec for spec in source.head.layout.arrays}

    @lru_cache(3)  # what may be equal comes together
    def bits(rows: Rows) -> Shaped[np.ndarray, "token d"]:
        spec = specs[rows.key]
        lead = () if rows.layer is None else (spec.layers.index(rows.layer),)
        view = source.part(spec, source.index.rows_of(shard), lead)
        with reading(f"{source.name}/{source.head.layout.array_path(rows.key)}"):
            return view.read().result().view(np.uint8)

    return [(one, other) for one, other in pairs if np.array_equal(bits(one), bits(other))]
