"""Shows where the time of an extraction goes, as shares of the plain forward pass of the same turn.

    python benchmarks/breakdown.py [--json FILE] [--folder FOLDER] [--turns 5]

GPT-2 small's shape with random weights on the CPU, batches of 8 x 128 tokens, all of attn + qkv + hidden + resid.
Each stage does all of the stage before it and one thing more, so that the difference is what that thing costs:

1. the plain pass;
2. observed: hooks are called, patterns are computed, and all is thrown away;
3. packed: cast to float16 and put in its place in the shard's memory;
4. the whole run: shards written durably beside the next batches, tokenising and finishing included.

A commit and a finish are also measured by themselves, when no model runs.
"""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from extract import EVERYTHING, Bench, make_model
from table import Row, delete, main, row, seconds

N_BATCHES = 8


class Nowhere:
    """A recorder's sink that keeps nothing."""

    def rows(self, spec: Any, layer: int | None, rows: Any) -> None: ...
    def square(self, spec: Any, layer: int, example: int, queries: Any, keys: Any, block: Any) -> None: ...


class Stages:
    """The stages over one prepared extraction."""

    def __init__(self, bench: Bench) -> None:
        from traceformer.capture.batches import BatchInputs
        from traceformer.capture.extract import prepare, read_texts
        from traceformer.capture.packing import Batching, batches_by_length
        from traceformer.capture.pipeline import ShardSink
        from traceformer.sites import Selection
        from traceformer.store.buffer import ShardBuffer
        from traceformer.store.place import Storage

        texts = read_texts(bench.texts, max_seq_len=bench.n_tokens)
        self.bench, self.prepared = bench, prepare(bench.loaded, texts, Selection(EVERYTHING), Storage())
        _, rows = self.prepared.rows.part(self.prepared.layout.shard_range(0))
        self.inputs = BatchInputs(bench.loaded)
        [self.batch, *_] = batches_by_length([row.lengths for row in rows], Batching(rows=bench.batch))
        self.rows = [rows[index] for index in self.batch]
        self.lengths = {stack: [row.length(stack) for row in rows] for stack in rows[0].ids}
        self.buffer = ShardBuffer(self.prepared.layout)
        self.buffer.begin(self.lengths)
        self.sink = ShardSink(self.buffer, self.prepared.layout, lambda _: None)

    def observed(self, sink: Any = None) -> None:
        from traceformer.capture.recorder import Recorder

        with Recorder(self.bench.loaded.model, self.prepared.plan.arrays, sink or Nowhere()) as recorder:
            for _ in range(N_BATCHES):
                inputs, spans = self.inputs.to_run(self.rows)
                if sink is not None:
                    sink.begin(self.batch, spans)
                recorder.run(spans, **inputs)

    def packed(self) -> None:
        self.observed(self.sink)

    def whole(self) -> None:
        self.bench.recording(EVERYTHING)()

    def commits(self) -> tuple[float, float, float]:
        """Returns the seconds and core-seconds of a commit, and the seconds of a finish, with nothing beside them."""
        from traceformer.capture.provenance import model_meta, text_meta, token_table
        from traceformer.store.writer import RunWriter

        folder = self.bench.folder / "commits"
        delete(folder)
        plan, texts, layout = self.prepared
        meta = model_meta(self.bench.loaded, plan) | text_meta(texts)
        walls: list[float] = []
        cores: list[float] = []
        with RunWriter.create(folder, layout, meta, digest={}) as writer:
            for shard in list(writer.pending):
                examples, rows = texts.part(layout.shard_range(shard))
                buffer = writer.buffer()
                buffer.begin({stack: [row.length(stack) for row in rows] for stack in rows[0].ids})
                for key, array in buffer.arrays.items():
                    array[:] = self.buffer.arrays[key]
                tokens = token_table(texts, examples, rows)
                cores.append(-time.process_time())
                walls.append(seconds(lambda: writer.commit(shard, buffer, tokens)))  # noqa: B023
                cores[-1] += time.process_time()
            finish = seconds(writer.finish)
        return statistics.median(walls), statistics.median(cores), finish


def measure(folder: Path, turns: int) -> Iterator[Row]:
    bench = Bench(folder, make_model(folder / "gpt2-shape"), 8, 128, N_BATCHES)
    stages = Stages(bench)
    shares: dict[str, list[float]] = {name: [] for name in ("observe", "pack", "rest", "commit", "cores", "finish")}
    n_shards = stages.prepared.layout.n_shards
    for turn in range(turns + 1):
        plain = seconds(bench.plain)
        observed, packed = seconds(stages.observed), seconds(stages.packed)
        bench.delete()
        whole = seconds(stages.whole)
        commit, cores, finish = stages.commits()
        if turn:  # the first one warms up
            took = (observed - plain, packed - observed, whole - packed, n_shards * commit, n_shards * cores, finish)
            for share, value in zip(shares.values(), took, strict=True):
                share.append(value / plain)
    yield row("hooks and patterns, over the plain pass", shares["observe"], None)
    yield row("casting and packing", shares["pack"], None)
    yield row("everything else of a run: commits beside it, finishing", shares["rest"], None)
    yield row("its commits, were they alone", shares["commit"], None)
    yield row("core-seconds of its commits over the plain pass's seconds", shares["cores"], None)
    yield row("finishing the run, alone", shares["finish"], None, note="once a run")


if __name__ == "__main__":
    main(__doc__, measure)
