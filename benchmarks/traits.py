"""Measures projections and the logit lens, against reading the same bytes and against generating without recording.

    python benchmarks/traits.py [--json FILE] [--folder FOLDER] [--quick]

1. A million stored tokens (one layer of width 768, float16) onto ten directions, against `np.fromfile` of the same
   files, both from the page cache; reading and multiplying in plain numpy beside it.
2. `--project` while generating (GPT-2 small's shape, random weights, ten directions, all layers) against plain
   `generate`.
3. The lens's memory: 32 layers of 512 positions, 32,000 words, against all logits in float32.
4. Bytes of the Gemma capture's files over those of the run that they came from, 20 + 50 tokens of `byte`: as exported,
   and with each square and row a tensor of its own, as the capture's code saves them.
"""

import os
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from extract import make_model
from generate import Bench
from table import Row, in_turn, main, row, seconds

from traceformer.analysis.lens import normed, read_out
from traceformer.models.readout import Readout
from traceformer.models.weights import StoredTensor
from traceformer.questions.trait_rows import project_run
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.layout import RunLayout
from traceformer.store.run import TraceStore
from traceformer.store.writer import RunWriter

WIDTH, DIRECTIONS, LENGTH = 768, 10, 500
RANDOM = np.random.default_rng(0)


def write_run(folder: Path, tokens: int) -> TraceStore:
    """Writes a run of one layer of the residual stream, and opens it."""
    n_examples = tokens // LENGTH
    spec = ArraySpec(ArrayKey("dec", None, "resid_post"), (0,), width=WIDTH)
    layout = RunLayout.plan(arch="dec", arrays=[spec], n_examples=n_examples, longest={"dec": LENGTH})
    some = RANDOM.standard_normal((LENGTH, WIDTH)).astype(np.float16)
    with RunWriter.create(folder, layout, {}, digest={}) as writer:
        for shard in writer.pending:
            examples, buffer = layout.shard_range(shard), writer.buffer()
            buffer.begin({"dec": [LENGTH] * len(examples)})
            for number in range(len(examples)):
                buffer.rows(spec.key, number)[...] = some
            names = [f"example-{number}" for number in examples]
            writer.commit(shard, buffer, pa.table({"example_id": names}))
        return TraceStore(writer.finish())


def measure_projection(folder: Path, quick: bool) -> Iterator[Row]:
    store = write_run(folder / "million", 20_000 if quick else 1_000_000)
    directions = RANDOM.standard_normal((DIRECTIONS, WIDTH)).astype(np.float32)
    files = sorted(store.folder.glob("*.zarr/*/c.*"))

    def read() -> None:
        for file in files:
            np.fromfile(file, np.float16)

    def in_numpy() -> None:
        units = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        rows = store.activations("resid_post", 0)
        _ = rows @ units.T, np.linalg.norm(rows, axis=1)

    works = {"ours": lambda: project_run(store, "resid_post", 0, directions), "numpy": in_numpy}
    ratios = in_turn(read, works, 1 if quick else 5)
    speed = [1 / ratio for ratio in ratios["ours"].wall]
    size = sum(file.stat().st_size for file in files)
    yield row(
        "10^6 tokens onto 10 vectors: speed over np.fromfile's", speed, 0.6, at_least=True, note=f"{size / 1e6:.0f} MB"
    )
    yield row("  activations() and one product in numpy", [1 / ratio for ratio in ratios["numpy"].wall], None)
    shutil.rmtree(store.folder)


def measure_recording(folder: Path, quick: bool) -> Iterator[Row]:
    from traceformer.capture.derived import Traits

    bench = Bench(folder, make_model(folder / "gpt2-shape"))
    vectors = {f"trait {n}": {None: RANDOM.standard_normal(WIDTH).astype(np.float32)} for n in range(DIRECTIONS)}
    recording = bench.recording(64, capture=(), project=Traits(vectors))
    ratios = in_turn(lambda: bench.plain(64), {"projected": recording}, 1 if quick else 7, between=bench.delete)
    yield row("31 + 64 tokens with --project, 12 layers x 10 / plain", ratios["projected"], 1.05)


def measure_lens(folder: Path, quick: bool) -> Iterator[Row]:
    layers, positions, words = (2, 64, 32_000) if quick else (32, 512, 32_000)
    path = folder / "unembedding"
    RANDOM.standard_normal((words, WIDTH), np.float32).tofile(path)
    readout = Readout(
        "rms", None, None, 1e-6, None, 1.0, StoredTensor(path, "unembedding", "F32", (words, WIDTH), 0), None, None
    )
    residual = RANDOM.standard_normal((layers * positions, WIDTH)).astype(np.float16)
    tracemalloc.start()
    took = seconds(lambda: read_out(normed(residual, readout), readout))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    every_logit = 4 * layers * positions * words
    note = f"{peak / 1e6:.0f} MB of {every_logit / 1e6:.0f} MB, {took:.0f} s"
    yield row("lens, 32 layers x 512 positions: peak memory / logits", [peak / every_logit], 0.15, note=note)


def measure_files(folder: Path, quick: bool) -> Iterator[Row]:
    import torch

    from traceformer.capture.generation.generate import generate
    from traceformer.formats.gemma_pt.write import LAYOUTS, write_files
    from traceformer.formats.options import ExportOptions

    def alone(value: Any) -> Any:
        """The same containers, and each tensor with a memory of its own."""
        if isinstance(value, dict):
            return {name: alone(each) for name, each in value.items() if name != "traceformer"}
        if isinstance(value, list):
            return [alone(each) for each in value]
        return value.clone() if isinstance(value, torch.Tensor) else value

    tokens = 5 if quick else 50
    run = generate("byte", "The function returns", "internals", max_tokens=tokens, out=folder / "five")
    of_the_run = sum(path.stat().st_size for path in (folder / "five").rglob("*") if path.is_file())
    for layout in sorted(LAYOUTS):
        files = list(write_files(run, folder / layout, ExportOptions(layout=layout)))
        exported = sum(path.stat().st_size for path in files)
        for path in files:
            torch.save(alone(torch.load(path, weights_only=True)), path)
        saved = sum(path.stat().st_size for path in files)
        for what, size in (
            (f"the Gemma capture's {layout} files, as exported", exported),
            ("  each square a tensor", saved),
        ):
            yield row(f"{what}: bytes / the run", [size / of_the_run], None, note=f"{size:,} of {of_the_run:,}")


if __name__ == "__main__":
    main(__doc__, measure_projection, measure_recording, measure_lens, measure_files, threads=os.cpu_count())
