"""Where a stream ends: the number of its examples, which nobody knew, is stated with the run, and the run is finished.

1. A run over a stream is laid out for more examples than will ever come (`OPEN_ENDED`); only its records tell how many
   there are. All shards but the last are full.
2. When it ends, the head is written once more, with their number, and how many tokens they have. From then on it is a
   run like any other.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from traceformer.errors import UsageError
from traceformer.store.commits import CommitRecord, RunHead
from traceformer.store.folders import find_run
from traceformer.store.locks import claiming, lock_writer

if TYPE_CHECKING:
    import pyarrow as pa

    from traceformer.store.run import Run

__all__ = ["closed_head", "finish"]


def closed_head(head: RunHead, records: Iterable[CommitRecord], tables: Iterable["pa.Table"]) -> RunHead:
    """Returns the head of a run over a stream that ended, and any other as it is.

    Args:
        head: As the run was begun with.
        records: Those of all shards.
        tables: Their token tables; only of `truncated` is anything needed.
    """
    if not head.layout.is_open:
        return head
    n_examples, total = 0, dict.fromkeys(head.layout.stacks, 0)
    for record in records:
        n_examples += len(record.examples)
        for stack in total:
            total[stack] += sum(record.lengths[stack])
    cut = sum(sum(table.column("truncated").to_pylist()) for table in tables if "truncated" in table.column_names)
    tokens = {"total": total, "truncated_texts": cut, "truncated_targets": 0}
    return replace(
        head,
        meta={**head.meta, "n_examples": n_examples, "tokens": tokens},
        layout=replace(head.layout, n_examples=n_examples),
    )


def finish(run: "Run | str | Path") -> "Run":
    """Returns an unfinished run over a stream, finished with what was committed: it ends there.

        tf.finish("traces/x")

    A run that is finished is returned as it is.

    Args:
        run: The run, or what `open_run` takes.

    Raises:
        NotFound: there is no such run.
        UsageError: the run is not over a stream, or nothing of it was committed.
        RunExists: another process is writing it, or a finished run is in its place.
        OutOfSpace: the disk is full; what was committed stays.
    """
    from traceformer.store.run import Run
    from traceformer.store.writer import RunWriter

    opened = run if isinstance(run, Run) else Run(find_run(str(run)))
    if opened.finished:
        return opened
    folder = opened.on_disk().folder
    if not isinstance(folder, Path) or not RunHead.read(folder).is_of_stream:
        raise UsageError(
            f"{folder} is not over a stream", why="shards of its data set are missing", hint="`resume=True` goes on"
        )
    if not opened.n:
        raise UsageError(f"nothing of {folder} was committed", hint="`resume=True` goes on; or remove the folder")
    with claiming(folder):
        lock = lock_writer(folder, (0, 1))
    try:
        with RunWriter(folder, RunHead.read(folder), (0, 1), lock, overwrite=False) as writer:
            return Run(writer.finish())
    finally:
        lock.release()
