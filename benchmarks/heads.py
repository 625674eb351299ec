"""Measures head metrics against plain numpy loops over the same stored patterns, and live against extract and read.

    python benchmarks/heads.py [--json FILE] [--folder FOLDER] [--turns 7] [--quick]

96 heads, 10 sequences of 1024 tokens. A loop takes one (query, key) matrix after the other through TraceStore, as
float32, and writes each metric down as numpy has it; one sequence is timed in each turn, times ten. Ratios are those of
one turn; each figure is the median of the turns, with the smallest and the largest.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from extract import make_model, make_texts
from table import Ratios, Row, Took, delete, in_process, main, row, took

from traceformer.questions.heads import heads
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.layout import RunLayout
from traceformer.store.run import TraceStore
from traceformer.store.writer import RunWriter

LAYERS, HEADS, TOKENS, SEQUENCES = 12, 8, 1024, 10
PATTERN = ArraySpec(ArrayKey.parse("dec.self.attn_pattern"), tuple(range(LAYERS)), tuple(range(HEADS)))


def write_run(folder: Path) -> TraceStore:
    """Writes synthetic causal patterns: heads look back over 2 to 2000 tokens, and at token 0."""
    sizes = {"n_examples": SEQUENCES, "longest": {"dec": TOKENS}}
    layout = RunLayout.plan(arch="dec", arrays=[PATTERN], triangles=[PATTERN.key], **sizes)
    random = np.random.default_rng(0)
    distance = np.arange(TOKENS)[:, None] - np.arange(TOKENS)
    reach = np.geomspace(2, 2000, LAYERS * HEADS).reshape(LAYERS, HEADS, 1, 1)
    with RunWriter.create(folder, layout, {"arch": "dec"}, digest={}) as writer:
        for shard in writer.pending:
            examples = layout.shard_range(shard)
            buffer = writer.buffer()
            buffer.begin({"dec": [TOKENS] * len(examples)})
            for slot in range(len(examples)):
                patterns = np.empty((LAYERS, HEADS, TOKENS, TOKENS), np.float16)
                for layer in range(LAYERS):
                    scores = random.standard_normal((HEADS, TOKENS, TOKENS), np.float32) * 1.5 - distance / reach[layer]
                    scores[..., 0] += 2
                    scores[..., distance < 0] = -np.inf
                    scores -= scores.max(-1, keepdims=True)
                    np.exp(scores, out=scores)
                    patterns[layer] = scores / scores.sum(-1, keepdims=True)
                buffer.put(PATTERN, slot, patterns)
            ids = random.integers(0, 256, (len(examples), TOKENS)).tolist()
            tokens = pa.table({"example_id": [f"example-{i}" for i in examples], "input_ids": ids})
            writer.commit(shard, buffer, tokens)
        return TraceStore(writer.finish())


def thesis_loop(store: TraceStore, example_id: str) -> None:
    """The byte-transformer thesis's three metrics, matrix by matrix."""
    for layer in range(LAYERS):
        for head in range(HEADS):
            a = store.attn(example_id, layer, head)
            a = a / (a.sum(-1, keepdims=True) + 1e-9)
            distance = np.abs(np.arange(TOKENS)[:, None] - np.arange(TOKENS))
            _ = -(a * np.log(a + 1e-9)).sum(-1).mean(), (a < 1e-4).mean(), (a * distance).sum() / a.sum()


def full_loop(store: TraceStore, example_id: str) -> None:
    """Every metric of `traceformer heads`, matrix by matrix."""
    tokens = np.asarray(store.encodings(example_id)["input_ids"])
    offset = np.arange(TOKENS) - np.arange(TOKENS)[:, None]
    same = (tokens[:, None] == tokens) & (offset < 0)
    follow = np.zeros_like(same)
    follow[:, 1:] = same[:, :-1]
    for layer in range(LAYERS):
        for head in range(HEADS):
            a = store.attn(example_id, layer, head)
            a = a / a.sum(-1, keepdims=True)
            _ = -(a * np.log(np.where(a > 0, a, 1))).sum(-1).mean(), (a < 1e-4)[offset <= 0].mean()
            _ = (a * np.abs(offset)).sum() / TOKENS, a.max(-1).mean(), a[:, 0].mean()
            _ = a.diagonal().mean(), a.diagonal(-1).mean(), a[np.abs(offset) <= 8].sum() / TOKENS
            _ = a[same].sum() / same.any(1).sum(), a[follow].sum() / follow.any(1).sum()
            within = np.cumsum([a.diagonal(-d).sum() for d in range(TOKENS)])
            _ = np.argmax(within >= 0.9 * within[-1])


def measure_stored(folder: Path, turns: int, quick: bool) -> Iterator[Row]:
    store = write_run(folder / "run")
    size = SEQUENCES * LAYERS * HEADS * TOKENS**2 * 2
    loops = {"thesis": thesis_loop, "full": full_loop}
    ratios = {name: Ratios() for name in loops}
    seconds: list[float] = []
    for turn in range(2 if quick else turns + 1):
        example_id = store.ids[turn % SEQUENCES]
        own = took(lambda: heads(store))
        for name, loop in loops.items():
            of_one = took(lambda loop=loop, e=example_id: loop(store, e))
            if turn:  # the first one warms up
                ratios[name].add(own, Took(SEQUENCES * of_one.wall, SEQUENCES * of_one.processor))
        if turn:
            seconds.append(own.wall)
    yield row("all metrics over a loop for all metrics", ratios["full"], 0.15)
    yield row("all metrics over a loop for the thesis's three", ratios["thesis"], 0.1)
    yield row("seconds", seconds, None, note=f"{size / min(seconds) / 1e9:.2f} GB/s of padded float16 at best")
    peak = in_process(PEAK.format(run=str(folder / "run"))) / 1e6
    yield row("peak memory of a process that does it, MB", [peak], 500, note=f"of {size / 1e9:.1f} GB")


PEAK = """
from table import memory
from traceformer.questions.heads import heads
from traceformer.store.run import TraceStore
heads(TraceStore({run!r}))
print(memory("VmHWM"))
"""


def measure_live(folder: Path, turns: int, quick: bool) -> Iterator[Row]:
    """GPT-2 small's shape with random weights, on the CPU; the model is loaded in both."""
    from traceformer.capture.extract import record
    from traceformer.models.load import load_model

    model = make_model(folder / "gpt2-shape")
    texts = make_texts(folder / "texts.txt", 4, 512)
    how = {"limit": 4, "batch_size": 4}

    def stored() -> object:
        loaded = load_model(str(model), device="cpu")
        return heads(record(loaded, texts, "attn", max_seq_len=512, out=folder / "live-run", overwrite=True, **how))

    def live() -> object:
        return heads(load_model(str(model), device="cpu"), str(texts), seq_length=512, **how)

    ratios = Ratios()
    for turn in range(2 if quick else turns + 1):
        delete(folder / "live-run")
        other = took(stored)
        own = took(live)
        if turn:
            ratios.add(own, other)
    yield row("live over extract and read, 12 layers, 4 x 512 tokens", ratios, 1.0)


if __name__ == "__main__":
    main(__doc__, measure_stored, measure_live)
