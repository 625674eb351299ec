"""Head metrics of many examples: sums of blocks, on several threads, added up in the order in which they came.

    with Measurement("dec.self", layers, heads) as measurement:
        measurement.add(pattern, geometry, layer=3)    # (head, query, key), whole or some rows after the other
        ...
        metrics = measurement.metrics()

Memory grows with the number of heads and the longest example, never with the number of examples.
"""

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from traceformer.analysis.conventions import CONVENTIONS, Convention
from traceformer.analysis.head_metrics import HeadMetrics, HeadName, Measured
from traceformer.analysis.heads import (
    METRICS,
    BlockSums,
    Geometry,
    block_sums,
    effective_span,
    example_means,
)
from traceformer.errors import UsageError
from traceformer.shapes import Float, Float64
from traceformer.sites import ArrayKey

__all__ = ["Averaging", "Measurement", "attention_name"]


def attention_name(key: ArrayKey) -> str:
    """Returns what an attention is called: `dec.self`, `dec.cross`."""
    return f"{key.stack}.{key.attention}"


@dataclass(frozen=True, slots=True)
class _Block:
    """One block under way: whose it is, and whether the example ends with it."""

    place: slice
    geometry: Geometry
    is_last: bool
    sums: "Future[BlockSums]"


class Measurement:
    """Adds up the head metrics of one attention over examples.

    Args:
        attention: Which one: `enc.self`, `dec.self` or `dec.cross`.
        layers: The model's numbers of the layers to come.
        heads: The model's numbers of the heads to come.
        convention: What entropy and sparsity mean.
        window: How far `local_mass` reaches on either side.
        threads: How many blocks are reduced at a time; as many as there are processors by default.
    """

    def __init__(
        self,
        attention: str,
        layers: Sequence[int],
        heads: Sequence[int],
        *,
        convention: Convention = CONVENTIONS["exact"],
        window: int = 8,
        threads: int | None = None,
    ) -> None:
        if window < 0:
            raise UsageError(f"a window of {window} tokens", hint="0 or more")
        self._attention, self._layers, self._heads = attention, tuple(layers), tuple(heads)
        self._convention = convention
        self._window = window
        self._pool = ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="heads")
        self._most_pending = 2 * (threads or os.cpu_count() or 1)
        self._pending: deque[_Block] = deque()
        self._begun: dict[int, BlockSums] = {}  # of examples whose later queries are yet to come
        places = len(self._layers) * len(self._heads)
        self._totals, self._counts = np.zeros((2, places, len(METRICS) - 1))
        self._profile, self._centre = np.zeros((places, 1)), 0
        self._examples = np.zeros(places, np.int64)
        self._queries = np.zeros(places, np.int64)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(
        self,
        block: Float[Any, "*lead query key"] | Callable[[], Float[Any, "*lead query key"]],
        geometry: Geometry,
        *,
        layer: int | None = None,
        head: int | None = None,
        first: int = 0,
        stop: int | None = None,
    ) -> None:
        """Takes the query rows of an example from `first` to before `stop`, all of them by default.

        The block is (layer, head, query, key), or without the axes of a `layer` and `head` that are said; or what
        gives it when it is called, by another thread. Rows of one example and layer come in order; keys that come
        after all of them may be left out of a causal block. It must not change any more.
        """
        if geometry.queries == 0 or geometry.keys == 0:
            return
        stop = geometry.queries if stop is None else stop
        place = self._place(layer, head)
        sums = self._pool.submit(self._sums_of, block, geometry, place, first)
        self._pending.append(_Block(place, geometry, stop == geometry.queries, sums))
        while len(self._pending) > self._most_pending:
            self._settle(self._pending.popleft())

    def _sums_of(self, block: Any, geometry: Geometry, place: slice, first: int) -> BlockSums:
        array: Any = block() if callable(block) else block
        flat = array.reshape(place.stop - place.start, *array.shape[-2:])
        return block_sums(flat, geometry, first, convention=self._convention)

    def _place(self, layer: int | None, head: int | None) -> slice:
        start = 0 if layer is None else self._layers.index(layer) * len(self._heads)
        if head is not None:
            start += self._heads.index(head)
            return slice(start, start + 1)
        return slice(start, start + (len(self._heads) if layer is not None else len(self._totals)))

    def _settle(self, block: _Block) -> None:
        place, geometry = block.place, block.geometry
        sums = block.sums.result()
        if place.start in self._begun:
            sums = self._begun.pop(place.start) + sums
        if not block.is_last:
            self._begun[place.start] = sums
            return
        means = example_means(sums, geometry, convention=self._convention, window=self._window)
        profile = sums.profile
        if self._convention.weighs == "examples":
            known = means.counts > 0
            self._totals[place] += np.divide(means.sums, means.counts, out=np.zeros_like(means.sums), where=known)
            self._counts[place] += known
            profile = profile / geometry.queries
        else:
            self._totals[place] += means.sums
            self._counts[place] += means.counts
        if geometry.aligned:
            self._reach(geometry)
            start = self._centre - (geometry.queries - 1)
            self._profile[place, start : start + profile.shape[1]] += profile
        self._examples[place] += 1
        self._queries[place] += geometry.queries

    def _reach(self, geometry: Geometry) -> None:
        """Makes room for an example longer than all before."""
        before = max(0, geometry.queries - 1 - self._centre)
        after = max(0, geometry.keys - (self._profile.shape[1] - self._centre))
        if before or after:
            self._profile = np.pad(self._profile, ((0, 0), (before, after)))
            self._centre += before

    def metrics(self) -> HeadMetrics:
        """Returns the metrics of all that was added.

        Raises:
            UsageError: that was nothing.
            NumericError, Unsupported: as `block_sums` raises them.
        """
        while self._pending:
            self._settle(self._pending.popleft())
        if not self._examples.any():
            raise UsageError("no attention to measure", why="there is no example with a token")
        means = np.divide(self._totals, self._counts, out=np.full_like(self._totals, np.nan), where=self._counts > 0)
        span = np.full(len(means), np.nan)
        if self._profile.any():
            span = effective_span(self._profile, self._centre)
        names = tuple(HeadName(self._attention, layer, head) for layer in self._layers for head in self._heads)
        about = Measured(
            convention=self._convention.name,
            sparse_below=self._convention.sparse_weight,
            window=self._window,
            examples={self._attention: int(self._examples.max())},
            queries={self._attention: int(self._queries.max())},
        )
        return HeadMetrics(names, _columns(means, span, self._convention), about)


class Averaging:
    """Averages the metrics of single examples of one attention, as `Measurement` would have found them together.

    What is averaged is the exact convention's. The effective span of several examples is not known from theirs: NaN.

    Args:
        attention: Which one.
        layers: The model's numbers of its layers.
        heads: The model's numbers of its heads.
        window: How far `local_mass` reaches on either side.
    """

    def __init__(self, attention: str, layers: Sequence[int], heads: Sequence[int], *, window: int) -> None:
        self._names = tuple(HeadName(attention, layer, head) for layer in layers for head in heads)
        self._attention, self._window = attention, window
        self._totals, self._counts = np.zeros((2, len(layers), len(heads), len(METRICS) - 1))
        self._span = np.full((len(layers), len(heads)), np.nan)
        self._examples = self._queries = 0

    def add(
        self,
        values: Float[np.ndarray, "layer head metric"],
        weights: Float64[np.ndarray, "layer _"],
        queries: int,
    ) -> None:
        """Takes the metrics of one example, and what they count in each layer: see `example_weights`."""
        shares = np.broadcast_to(weights[:, None], self._counts.shape)
        self._totals += np.where(shares > 0, values[..., :-1] * shares, 0)
        self._counts += shares
        self._examples += 1
        self._queries += queries
        self._span[:] = values[..., -1] if self._examples == 1 else np.nan

    def metrics(self) -> HeadMetrics:
        """Returns the metrics of all that was added.

        Raises:
            UsageError: that was nothing.
        """
        if not self._examples:
            raise UsageError("no attention to measure", why="there is no example with a token")
        convention = CONVENTIONS["exact"]
        means = np.divide(self._totals, self._counts, out=np.full_like(self._totals, np.nan), where=self._counts > 0)
        about = Measured(
            convention=convention.name,
            sparse_below=convention.sparse_weight,
            window=self._window,
            examples={self._attention: self._examples},
            queries={self._attention: self._queries},
        )
        columns = _columns(means.reshape(len(self._names), -1), self._span.reshape(-1), convention)
        return HeadMetrics(self._names, columns, about)


def _columns(
    means: Float64[np.ndarray, "row _"], span: Float64[np.ndarray, "row"], convention: Convention
) -> dict[str, Float64[np.ndarray, "row"]]:
    """The columns of a table, by their names in it."""
    found = dict(zip((name for name in METRICS if name != "effective_span"), means.T, strict=True))
    found["effective_span"] = span
    return {convention.column(name): found[name].copy() for name in METRICS}
