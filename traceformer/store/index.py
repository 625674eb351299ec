"""Which examples a run holds and where their tokens lie, from the records of its committed shards."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from traceformer.shapes import Int, Int64
from traceformer.sites import Stack
from traceformer.store.commits import CommitRecord
from traceformer.store.hosts import Host
from traceformer.store.layout import RunLayout

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


@dataclass(frozen=True, slots=True)
class RunIndex:
    """The examples of the committed shards, in the data set's order; a *row* is an example's place among them.

    Attributes:
        ids: Example ids by row.
        shards: The committed shards, in order.
        shard_of: The shard of each row.
        examples: Where on the `example` axis on disk each row lies: the row itself once all shards are committed.
        lengths: Tokens of each row, per stack.
        slots: First token slot of each row, per stack.
        hosts: What computed each of the shards, as far as its record says.
    """

    ids: tuple[str, ...]
    shards: tuple[int, ...]
    shard_of: Int64[np.ndarray, "row"]
    examples: Int64[np.ndarray, "row"]
    lengths: Mapping[Stack, Int64[np.ndarray, "row"]]
    slots: Mapping[Stack, Int64[np.ndarray, "row"]]
    hosts: Mapping[int, Host]

    @classmethod
    def build(cls, layout: RunLayout, records: Iterable[CommitRecord]) -> "RunIndex":
        """Returns the index of the given records, which come in the order of their shards."""
        ids: list[str] = []
        shards: list[int] = []
        hosts: dict[int, Host] = {}
        counts: list[int] = []
        lengths: dict[Stack, list[int]] = {stack: [] for stack in layout.stacks}
        for record in records:
            ids += record.examples
            shards.append(record.shard)
            hosts[record.shard] = record.host
            counts.append(len(record.examples))
            for stack in layout.stacks:
                lengths[stack] += record.lengths[stack]
        shard_of = np.repeat(np.asarray(shards, np.int64), counts)
        within = np.arange(len(ids)) - np.repeat(np.cumsum(counts) - counts, counts).astype(np.int64)
        own: dict[Stack, Int64[np.ndarray, "row"]] = {
            stack: np.asarray(lengths[stack], np.int64) for stack in layout.stacks
        }
        first = np.arange(len(ids)) - within
        slots: dict[Stack, Int64[np.ndarray, "row"]] = {}
        for stack in layout.stacks:
            before = np.concatenate(([0], np.cumsum(own[stack])))
            slots[stack] = shard_of * layout.shard_slots(stack) + before[:-1] - before[first]
        examples = shard_of * layout.shard_examples + within
        return cls(tuple(ids), tuple(shards), shard_of, examples, own, slots, hosts)

    @property
    def example_spans(self) -> Spans:
        """The `example` axis, one span per shard."""
        first, counts = self._by_shard()
        return Spans(self.examples[first], counts)

    def token_spans(self, stack: Stack) -> Spans:
        """The token axis of a stack, one span per shard."""
        first, _ = self._by_shard()
        if not len(first):
            return Spans(first, first)
        return Spans(self.slots[stack][first], np.add.reduceat(self.lengths[stack], first))

    def rows_of(self, shard: int) -> range:
        """Returns the rows of the examples in a shard."""
        first, last = np.searchsorted(self.shard_of, (shard, shard + 1))
        return range(int(first), int(last))

    def _by_shard(self) -> tuple[Int64[np.ndarray, "span"], Int64[np.ndarray, "span"]]:
        first = np.searchsorted(self.shard_of, self.shards)
        return first, np.diff(np.append(first, len(self.ids)))
