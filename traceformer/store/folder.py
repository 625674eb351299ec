"""A run in a folder, opened: its committed shards, and views of the arrays in them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from traceformer.errors import CorruptRun, NotFound
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.commits import RunHead, read_commits, token_path
from traceformer.store.index import RunIndex
from traceformer.store.layout import MANIFEST, META, TOKENS
from traceformer.store.source import Lead
from traceformer.store.zarr3 import Array, open_array, reading

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["RunFolder"]

_CACHE_BYTES = 32 << 20


class RunFolder:
    """The source of a run on disk; see `Source`."""

    def __init__(self, folder: Path, head: RunHead, index: RunIndex, *, finished: bool) -> None:
        self.folder = folder
        self.head = head
        self.index = index
        self.finished = finished
        import tensorstore as ts

        self._context = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
        self._open: dict[ArrayKey, Array] = {}
        self._seen: set[tuple[ArrayKey, int]] = set()

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Returns the run in a folder, finished or not.

        Raises:
            NotFound: there is no run; the hint names an unfinished one.
            Unreadable: a later version wrote it, or something else did.
            CorruptRun: its head or a commit record was changed or is missing.
        """
        unfinished = folder.with_name(f"_tmp_{folder.name}")
        if not (folder / META).exists() and (unfinished / META).exists():
            raise NotFound(f"no run in {folder}", why="it is not finished", hint=f"open {unfinished}, or `resume=True`")
        if not (folder / META).exists() and (runs := sorted(folder.glob(f"*/{META}"))):
            several = f"it is a folder of {len(runs)} run{'s' if len(runs) > 1 else ''}"
            raise NotFound(f"no run in {folder}", why=several, hint=f"open {runs[-1].parent}")
        head = RunHead.read(folder)
        finished = (folder / MANIFEST).exists()
        index = RunIndex.build(head.layout, read_commits(folder, head))
        if finished and len(index.shards) < head.layout.n_shards:
            raise CorruptRun(f"{folder} has lost commit records", hint="traceformer verify lists the damage")
        return cls(folder, head, index, finished=finished)

    @property
    def name(self) -> str:
        return str(self.folder)

    def steps(self, spec: ArraySpec) -> Iterable[range]:
        self._check_files(spec, self.index.shards)
        return [self.index.rows_of(shard) for shard in self.index.shards]

    def part(self, spec: ArraySpec, rows: range, lead: Lead) -> Array:
        index, own = self.index, slice(rows.start, rows.stop)
        array = self.array(spec, (int(index.shard_of[rows.start]),))
        if spec.site.is_matrix:
            first = int(index.examples[rows.start])
            queries, keys = index.lengths[spec.key.stack][own].max(), index.lengths[spec.key.key_stack][own].max()
            return array[(slice(first, first + len(rows)), *lead, slice(0, int(queries)), slice(0, int(keys)))]
        if spec.site.is_per_example:
            first = int(index.examples[rows.start])
            return array[(slice(first, first + len(rows)), *lead)]
        first = int(index.slots[spec.key.token_stack][rows.start])
        return array[(*lead, slice(first, first + int(index.lengths[spec.key.token_stack][own].sum())))]

    def whole(self, spec: ArraySpec) -> Array:
        return self.array(spec, self.index.shards)

    def array(self, spec: ArraySpec, shards: Sequence[int]) -> Array:
        """Returns the array on disk, once the files of the shards to be read are known to be there.

        A file that is not there would read as zeros.

        Raises:
            CorruptRun: one is missing.
        """
        self._check_files(spec, shards)
        if spec.key not in self._open:
            path = self.head.layout.array_path(spec.key)
            self._open[spec.key] = open_array(self.folder, path, self._context)
        return self._open[spec.key]

    def _check_files(self, spec: ArraySpec, shards: Sequence[int]) -> None:
        for shard in shards:
            if (spec.key, shard) not in self._seen:
                for path in self.head.layout.shard_files(spec, shard):
                    if not (self.folder / path).exists():
                        raise CorruptRun(f"{self.folder / path} is missing", hint="traceformer verify lists the damage")
                self._seen.add((spec.key, shard))

    def token_table(self) -> "pa.Table":
        import pyarrow as pa
        import pyarrow.parquet as pq

        from traceformer.store.tables import joined

        with reading(str(self.folder / TOKENS)):
            if self.finished:
                return pq.read_table(self.folder / TOKENS)
            tables = [pq.read_table(self.folder / token_path(shard)) for shard in self.index.shards]
        return joined(tables) if tables else pa.table({"example_id": []})

    def token_row(self, row: int) -> dict[str, Any]:
        import pyarrow.parquet as pq

        shard = int(self.index.shard_of[row])
        path = self.folder / token_path(shard)
        with reading(str(path)):
            return pq.read_table(path).slice(row - self.index.rows_of(shard).start, 1).to_pylist()[0]
