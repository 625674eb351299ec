"""A run in memory: a writer with `RunWriter`'s interface whose run is never on disk, until it is saved.

Each example's matrices are kept at their true size, each shard's token rows back to back, all as a file would store
them, so that the same code reads them and `Run.save` writes the same bytes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from traceformer.errors import OutOfSpace, UsageError
from traceformer.shapes import Shaped
from traceformer.sites import ArrayKey, ArraySpec, Stack
from traceformer.store.aliases import Lead, Piece
from traceformer.store.buffer import ShardBuffer
from traceformer.store.commits import CommitRecord, RunHead, configuration_digest
from traceformer.store.ending import closed_head
from traceformer.store.filled import check_finite, example_ids
from traceformer.store.forks import use_tensorstore
from traceformer.store.hosts import UNKNOWN, Host
from traceformer.store.index import RunIndex
from traceformer.store.layout import RunLayout
from traceformer.store.matrices import WholeMatrices
from traceformer.store.meta import RunMeta
from traceformer.store.q8 import Rounded
from traceformer.store.rebuilding import rebuilt
from traceformer.store.room import amount, available_memory
from traceformer.store.run import Run
from traceformer.store.sizes import filled_bytes
from traceformer.store.triangles import n_cells, unfold
from traceformer.store.zarr3 import Array, along_layers, from_zero

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["MemorySource", "MemoryWriter", "check_memory"]

_BUFFERS = 2

Values = Shaped[np.ndarray, "..."]


@dataclass(frozen=True, slots=True)
class MemorySource:
    """The source of a run in memory; see `Source`.

    Attributes:
        matrices: For each matrix array, every example's (layer, head, query, key), or (layer, head, cell) of a packed
            triangle, as stored.
        rows: For each token array that is kept, by its path, all tokens' rows, (layer[, head], slot, d): slots without
            gaps; where these are codes, what lies beside them likewise. For each example array all examples',
            (example[, layer, head], d).
        table: One row per example.
    """

    head: RunHead
    index: RunIndex
    matrices: Mapping[ArrayKey, Sequence[Values]]
    rows: Mapping[str, Array]
    table: "pa.Table"

    @property
    def name(self) -> str:
        return "memory"

    @property
    def folder(self) -> None:
        return None

    @property
    def finished(self) -> bool:
        return True

    def steps(self, spec: ArraySpec) -> Iterable[range]:
        if spec.site.is_matrix:  # each has its own size
            return [range(row, row + 1) for row in range(self.index.n)]
        return [self.index.rows_of(shard) for shard in self.index.shards]

    def part(self, spec: ArraySpec, rows: range, lead: Lead) -> Array:
        use_tensorstore()
        if spec.site.is_per_example:
            return self.rows[self.head.layout.path_of(spec)][(slice(rows.start, rows.stop), *lead)]
        stack = spec.key.token_stack
        first = self.index.slot(rows.start, stack)
        return self._rows(spec, lead, (slice(first, first + self.index.tokens(rows, stack)),))

    def matrix(
        self, spec: ArraySpec, row: int, lead: Lead, queries: range | None = None
    ) -> Shaped[np.ndarray, "*lead query key"]:
        queries = range(self.index.length(row, spec.key.stack)) if queries is None else queries
        if spec.key in self.head.layout.recipes:
            return rebuilt(self, spec, row, lead, queries)
        kept, triangle = self.matrices[spec.key][row][lead], self.head.layout.is_triangle(spec)
        keys = self.index.length(row, spec.key.key_stack)
        if not triangle:
            return kept[..., queries.start : queries.stop, :].copy()
        cells = kept[..., n_cells(queries.start) : n_cells(queries.stop)]
        return unfold(cells, queries.start, len(queries), keys)

    def whole(self, spec: ArraySpec, lead: Lead, *, once: bool = False) -> Array:
        use_tensorstore()
        if spec.site.is_per_example:
            return self.rows[self.head.layout.path_of(spec)][(slice(None), *lead)]
        return self._rows(spec, lead, ())

    def rounded(self, spec: ArraySpec, shard: int) -> Rounded:
        from traceformer.store.q8_rows import rows_of_shard

        layout = self.head.layout
        return rows_of_shard(layout, self.index, spec, shard, lambda part: self.rows[layout.path_of(part)])

    def _rows(self, spec: ArraySpec, lead: Lead, slots: tuple[slice, ...]) -> Array:
        layout = self.head.layout
        pieces = layout.pieces(spec, lead)
        if layout.stored(spec) != "q8":
            return self._joined(pieces, slots)
        from traceformer.store.q8_rows import rounded_rows

        return rounded_rows(layout, self.index, pieces, slots, lambda parts: from_zero(self._joined(parts)))

    def _joined(self, pieces: Sequence[Piece], slots: tuple[slice, ...] = ()) -> Array:
        layout = self.head.layout
        return along_layers([self.rows[layout.path_of(kept)][(*own, *slots)] for kept, own in pieces])

    def token_table(self, columns: Sequence[str] | None = None) -> "pa.Table":
        return (
            self.table if columns is None else self.table.select([c for c in columns if c in self.table.column_names])
        )

    def token_rows(self, rows: Sequence[int]) -> "pa.Table":
        from traceformer.store.tables import taken

        return taken(self.table, rows)

    def token_columns(self) -> Sequence[str]:
        return self.table.column_names

    def token_row(self, row: int) -> dict[str, Any]:
        return self.table.slice(row, 1).to_pylist()[0]


class MemoryWriter:
    """The writer of a run that stays in memory: as `RunWriter`, but `finish` returns the run.

        check_memory(layout, lengths)
        with MemoryWriter(layout, meta, digest=configuration) as writer:
            for shard in writer.pending:
                ...
            run = writer.finish()

    Attributes:
        layout: What goes into the run.
        bytes_written: The memory that is taken so far.
    """

    def __init__(self, layout: RunLayout, meta: RunMeta | Mapping[str, Any], *, digest: Mapping[str, Any]) -> None:
        self.layout = layout
        self.bytes_written = 0
        self._head = RunHead.of(meta, layout, digest)
        self._nan_is_unknown = self._head.about.unknown_rows == "NaN"
        self._records: dict[int, CommitRecord] = {}
        self._tables: dict[int, pa.Table] = {}
        self._matrices: dict[ArrayKey, dict[int, list[Values]]] = {}
        self._rows: dict[str, dict[int, Values]] = {}
        self._free: list[ShardBuffer] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._free.clear()

    @property
    def pending(self) -> Sequence[int]:
        """The shards that are not written yet, in order; of a stream those that may come."""
        if self.layout.is_open:
            return range(len(self._records), self.layout.n_shards)
        return [shard for shard in range(self.layout.n_shards) if shard not in self._records]

    def claims(self) -> Iterator[int]:
        """Yields each of the `pending` shards; none of them is anybody else's."""
        yield from self.pending

    @property
    def last_host(self) -> Host:
        """What computed the last shard that is kept, as far as it is known."""
        return next((record.host for record in reversed(self._records.values())), UNKNOWN)

    def buffer(self) -> ShardBuffer:
        """Returns a buffer to fill."""
        return self._free.pop() if self._free else ShardBuffer(self.layout, compresses=False)

    def commit(
        self,
        shard: int,
        buffer: ShardBuffer,
        tokens: "pa.Table",
        host: Host = UNKNOWN,
        source: Mapping[str, Any] | None = None,
    ) -> None:
        """Keeps a shard and takes the buffer back, also when it fails; the arguments are `RunWriter.commit`'s.

        Raises:
            NumericError: a value is inf or NaN.
            UsageError: the rows are not the shard's.
        """
        from traceformer.store.tables import encodable

        try:
            if shard not in self.pending:
                raise UsageError(f"shard {shard} is not pending", why="it is committed, or out of range")
            ids = example_ids(shard, buffer, tokens)
            for spec in self.layout.kept:
                check_finite(shard, spec, buffer, nan_is_unknown=self._nan_is_unknown)
                self._keep(shard, spec, buffer)
            self._tables[shard] = encodable(tokens)
            self._records[shard] = CommitRecord(
                shard=shard,
                writer=(0, 1),
                configuration=configuration_digest(self._head.configuration),
                examples=tuple(ids),
                lengths={stack: tuple(map(int, own)) for stack, own in buffer.lengths.items()},
                files={},
                host=host,
                source=source,
                rounded=buffer.roundings(),
            )
        finally:
            self._free = [*self._free, buffer][-_BUFFERS:]

    def _keep(self, shard: int, spec: ArraySpec, buffer: ShardBuffer) -> None:
        if spec.site.is_matrix:
            matrices = buffer.matrices[spec.key]
            assert isinstance(matrices, WholeMatrices)
            kept, matrices.kept = matrices.kept, []
            self._matrices.setdefault(spec.key, {})[shard] = kept
            self.bytes_written += sum(matrix.nbytes for matrix in kept)
        elif spec.site.is_per_example:
            self._keep_rows(shard, spec, buffer.arrays[spec.key][: buffer.n_examples])
        else:
            if self.layout.stored(spec) == "q8":
                buffer.round(spec)
            used = int(buffer.offsets[spec.key.token_stack][-1])
            for part in self.layout.parts(spec):
                self._keep_rows(shard, part, buffer.stored_rows(part)[..., :used, :])

    def _keep_rows(self, shard: int, spec: ArraySpec, rows: Values) -> None:
        self._rows.setdefault(self.layout.path_of(spec), {})[shard] = rows.copy()
        self.bytes_written += rows.nbytes

    def finish(self) -> Run:
        """Returns the run.

        Raises:
            UsageError: shards are still pending.
        """
        import tensorstore as ts

        from traceformer.store.tables import joined

        if self.pending and not self.layout.is_open:
            raise UsageError(f"{len(self.pending)} of {self.layout.n_shards} shards are not written yet")
        shards = sorted(self._records)
        per_example = {self.layout.path_of(spec) for spec in self.layout.kept if spec.site.is_per_example}
        head = closed_head(self._head, self._records.values(), self._tables.values())
        index = RunIndex.build(head.layout, [self._records[shard] for shard in shards], gapless=True)
        return Run(
            MemorySource(
                head=head,
                index=index,
                matrices={key: [m for shard in shards for m in kept[shard]] for key, kept in self._matrices.items()},
                rows={
                    path: ts.concat(
                        [ts.array(kept[shard], copy=False) for shard in shards],
                        axis=0 if path in per_example else -2,
                    )
                    for path, kept in self._rows.items()
                },
                table=joined([self._tables[shard] for shard in shards]),
            )
        )


def check_memory(layout: RunLayout, lengths: Mapping[Stack, Sequence[int]]) -> None:
    """Makes sure that a run over examples of these lengths (at most: of a generation nobody knows) fits into memory.

    Raises:
        OutOfSpace: it does not; the message says what it takes and what there is.
    """
    filled = filled_bytes(layout, lengths)
    needed = filled + min(filled, _BUFFERS * layout.bytes_per_shard())
    free = available_memory()
    if free is not None and needed > free:
        raise OutOfSpace(
            f"the run takes up to {amount(needed)} of memory, {amount(free)} are free",
            why=f"{len(next(iter(lengths.values())))} examples, {len(layout.arrays)} arrays",
            hint="with `out` it goes to disk; or record fewer sites, layers or examples",
        )
