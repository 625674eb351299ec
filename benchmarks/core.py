"""Measures the compiled core against what takes its place without it, kernel by kernel.

    python benchmarks/core.py [--json FILE] [--turns 7] [--quick]

Each figure is the processor's time of one kernel over that of its like in numpy or torch, in the same turn, on one
thread; the median of the turns. The like is the product's own code with the core switched off.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from table import Ratios, Row, main, row, took

from traceformer.analysis.heads import Geometry, block_sums
from traceformer.analysis.projection import project_units
from traceformer.analysis.visibility import Visibility
from traceformer.capture.compiled import cast, compiled_patterns
from traceformer.capture.scores import AttentionCall, Span, blocks_of_queries
from traceformer.core import kernels
from traceformer.core.library import SWITCH, core
from traceformer.store.dtypes import first_nonfinite
from traceformer.store.triangles import fold, n_cells, unfold

HEADS, D_HEAD, WIDTH = 12, 64, 768
RANDOM = np.random.default_rng(0)


def switched(on: bool, work: Callable[[], object]) -> Callable[[], object]:
    """Returns the work, done with or without the core."""

    def do() -> None:
        before = os.environ.pop(SWITCH, None)
        if not on:
            os.environ[SWITCH] = "off"
        try:
            work()
        finally:
            os.environ.pop(SWITCH, None)
            if before is not None:
                os.environ[SWITCH] = before

    return do


def compared(what: str, compiled: Callable[[], object], like: Callable[[], object], turns: int, times: int) -> Row:
    """Returns the row of a kernel over its like, each done so many times in a turn."""

    def several(work: Callable[[], object]) -> Callable[[], None]:
        def do() -> None:
            for _ in range(times):
                work()

        return do

    ratios, fastest = Ratios(), (float("inf"), float("inf"))
    for turn in range(turns + 1):
        other = took(several(switched(False, like)))
        own = took(several(switched(True, compiled)))
        if turn:
            ratios.add(own, other)
            fastest = min(fastest[0], own.processor), min(fastest[1], other.processor)
    own, other = (1e3 * each / times for each in fastest)
    return row(what, ratios.processor, None, note=f"{own:.3f} ms, {other:.3f} without")


def of_a_layer(length: int) -> tuple[AttentionCall, torch.Tensor]:
    """Returns a call with q and k as views of one product, as GPT-2 makes them, and room for its triangles."""
    torch.manual_seed(0)
    fused = torch.randn(1, length, 3 * HEADS * D_HEAD)
    query, key, value = (part.unflatten(-1, (HEADS, D_HEAD)).transpose(1, 2) for part in fused.chunk(3, -1))
    call = AttentionCall(query, key, value, None, None, None, D_HEAD**-0.5, None, True, None)
    return call, torch.empty(HEADS, length, length, dtype=torch.float16)


def patterns_compiled(call: AttentionCall, cells: np.ndarray) -> None:
    there, length = core(), call.query.shape[2]
    made = compiled_patterns(call, range(HEADS), ahead=False)
    assert there is not None
    assert made is not None
    own = made.of(0, Span(0, length), Span(0, length))
    memory = np.empty(kernels.patterns_memory(there, own.call), np.float32)
    kernels.patterns(there, own.call, own.heads, 0, length, memory, cells, 0)


def patterns_by_torch(call: AttentionCall, block: torch.Tensor, cells: np.ndarray) -> None:
    heads, length = torch.arange(HEADS), call.query.shape[2]
    for queries in blocks_of_queries(Span(0, length), HEADS, length):
        keys = Span(0, queries.stop)
        pattern = call.pattern(call.scores(0, heads, queries, keys), 0, heads, queries, keys)
        rows = block[:, : queries.length, : keys.length].copy_(pattern).numpy()
        fold(rows, queries.start, cells[:, n_cells(queries.start) : n_cells(queries.stop)])


def measure_patterns(turns: int, quick: bool) -> Iterator[Row]:
    for length in (128, 1024):
        call, block = of_a_layer(length)
        cells = np.empty((HEADS, n_cells(length)), np.float16)
        compiled, like = partial(patterns_compiled, call, cells), partial(patterns_by_torch, call, block, cells)
        yield compared(f"patterns of a layer, T = {length}", compiled, like, turns, 2 if quick else 2048 // length)


def measure_rows(turns: int, quick: bool) -> Iterator[Row]:
    rows = torch.randn(1024, WIDTH)
    target = torch.empty(1024, WIDTH, dtype=torch.float16)

    def like() -> None:
        first_nonfinite(target.copy_(rows).numpy(), "float16")

    yield compared("rows cast and looked through, 1024 x 768", lambda: cast(target, rows), like, turns, 20)
    stored, units = (
        RANDOM.standard_normal((8192, WIDTH)).astype(np.float16),
        RANDOM.standard_normal((10, WIDTH), np.float32),
    )

    def projected() -> None:
        project_units(stored, units)

    yield compared("8192 rows onto ten directions", projected, projected, turns, 2)


def measure_triangles(turns: int, quick: bool) -> Iterator[Row]:
    for length in (256, 1024):
        cells = RANDOM.random((1, n_cells(length)), np.float32).astype(np.float16)

        def unpacked(cells: np.ndarray = cells, length: int = length) -> None:
            unfold(cells, 0, length, length)

        yield compared(f"a triangle unpacked, T = {length}", unpacked, unpacked, turns, 20)
        square = np.tril(RANDOM.random((HEADS, length, length), np.float32)).astype(np.float16)
        room = np.empty((HEADS, n_cells(length)), np.float16)

        def packed(square: np.ndarray = square, room: np.ndarray = room) -> None:
            fold(square, 0, room)

        yield compared(f"12 triangles packed, T = {length}", packed, packed, turns, 4)


def measure_heads(turns: int, quick: bool) -> Iterator[Row]:
    for length in (256, 1024):
        weights = np.tril(RANDOM.random((4, length, length), np.float32) ** 8 + 1e-6)
        pattern = (weights / weights.sum(-1, keepdims=True)).astype(np.float16)
        geometry = Geometry(length, length, Visibility(causal=True), tokens=RANDOM.integers(0, 256, length))

        def summed(pattern: np.ndarray = pattern, geometry: Geometry = geometry) -> None:
            block_sums(pattern, geometry)

        yield compared(f"sums of four heads' metrics, T = {length}", summed, summed, turns, 2)


def measure(turns: int, quick: bool) -> Iterator[Row]:
    torch.set_num_threads(1)
    if core() is None:
        raise SystemExit("there is no compiled core: python -m traceformer.core.building")
    turns = 2 if quick else turns
    for part in (measure_patterns, measure_rows, measure_triangles, measure_heads):
        yield from part(turns, quick)


if __name__ == "__main__":
    main(__doc__, measure)
