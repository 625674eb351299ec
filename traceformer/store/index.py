"""Which examples a run holds and where their tokens lie, from the records of its committed shards.

1. How many rows a shard has follows from the layout, so that where a row lies is arithmetic over the shards.
2. Its id and its length are in its shard's record, which is asked for when they are.
3. What is of all rows, such as all ids, is put together when it is asked for, and kept.
4. A run with a `Lookup` finds ids and knows all lengths without a record being read.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from traceformer.shapes import Int, Int64
from traceformer.sites import ArraySpec, Stack
from traceformer.store.commits import CommitRecord
from traceformer.store.hosts import Host
from traceformer.store.layout import RunLayout
from traceformer.store.lookup import Lookup
from traceformer.store.q8 import Rounding

__all__ = ["RunIndex", "Spans"]


@dataclass(frozen=True, slots=True)
class Spans:
    """An axis without its gaps: span i covers `counts[i]` places on disk from `starts[i]` on."""

    starts: Int64[np.ndarray, "span"]
    counts: Int64[np.ndarray, "span"]

    def __len__(self) -> int:
        return int(self.counts.sum())

    def places(self, indices: Int[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
        """Returns where on disk the given indices of the axis without gaps lie."""
        ends = np.cumsum(self.counts)
        span = np.searchsorted(ends, indices, side="right")
        return self.starts[span] + indices - (ends - self.counts)[span]


class RunIndex:
    """The examples of the committed shards, in the data set's order; a *row* is an example's place among them.

    Attributes:
        shards: The committed shards, in order.
        n: How many rows there are.
        record: The record of a committed shard.
    """

    def __init__(
        self,
        layout: RunLayout,
        shards: Sequence[int],
        record: Callable[[int], CommitRecord],
        *,
        lookup: Lookup | None = None,
        gapless: bool = False,
    ) -> None:
        """Of a run whose shards' token slots lie back to back, `gapless`, all records are read."""
        self.shards = tuple(shards)
        self.record = record
        self._layout = layout
        self._lookup = lookup
        self._gapless = gapless
        self._numbers = np.asarray(self.shards, np.int64)
        in_shard = layout.shard_examples
        self._counts = np.minimum(in_shard, layout.n_examples - self._numbers * in_shard)
        if layout.is_open and shards:  # of a stream the last may hold fewer than the others
            self._counts[-1] = len(record(shards[-1]).examples)
        self._first = [0, *np.cumsum(self._counts).tolist()]
        self.n = self._first[-1]
        self._token_spans: dict[Stack, Spans] = {}
        self._rounded: dict[int, Mapping[str, Rounding]] = {}

    @classmethod
    def build(cls, layout: RunLayout, records: Iterable[CommitRecord], *, gapless: bool = False) -> "RunIndex":
        """Returns the index of the given records, which come in the order of their shards."""
        by_shard = {record.shard: record for record in records}
        return cls(layout, tuple(by_shard), by_shard.__getitem__, gapless=gapless)

    # One row

    def shard(self, row: int) -> int:
        """Returns the shard of a row."""
        return self.shards[bisect_right(self._first, row) - 1]

    def example(self, row: int) -> int:
        """Returns where on the `example` axis on disk a row lies: the row itself once all shards are committed."""
        number = bisect_right(self._first, row) - 1
        return self.shards[number] * self._layout.shard_examples + row - self._first[number]

    def id(self, row: int) -> str:
        """Returns the id of a row."""
        record, place = self._at(row)
        return record.examples[place]

    def length(self, row: int, stack: Stack) -> int:
        """Returns the tokens of a row."""
        record, place = self._at(row)
        return record.lengths[stack][place]

    def slot(self, row: int, stack: Stack) -> int:
        """Returns the first token slot of a row."""
        number = bisect_right(self._first, row) - 1
        lengths = self.record(self.shards[number]).lengths[stack]
        return int(self._slots_before(number, stack)) + sum(lengths[: row - self._first[number]])

    def tokens(self, rows: range, stack: Stack) -> int:
        """Returns the tokens of rows that lie in one shard."""
        record, place = self._at(rows.start)
        return sum(record.lengths[stack][place : place + len(rows)])

    def rows_of(self, shard: int) -> range:
        """Returns the rows of the examples in a shard."""
        number = bisect_left(self.shards, shard)
        is_there = number < len(self.shards) and self.shards[number] == shard
        return range(self._first[number], self._first[number + is_there])

    def rows_with(self, example_id: str) -> list[int]:
        """Returns the rows with an id, in order: none, one, or several."""
        if self._lookup is not None:
            return [row for row in self._lookup.rows(example_id) if self.id(row) == example_id]
        if example_id not in self._row_with:
            return []
        if len(self._row_with) < self.n:
            return [row for row, own in enumerate(self.ids) if own == example_id]
        return [self._row_with[example_id]]

    def first_ids(self, most: int) -> list[str]:
        """Returns the ids of the first rows."""
        found: list[str] = []
        for shard in self.shards:
            if len(found) >= most:
                break
            found += self.record(shard).examples
        return found[:most]

    # All rows

    @cached_property
    def hosts(self) -> Mapping[int, Host]:
        """What computed each of the shards, as far as its record says."""
        return {shard: self.record(shard).host for shard in self.shards}

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Example ids by row."""
        return tuple(name for shard in self.shards for name in self.record(shard).examples)

    @cached_property
    def lengths(self) -> Mapping[Stack, Int64[np.ndarray, "row"]]:
        """Tokens of each row, per stack."""
        if self._lookup is not None:
            return {stack: self._lookup.lengths(stack) for stack in self._layout.stacks}
        stacks = self._layout.stacks
        found: dict[Stack, list[int]] = {stack: [] for stack in stacks}
        for shard in self.shards:
            record = self.record(shard)
            for stack in stacks:
                found[stack] += record.lengths[stack]
        return {stack: np.asarray(own, np.int64) for stack, own in found.items()}

    @property
    def example_spans(self) -> Spans:
        """The `example` axis, one span per shard."""
        return Spans(self._numbers * self._layout.shard_examples, self._counts)

    def token_spans(self, stack: Stack) -> Spans:
        """The token axis of a stack, one span per shard."""
        if stack not in self._token_spans:
            counts = self._tokens_by_shard(stack)
            starts = np.cumsum(counts) - counts if self._gapless else self._numbers * self._layout.shard_slots(stack)
            self._token_spans[stack] = Spans(starts, counts)
        return self._token_spans[stack]

    def shards_at(self, slots: Int64[np.ndarray, "n"], stack: Stack) -> Int64[np.ndarray, "n"]:
        """Returns the shards that some token slots are of."""
        if not self._gapless:
            return slots // self._layout.shard_slots(stack)
        return self._numbers[np.searchsorted(self.token_spans(stack).starts, slots, side="right") - 1]

    def rounding(self, spec: ArraySpec, shard: int) -> Rounding:
        """Returns what a shard's record says of an array that is stored as codes."""
        if shard not in self._rounded:
            self._rounded[shard] = self.record(shard).rounded
        return self._rounded[shard][str(spec.key)]

    def _tokens_by_shard(self, stack: Stack) -> Int64[np.ndarray, "span"]:
        if self._lookup is None:
            return np.array([sum(self.record(shard).lengths[stack]) for shard in self.shards], np.int64)
        return np.add.reduceat(self.lengths[stack], self._first[:-1])

    def _slots_before(self, number: int, stack: Stack) -> int:
        if self._gapless:
            return int(self.token_spans(stack).starts[number])
        return self.shards[number] * self._layout.shard_slots(stack)

    def _at(self, row: int) -> tuple[CommitRecord, int]:
        """The record of a row's shard, and the row's place in it."""
        number = bisect_right(self._first, row) - 1
        return self.record(self.shards[number]), row - self._first[number]

    @cached_property
    def _row_with(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.ids)}
