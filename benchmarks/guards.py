"""Measures what guards take of the work that they guard.

Readers' comparisons, of a first read: on the demo's texts, recorded with the built-in model.

    python benchmarks/guards.py [--json FILE] [--folder FOLDER] [--turns 5]

Each figure is the time of the comparisons alone over that of the whole read, in a run that was just opened and whose
files the operating system has in memory: from a disk the read would take longer, and the comparisons no more.

What is proved of a model before its first batch, of the extractions of `extract.py`: its time alone over that of the
whole extraction, which it is a part of.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from table import Row, main, row, seconds

import traceformer as tf
from traceformer.store.commits import read_commits, read_manifest, token_path
from traceformer.store.files import Checksum, is_intact
from traceformer.store.folder import RunFolder
from traceformer.store.layout import TOKENS
from traceformer.store.marks import check_file
from traceformer.store.run import Run

MOST = 0.03
MOST_OF_A_RUN = 0.02
TIMES = 5
BYTES = 100  # of each text: those of the demo, four times


def measure(folder: Path, turns: int) -> Iterator[Row]:
    from traceformer.texts.load import load_texts

    texts = [example.text[:BYTES] for example in load_texts("demo").examples] * 4
    place = folder / "run"
    run = tf.record("byte", texts, "attn resid", out=place, shard_examples=64)
    written = {path: of for each in read_commits(place, RunFolder.open(place).head) for path, of in each.files.items()}
    pattern, rows = run.spec("attn_pattern"), run.spec("resid_post")

    def compare(spec: Any, shards: range) -> None:
        for shard in shards:
            for path in run.layout.shard_files(spec, shard):
                check_file(place / path, written[path], run.layout.index_bytes(spec))

    def hash_whole(name: str, told: Callable[[], Checksum]) -> None:
        assert is_intact((place / name).read_bytes(), told())

    def share(what: str, work: Callable[[], object], read: Callable[[Run], object]) -> Row:
        ratios: list[float] = []
        for _ in range(turns):
            alone = seconds(lambda: [work() for _ in range(TIMES)])
            whole = seconds(lambda: [read(Run(place)) for _ in range(TIMES)])
            ratios.append(alone / whole)
        return row(f"comparing, of opening a run and reading {what}", ratios, MOST)

    every, name = range(run.layout.n_shards), token_path(0)
    yield share("a matrix", lambda: compare(pattern, every[:1]), lambda again: again.attn(0, 1, 0))
    yield share("a layer", lambda: compare(rows, every), lambda again: again.activations("resid_post", 1))
    yield share("a text", lambda: hash_whole(name, lambda: written[name]), lambda again: again.text(0))
    yield share(
        "all texts", lambda: hash_whole(TOKENS, lambda: read_manifest(place)[TOKENS]), lambda again: again.tokens
    )


def measure_proofs(folder: Path, turns: int) -> Iterator[Row]:
    from extract import EVERYTHING, HEADS_3X3, SHAPES, Bench, make_model

    from traceformer.capture.proofs.first import prove_first

    model = make_model(folder / "gpt2-shape")
    for batch, n_tokens, n_batches in SHAPES:
        bench = Bench(folder, model, batch, n_tokens, n_batches)
        for name, capture, selected in (("everything", EVERYTHING, {}), ("3 layers x 3 heads", ("attn",), HEADS_3X3)):
            run, ready = bench.recording(capture, **selected), bench.prepared(capture, **selected)
            _, rows = ready.rows.part(range(batch))
            prove = partial(prove_first, bench.loaded, ready.plan, rows, sum(ready.rows.lengths.total.values()))
            ratios: list[float] = []
            for turn in range(turns + 1):
                bench.delete()
                whole = seconds(run)
                alone = seconds(prove)
                if turn:
                    ratios.append(alone / whole)
            yield row(f"proving first, of {batch} x {n_tokens}, {name}", ratios, MOST_OF_A_RUN)
        bench.delete()


if __name__ == "__main__":
    main(__doc__, measure, measure_proofs)
