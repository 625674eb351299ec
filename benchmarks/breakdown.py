"""Shows where the time of an extraction goes, as shares of the plain forward pass of the same turn.

    python benchmarks/breakdown.py [--json FILE] [--folder FOLDER] [--turns 7]

GPT-2 small's shape with random weights on the CPU, batches of 8 x 128 tokens, all of attn + qkv + hidden + resid.
Each stage does all of the stage before it and one thing more, so that the difference is what that thing costs:

1. the plain pass;
2. observed: hooks are called, patterns are computed, and all is thrown away;
3. kept: a run in memory, for which everything is cast and put in its place;
4. the whole run: compressed, and written durably beside the next batches.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from extract import EVERYTHING, Bench, make_model
from table import Ratios, Row, Took, main, row, took

N_BATCHES = 8


class Nowhere:
    """A recorder's sink that keeps nothing."""

    def begin(self, rows: Any, spans: Any) -> None: ...
    def end(self) -> None: ...
    def rows(self, spec: Any, layer: int | None, rows: Any) -> None: ...
    def square(self, spec: Any, layer: int, example: int, queries: Any, keys: Any, block: Any) -> None: ...


def observed(bench: Bench) -> Callable[[], object]:
    """Returns what runs the batches of the extraction under its recorder, and keeps nothing."""
    from traceformer.capture.batches import run_batches
    from traceformer.capture.packing import Batching, batches_by_length

    model, plan, rows, layout = bench.prepared(EVERYTHING)
    _, read = rows.part(range(layout.n_examples))
    batches = batches_by_length([row.lengths for row in read], Batching(bench.batch))
    return lambda: run_batches(model, plan, read, batches, Nowhere())


def less(one: Took, other: Took) -> Took:
    return Took(one.wall - other.wall, one.processor - other.processor)


def measure(folder: Path, turns: int) -> Iterator[Row]:
    bench = Bench(folder, make_model(folder / "gpt2-shape"), 8, 128, N_BATCHES)
    stages: dict[str, Callable[[], object]] = {
        "hooks and patterns, over the plain pass": observed(bench),
        "casting, and putting in place": bench.in_memory(EVERYTHING),
        "everything else of a run: compressing, writing, finishing": bench.recording(EVERYTHING),
    }
    shares = {name: Ratios() for name in stages}
    for turn in range(turns + 1):
        plain = before = took(bench.plain)
        for name, stage in stages.items():
            bench.delete()
            own = took(stage)
            if turn:  # the first one warms up
                shares[name].add(less(own, before), plain)
            before = own
    for name, share in shares.items():
        yield row(name, share, None)


if __name__ == "__main__":
    main(__doc__, measure, threads=os.cpu_count())
