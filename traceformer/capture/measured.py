"""Head metrics, worked out while the model runs and kept in place of patterns: a row of a dozen numbers per head.

1. Blocks of patterns are rounded to the dtype that the run stores, as if they were kept, and reduced to sums by
   `analysis/heads.py`, on the device that they are on; those of the processor by threads, beside the model. What the
   compiled core would make of patterns that are kept as float16 it makes here, in a thread's own memory, and each head
   is reduced while it is in the processor's cache.
2. When a layer's blocks are all there, an example's sums become its metrics: NaN where one has no meaning.

What a metric is weighted by where examples are averaged (how many queries can see a duplicate, say) follows from the
tokens: `heads` works it out again when it reads.
"""

import os
import threading
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from traceformer.analysis.conventions import CONVENTIONS
from traceformer.analysis.head_tally import attention_name
from traceformer.analysis.heads import METRICS, BlockSums, Geometry, block_sums, example_metrics
from traceformer.analysis.visibility import Visibility
from traceformer.capture.compiled import ExamplePatterns
from traceformer.capture.scores import Span
from traceformer.capture.sinks import ReducedRows
from traceformer.core.kernels import patterns, patterns_memory
from traceformer.core.library import core
from traceformer.shapes import Float32, Int64, Shaped
from traceformer.sites import ArrayKey, ArraySpec

__all__ = ["CONVENTION", "WINDOW", "Measuring", "stated_metrics"]

CONVENTION = "exact"
WINDOW = 8
_CELLS = 1 << 21  # of patterns that a thread makes before they are reduced: 4 MB


@dataclass(frozen=True, slots=True, eq=False)
class Measuring:
    """The array that metrics are recorded as, of which patterns, and how these are read.

    Attributes:
        source: The patterns.
        spec: The array.
        sights: Which keys the queries of each layer see.
        dtype: What patterns are rounded to first.
    """

    source: ArrayKey
    spec: ArraySpec
    sights: Mapping[int, Visibility] = field(default_factory=dict[int, Visibility])
    dtype: torch.dtype = torch.float16
    _geometries: "_OfPass" = field(default_factory=lambda: _OfPass(), repr=False)
    _pools: list[ThreadPoolExecutor] = field(default_factory=list[ThreadPoolExecutor], repr=False)

    @classmethod
    def of(cls, pattern: ArraySpec) -> "Measuring":
        """Returns what measures some patterns; `sights` and `dtype` are yet to be said."""
        key = pattern.key._replace(site="head_metrics")
        return cls(pattern.key, ArraySpec(key, pattern.layers, pattern.heads, len(METRICS)))

    @property
    def specs(self) -> tuple[ArraySpec]:
        return (self.spec,)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"head metrics": [*METRICS]}

    @contextmanager
    def at_work(self) -> Generator[None]:
        count = os.cpu_count() or 1
        with ThreadPoolExecutor(count, thread_name_prefix="heads") as pool:
            self._pools.append(pool)
            try:
                yield
            finally:
                self._pools.remove(pool)
                self._geometries.begin(None)

    def begin(self, layer: int, rows: ReducedRows) -> "_Measured":
        self._geometries.begin(rows.tokens)
        return _Measured(self, rows, self.sights[layer], self._pools[-1])

    def geometry(self, sight: Visibility, example: int, rows: ReducedRows) -> Geometry:
        """Returns what is known of a row's pattern; one object for all layers of a pass that see the same."""
        known = self._geometries.known
        if (sight, example) not in known:
            aligned = self.source.attention == "self"
            tokens = rows.tokens[example].astype(np.int32) if aligned and rows.tokens is not None else None
            queries, keys = rows.queries[example].length, rows.keys[example].length
            known[sight, example] = Geometry(queries, keys, sight, aligned, tokens)
        return known[sight, example]


def stated_metrics(derived: Sequence[object]) -> dict[str, Any] | None:
    """Returns what a run states of the head metrics that are recorded; None where none are."""
    measuring = [each for each in derived if isinstance(each, Measuring)]
    if not measuring:
        return None
    return {
        "names": [*METRICS],
        "convention": CONVENTION,
        "window": WINDOW,
        "rounded_to": str(measuring[0].dtype).removeprefix("torch."),
        "ahead": {
            attention_name(each.source): [layer for layer, sight in each.sights.items() if not sight.causal]
            for each in measuring
        },
    }


class _OfPass:
    """What the layers of one pass share: a pass is known by its tokens."""

    def __init__(self) -> None:
        self.known: dict[tuple[Visibility, int], Geometry] = {}
        self._tokens: object = None

    def begin(self, tokens: object) -> None:
        if tokens is None or tokens is not self._tokens:
            self.known.clear()
        self._tokens = tokens


class _Measured:
    """One layer's metrics in one pass."""

    def __init__(self, of: Measuring, rows: ReducedRows, sight: Visibility, pool: ThreadPoolExecutor) -> None:
        self._of, self._rows, self._sight, self._pool = of, rows, sight, pool
        self._most_pending = 2 * (os.cpu_count() or 1)
        self._sums: dict[int, BlockSums] = {}
        self._pending: deque[tuple[int, Future[BlockSums]]] = deque()

    def take(self, example: int, queries: Span, keys: Span, block: Float32[Tensor, "head query key"]) -> None:
        geometry = self._of.geometry(self._sight, example, self._rows)
        rounded = block.to(self._of.dtype, copy=True)
        rounded = rounded.float() if rounded.dtype == torch.bfloat16 else rounded
        given: Any = rounded.numpy() if rounded.device.type == "cpu" else rounded
        self._pending.append((example, self._pool.submit(block_sums, given, geometry, queries.start)))
        while len(self._pending) > self._most_pending:
            self._settle()

    def _settle(self) -> None:
        example, future = self._pending.popleft()
        sums = future.result()
        self._sums[example] = self._sums[example] + sums if example in self._sums else sums

    def makes_patterns(self) -> bool:
        return self._of.dtype == torch.float16

    def patterns(self, made: Sequence[ExamplePatterns]) -> None:
        own = [(each, self._of.geometry(self._sight, each.example, self._rows)) for each in made]
        parts = [[self._pool.submit(_sums, *each, heads) for heads in _in_cache(*each)] for each in own]
        for each, futures in zip(made, parts, strict=True):
            sums = [future.result() for future in futures]
            self._sums[each.example] = BlockSums(
                np.concatenate([part.direct for part in sums]),
                sums[0].repeating,
                np.concatenate([part.profile for part in sums]),
            )

    def arrays(self) -> Mapping[ArrayKey, Float32[Tensor, "batch head metric"]]:
        while self._pending:
            self._settle()
        made = np.full((len(self._rows.queries), len(self._of.spec.heads), len(METRICS)), np.nan, np.float32)
        alike: dict[tuple[int, int], list[int]] = {}
        for example in self._sums:
            geometry = self._of.geometry(self._sight, example, self._rows)
            alike.setdefault((geometry.queries, geometry.keys), []).append(example)
        for examples in alike.values():
            geometry = self._of.geometry(self._sight, examples[0], self._rows)
            sums = [self._sums[example] for example in examples]
            made[examples] = example_metrics(sums, geometry, convention=CONVENTIONS[CONVENTION], window=WINDOW)
        return {self._of.spec.key: torch.from_numpy(made)}


def _in_cache(made: ExamplePatterns, geometry: Geometry) -> list[Int64[np.ndarray, "head"]]:
    """The heads, as many together as stay in a processor's cache, and at least one."""
    at_once = max(1, _CELLS // (geometry.queries * geometry.keys))
    return [made.heads[start : start + at_once] for start in range(0, len(made.heads), at_once)]


def _sums(made: ExamplePatterns, geometry: Geometry, heads: Int64[np.ndarray, "head"]) -> BlockSums:
    """The sums of some heads' patterns, which are made as many rows at a time as stay in a processor's cache."""
    there, call = core(), made.call
    assert there is not None
    rows = min(geometry.queries, max(1, _CELLS // (len(heads) * geometry.keys)))
    memory = _own.floats(patterns_memory(there, call))
    cells = _own.halves(len(heads) * rows * geometry.keys).reshape(len(heads), -1)
    sums = None
    for first in range(0, geometry.queries, rows):
        stop = min(first + rows, geometry.queries)
        part = cells[:, : (stop - first) * geometry.keys]
        patterns(there, call, heads, first, stop, memory, part, geometry.keys)
        own = block_sums(part.reshape(len(heads), stop - first, geometry.keys), geometry, first)
        sums = own if sums is None else sums + own
    assert sums is not None
    return sums


class _Memory(threading.local):
    """A thread's memory, which is used again."""

    def __init__(self) -> None:
        self._floats, self._halves = np.empty(0, np.float32), np.empty(0, np.float16)

    def floats(self, size: int) -> Float32[np.ndarray, "_"]:
        if self._floats.size < size:
            self._floats = np.empty(size, np.float32)
        return self._floats

    def halves(self, size: int) -> Shaped[np.ndarray, "_"]:
        if self._halves.size < size:
            self._halves = np.empty(size, np.float16)
        return self._halves[:size]


_own = _Memory()
