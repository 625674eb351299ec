"""Measures probes: how their memory grows with the run, what their passes cost, and scikit-learn on the same rows.

    python benchmarks/probe.py [--json FILE] [--folder FOLDER] [--turns 3] [--quick]

1. Runs of 10^5 and 10^6 rows (one layer of width 256, float16, texts of 500 tokens, a label of ten classes): the peak
   of a new process's memory over what it had before, and the seconds of one probe with its controls. Both runs are
   larger than what is kept between passes.
2. 10^5 of these rows in memory: one regression against scikit-learn's, which is told to come as near to the minimum.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from table import ONE_ARENA, Row, in_process, in_turn, main, row

from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.layout import RunLayout
from traceformer.store.run import Run
from traceformer.store.writer import RunWriter

WIDTH, LENGTH, CLASSES, KINDS = 256, 500, 10, 2000
ROWS = (100_000, 1_000_000)
_FIT = (
    "from traceformer.questions.probes import fit_probe; from traceformer.store.run import Run; import pyarrow.compute"
)
_MB = 1e6


def write_run(folder: Path, n_rows: int) -> Path:
    """Writes a run of one layer, whose label is told by planes, but for noise."""
    n_examples = n_rows // LENGTH
    spec = ArraySpec(ArrayKey("dec", None, "resid_post"), (0,), width=WIDTH)
    layout = RunLayout.plan(arch="dec", arrays=[spec], n_examples=n_examples, longest={"dec": LENGTH})
    random = np.random.default_rng(0)
    planes = random.standard_normal((WIDTH, CLASSES)) / 8
    mixing = random.standard_normal((WIDTH, WIDTH)) * np.geomspace(0.02, 1, WIDTH) / 4  # columns that move together
    with RunWriter.create(folder, layout, {"model": "made up", "arch": "dec"}, digest={}) as writer:
        for shard in writer.pending:
            examples, buffer = layout.shard_range(shard), writer.buffer()
            buffer.begin({"dec": [LENGTH] * len(examples)})
            labels: list[list[int]] = []
            for number in range(len(examples)):
                rows = random.standard_normal((LENGTH, WIDTH)) @ mixing
                buffer.rows(spec.key, number)[...] = rows
                labels.append((rows @ planes + random.gumbel(size=(LENGTH, CLASSES)) / 4).argmax(axis=1).tolist())
            table = {
                "example_id": [f"example-{number}" for number in examples],
                "text": ["made up"] * len(examples),
                "input_ids": random.integers(0, KINDS, (len(examples), LENGTH)).tolist(),
                "tokens": [["t"] * LENGTH] * len(examples),
                "kind_of_token": labels,
            }
            writer.commit(shard, buffer, pa.table(table))
        return Path(writer.finish())


def fitted(folder: Path, then: str) -> float:
    """Returns what a new process says of one probe and its controls."""
    code = (
        f"from pathlib import Path; import time; from table import memory; {_FIT}; run = Run(Path({str(folder)!r})); "
        "before, start = memory('VmRSS'), time.perf_counter(); found = fit_probe(run, 'kind_of_token'); "
        f"assert found.best.converged; print({then})"
    )
    return in_process(code, **ONE_ARENA, OMP_NUM_THREADS="2", OPENBLAS_NUM_THREADS="2")


def measure(folder: Path, turns: int, quick: bool) -> Iterator[Row]:
    sizes = tuple(size // 20 for size in ROWS) if quick else ROWS
    peaks: dict[int, float] = {}
    for size in sizes:
        run = write_run(folder / str(size), size)
        peaks[size] = fitted(run, "memory('VmHWM') - before")
        yield row(f"{size:,} rows: MB that a probe takes", [peaks[size] / _MB], None)
        passes = fitted(run, "found.best.passes")
        took = [fitted(run, "time.perf_counter() - start") for _ in range(1 if quick else turns)]
        yield row("  seconds, with its controls", took, None, note=f"{passes:.0f} passes")
    most, least = max(sizes), min(sizes)
    yield row(
        f"memory of {most:,} rows / {least:,}",
        [peaks[most] / peaks[least]],
        1.5,
        note=f"{(peaks[most] - peaks[least]) / (most - least):.0f} bytes a row more",
    )
    yield compared(Run(folder / str(least)), turns)


def compared(run: Run, turns: int) -> Row:
    """The row of one regression against scikit-learn's of the same rows, of which all are training rows."""
    from sklearn.linear_model import LogisticRegression

    from traceformer.analysis.logistic import fit_all, scaling_of

    rows = run.activations("resid_post", 0)
    labels = np.concatenate(run.table.column("kind_of_token").to_pylist()).astype(np.int32)
    standardised = scaling_of(lambda: iter([rows])).standardised(rows)
    found: list[np.ndarray] = []

    def ours() -> None:
        scaling = scaling_of(lambda: iter([rows]))
        found.append(fit_all(lambda: iter([rows]), [labels], scaling, penalty=1.0)[0].weights)

    def theirs() -> None:
        model = LogisticRegression(tol=1e-6, max_iter=100_000)
        found.append(model.fit(standardised, labels).coef_)

    ratios = in_turn(theirs, {"ours": ours}, turns)
    off = float(np.abs(found[-1] - found[-2]).max())
    return row(f"{len(rows):,} rows in memory: seconds / scikit-learn's", ratios["ours"], 1.0, note=f"{off:.0e} apart")


if __name__ == "__main__":
    main(__doc__, measure, threads=2, turns=3)
