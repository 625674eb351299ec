"""A run in a folder, opened: its committed shards, and views of the arrays in them.

Of a run of a few shards all records are read when it is opened. Of one of many a record is read when something of its
shard is asked for, and some are kept: opening and memory grow with the shards, not with the examples.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from traceformer.errors import CorruptRun, NotFound
from traceformer.shapes import Shaped
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.aliases import Lead, Piece
from traceformer.store.chunks import FolderChunks, MatrixFiles
from traceformer.store.commits import (
    RunHead,
    committed_shards,
    has_lost_manifest,
    read_commit,
    read_commits,
    read_manifest,
    token_path,
)
from traceformer.store.dtypes import ON_DISK
from traceformer.store.files import Checksum, is_intact
from traceformer.store.forks import use_tensorstore
from traceformer.store.index import RunIndex
from traceformer.store.layout import MANIFEST, META, TOKENS, UNFINISHED
from traceformer.store.lookup import FEW_SHARDS, Lookup, open_lookup
from traceformer.store.marks import Identity, check_file, identity
from traceformer.store.objects.path import AnyPath, ObjectPath
from traceformer.store.q8 import Rounded
from traceformer.store.rebuilding import rebuilt
from traceformer.store.zarr3 import Array, along_layers, check_metadata, from_zero, open_array, reading

if TYPE_CHECKING:
    import pyarrow as pa
    import tensorstore as ts

    from traceformer.store.fetching import BucketChunks

__all__ = ["RunFolder"]

_CACHE_BYTES = 32 << 20
_TABLES = 4  # of shards that are kept, of a run in a bucket
_RECORDS_KEPT = 64  # of a run of many shards
_LARGE_CHUNK = 128 << 10  # bytes: smaller ones cost more to ask for than tensorstore takes to read them


class RunFolder:
    """The source of a run on disk; see `Source`. `lookup` is its `examples.index`, where it has one.

    A file is held against its record before anything of it is used: an array's when it is first touched, and when
    it is no longer the file that it was, by size and mark; a token table each time it is read, whole.
    """

    def __init__(
        self, folder: AnyPath, head: RunHead, index: RunIndex, *, finished: bool, lookup: Lookup | None = None
    ) -> None:
        self.folder = folder
        self.head = head
        self.index = index
        self.finished = finished
        self._lookup = lookup
        self._files: dict[int, Mapping[str, Checksum]] = {}
        self._last_table: tuple[int, Identity | None, pa.Table] | None = None
        self._context: ts.Context | None = None
        self._open: dict[str, Array] = {}
        self._root = folder.absolute()  # a reader may change its working directory
        if isinstance(folder, ObjectPath):
            self._bucket = _chunks_in(folder, index)
            self._matrices = MatrixFiles(self._bucket, head.layout)
        else:
            self._bucket, self._matrices = None, MatrixFiles(folder.absolute(), head.layout)
            self._chunks = FolderChunks(folder.absolute())
        self._checked = set[str]()
        self._names: dict[tuple[ArrayKey, str, int], tuple[str, ...]] = {}
        self._seen: dict[str, Identity | None] = {}
        self._tables: dict[int, pa.Table] = {}

    @classmethod
    def open(cls, folder: AnyPath) -> Self:
        """Returns the run in a folder, finished or not.

        Raises:
            NotFound: there is no run; the hint names an unfinished one.
            Unreadable: a later version wrote it, or something else did.
            CorruptRun: its head or a commit record was changed or is missing, or its manifest is. That a record
                was changed is noticed later of a run of many shards: when it is read.
        """
        try:
            head = RunHead.read(folder)
        except NotFound:
            _refuse_what_lies_near(folder)
            raise
        finished = (folder / MANIFEST).exists()
        if has_lost_manifest(folder):
            unfinished = f"{UNFINISHED}{folder.name}"
            raise CorruptRun(
                f"{folder} has lost its {MANIFEST}",
                why=f"a run that is not finished would be {unfinished}",
                hint=f"traceformer verify lists the damage; renamed to {unfinished} it opens, and `resume=True` "
                "finishes it",
            )
        shards, lookup = committed_shards(folder), None
        if len(shards) <= FEW_SHARDS or isinstance(folder, ObjectPath):  # which gives many records at once
            records = {each.shard: each for each in read_commits(folder, head)}
            shards, record = [*records], records.__getitem__
        else:
            root = folder.absolute()
            read_commit(folder, head, shards[-1])  # which may be of another run, with more shards
            record = lru_cache(_RECORDS_KEPT)(partial(read_commit, root, head))
            lookup = open_lookup(root, head) if finished else None
        index = RunIndex(head.layout, shards, record, lookup=lookup)
        if finished and len(shards) < head.layout.n_shards:
            raise CorruptRun(f"{folder} has lost commit records", hint="traceformer verify lists the damage")
        return cls(folder, head, index, finished=finished, lookup=lookup)

    @property
    def name(self) -> str:
        return str(self.folder)

    def steps(self, spec: ArraySpec) -> Iterable[range]:
        for own in self.head.layout.read_for(spec):
            for kept, _ in self.head.layout.pieces(own, ()):
                self._check_files(kept, self.index.shards)
        return [self.index.rows_of(shard) for shard in self.index.shards]

    def part(self, spec: ArraySpec, rows: range, lead: Lead) -> Array:
        index, shards = self.index, (self.index.shard(rows.start),)
        if spec.site.is_per_token:
            first = index.slot(rows.start, spec.key.token_stack)
            slots = slice(first, first + index.tokens(rows, spec.key.token_stack))
            return self._rows(spec, lead, shards, (slots,))
        return self._examples(spec, shards)[(slice(first := index.example(rows.start), first + len(rows)), *lead)]

    def matrix(
        self, spec: ArraySpec, row: int, lead: Lead, queries: range | None = None
    ) -> Shaped[np.ndarray, "*lead query key"]:
        index, layout = self.index, self.head.layout
        wanted = range(index.length(row, spec.key.stack)) if queries is None else queries
        if spec.key in layout.recipes:
            return rebuilt(self, spec, row, lead, wanted)
        shard = index.shard(row)
        slot = index.example(row) - layout.shard_range(shard).start
        self._check_files(spec, (shard,))
        self._check_metadata(spec)
        with reading(f"{self.folder}/{layout.array_path(spec.key)}"):
            return self._matrices.read(
                spec, self._files_of(spec, shard), slot, lead, wanted, index.length(row, spec.key.key_stack)
            )

    def whole(self, spec: ArraySpec, lead: Lead, *, once: bool = False) -> Array:
        if once and self._has_large_chunks(spec):
            return self._by_chunks(self.head.layout.pieces(spec, lead))
        if spec.site.is_per_token:
            return self._rows(spec, lead, self.index.shards, ())
        return self._examples(spec, self.index.shards)[(slice(None), *lead)]

    def _has_large_chunks(self, spec: ArraySpec) -> bool:
        """Whether it is in a folder, as it is stored, in chunks that are worth being read one by one."""
        layout = self.head.layout
        stored = layout.stored(spec)
        if self._bucket is not None or not spec.site.is_per_token or stored == "q8":
            return False
        return math.prod(layout.chunk_shape(spec)) * ON_DISK[stored].itemsize >= _LARGE_CHUNK

    def _by_chunks(self, pieces: Sequence[Piece]) -> Array:
        from traceformer.store.ranged import token_array

        for kept, _ in pieces:
            self._check_metadata(kept)
            self._check_files(kept, self.index.shards)
        return token_array(self._chunks, self.head.layout, pieces, ())

    def _examples(self, spec: ArraySpec, shards: Sequence[int]) -> Array:
        if self._bucket is None:
            return self.array(spec, shards)
        from traceformer.store.ranged import example_array

        self._check_metadata(spec)
        return example_array(self._bucket, self.head.layout, spec)

    def rounded(self, spec: ArraySpec, shard: int) -> Rounded:
        from traceformer.store.q8_rows import rows_of_shard

        def opened(part: ArraySpec) -> Array:
            return self._joined([Piece(part, (slice(None),) * (bool(part.layers) + bool(part.heads)))], (shard,))

        return rows_of_shard(self.head.layout, self.index, spec, shard, opened)

    def _rows(self, spec: ArraySpec, lead: Lead, shards: Sequence[int], slots: tuple[slice, ...]) -> Array:
        layout = self.head.layout
        pieces = layout.pieces(spec, lead)
        if layout.stored(spec) != "q8":
            return self._joined(pieces, shards, slots)
        from traceformer.store.q8_rows import rounded_rows

        return rounded_rows(layout, self.index, pieces, slots, lambda parts: from_zero(self._joined(parts, shards)))

    def _joined(self, pieces: Sequence[Piece], shards: Sequence[int], slots: tuple[slice, ...] = ()) -> Array:
        """Returns parts of kept arrays, or of what lies beside their codes, as one."""
        if self._bucket is not None:
            from traceformer.store.ranged import token_array

            for kept, _ in pieces:
                self._check_metadata(kept)
            return token_array(self._bucket, self.head.layout, pieces, slots)
        return along_layers([self.array(kept, shards)[(*own, *slots)] for kept, own in pieces])

    def array(self, spec: ArraySpec, shards: Sequence[int]) -> Array:
        """Returns a kept array on disk, once the files of the shards to be read are known to be those written there.

        A file that is not there would read as zeros, another one as its own numbers.

        Raises:
            CorruptRun: one is missing, or another.
        """
        use_tensorstore()
        self._check_files(spec, shards)
        assert isinstance(self._root, Path)  # what is in a bucket is read by ranges
        if self._context is None:
            import tensorstore as ts

            self._context = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
        path = self.head.layout.path_of(spec)
        if path not in self._open:
            self._open[path] = open_array(self._root, self.head.layout, spec, self._context)
        return self._open[path]

    def _files_of(self, spec: ArraySpec, shard: int) -> tuple[str, ...]:
        if (spec.key, spec.part, shard) not in self._names:
            self._names[spec.key, spec.part, shard] = self.head.layout.shard_files(spec, shard)
        return self._names[spec.key, spec.part, shard]

    def _check_metadata(self, spec: ArraySpec) -> None:
        path = self.head.layout.path_of(spec)
        if path not in self._checked:
            check_metadata(self._root, self.head.layout, spec)
            self._checked.add(path)

    def _check_files(self, spec: ArraySpec, shards: Sequence[int]) -> None:
        if not isinstance(self._root, Path):
            return  # a bucket looks itself, when it asks where the chunks of a file lie
        for shard in shards:
            for path in self._files_of(spec, shard):
                if spec.part == "massive" and path not in self._written(shard):
                    continue  # no channel of this shard is
                # Each time: a run may be moved, removed or replaced while it is open.
                found = identity(f"{self._root}/{path}")
                if found is None or self._seen.get(path) != found:
                    check_file(self._root / path, self._written(shard)[path], self.head.layout.index_bytes(spec))
                    self._seen[path] = found

    def token_table(self, columns: Sequence[str] | None = None) -> "pa.Table":
        import pyarrow as pa

        from traceformer.store.tables import joined

        wanted = None if columns is None else list(dict.fromkeys(("example_id", *columns)))
        if self.finished:
            listed = read_manifest(self.folder)
            if TOKENS not in listed:
                raise CorruptRun(f"{self.folder / MANIFEST} lists no {TOKENS}", hint="traceformer verify says more")
            table = self._read_table(TOKENS, listed[TOKENS], wanted)
        elif tables := [self._shard_table(shard) for shard in self.index.shards]:
            table = joined(tables)
        else:
            table = pa.table({"example_id": pa.array([], pa.string())})
        self._check_ids(TOKENS, table, self.index.ids)
        return table if columns is None else table.select([name for name in columns if name in table.column_names])

    def token_row(self, row: int) -> dict[str, Any]:
        shard = self.index.shard(row)
        table = self._shard_table(shard)
        return table.slice(row - self.index.rows_of(shard).start, 1).to_pylist()[0]

    def token_rows(self, rows: Sequence[int]) -> "pa.Table | None":
        import pyarrow as pa

        from traceformer.store.tables import taken, with_schema

        if self._lookup is None:
            return None
        schema, parts = self._lookup.schema(), list[pa.Table]()
        for shard, own in groupby(rows, self.index.shard):
            first = self.index.rows_of(shard).start
            parts.append(with_schema(taken(self._kept_table(shard), [row - first for row in own]), schema))
        return pa.concat_tables(parts) if parts else schema.empty_table()

    def token_columns(self) -> Sequence[str] | None:
        return None if self._lookup is None else self._lookup.schema().names

    def _kept_table(self, shard: int) -> "pa.Table":
        """A shard's table, of which the last that was asked for is kept: its rows are often asked for one by one."""
        found, kept = identity(f"{self._root}/{token_path(shard)}"), self._last_table
        if kept is None or found is None or kept[:2] != (shard, found):
            kept = self._last_table = (shard, found, self._shard_table(shard))
        return kept[2]

    def _shard_table(self, shard: int) -> "pa.Table":
        if shard in self._tables:
            return self._tables[shard]
        table = self._read_table(token_path(shard), self._written(shard)[token_path(shard)])
        self._check_ids(token_path(shard), table, self.index.record(shard).examples)
        if self._bucket is not None:  # a disk gives it faster than it can be worth to keep it
            self._tables = {**dict([*self._tables.items()][1 - _TABLES :]), shard: table}
        return table

    def _written(self, shard: int) -> Mapping[str, Checksum]:
        """What a shard's record says of its files, which is kept: a file is held against it again and again."""
        if shard not in self._files:
            self._files[shard] = self.index.record(shard).files
        return self._files[shard]

    def _read_table(self, name: str, written: Checksum, columns: Sequence[str] | None = None) -> "pa.Table":
        """Returns a token table. The checksums in its pages would not cover its head and foot, so all of it is hashed.

        Raises:
            CorruptRun: it is missing, or not as it was written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.folder / name
        with reading(path):
            data = path.read_bytes()
            if not is_intact(data, written):
                raise CorruptRun(f"{path} was changed after it was written", hint="traceformer verify lists the damage")
            # pq.read_table would load pyarrow's data sets, and pandas with them, for the same table.
            # A process that ends while pyarrow begins its threads is aborted: about one in a hundred that end soon.
            return pq.ParquetFile(pa.BufferReader(data)).read(columns, use_threads=False)

    def _check_ids(self, name: str, table: "pa.Table", ids: Sequence[str]) -> None:
        if tuple(table.column("example_id").to_pylist()) != tuple(ids):
            raise CorruptRun(f"{self.folder / name} is of other examples", hint="traceformer verify lists the damage")


def _chunks_in(folder: ObjectPath, index: RunIndex) -> "BucketChunks":
    from traceformer.store.fetching import BucketChunks  # of no use to who reads from a disk

    return BucketChunks(
        folder, {path: file for shard in index.shards for path, file in index.record(shard).files.items()}
    )


def _refuse_what_lies_near(folder: AnyPath) -> None:
    """Says what lies at a folder that is no run, or beside it, if it can be told.

    Raises:
        NotFound: the run is not finished, or these are several.
    """
    unfinished = folder.with_name(f"{UNFINISHED}{folder.name}") if folder.name else folder
    if (unfinished / META).is_file():
        raise NotFound(f"no run in {folder}", why="it is not finished", hint=f"open {unfinished}, or `resume=True`")
    if runs := sorted(folder.glob(f"*/{META}")):
        several = f"it is a folder of {len(runs)} run{'s' if len(runs) > 1 else ''}"
        raise NotFound(f"no run in {folder}", why=several, hint=f"open {runs[-1].parent}")
