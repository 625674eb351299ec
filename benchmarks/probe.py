"""Measures probes: how their memory grows with the run, what their passes cost, and scikit-learn on the same rows.

    python benchmarks/probe.py [--json FILE] [--folder FOLDER] [--turns 3] [--quick]

1. Runs of 10^5 and 10^6 rows (one layer of width 192, float16, texts of 500 tokens, a label of four classes): the peak
   of a new process's memory over what it had before, and the seconds of one probe with its controls. Both runs are
   larger than what is kept between passes.
2. 10^5 of these rows in memory: one regression against scikit-learn's with tol=1e-6.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from table import ONE_ARENA, Row, in_turn, main, row

from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.layout import RunLayout
from traceformer.store.run import Run
from traceformer.store.writer import RunWriter

WIDTH, LENGTH, CLASSES, KINDS = 192, 500, 4, 2000
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


class Fitted(NamedTuple):
    """What a new process says of one probe and its controls: bytes over what it had before, seconds, and passes."""

    bytes: float
    seconds: float
    passes: float


def fitted(folder: Path) -> Fitted:
    code = (
        f"from pathlib import Path; import time; from table import memory; {_FIT}; run = Run(Path({str(folder)!r})); "
        "before, start = memory('VmRSS'), time.perf_counter(); found = fit_probe(run, 'kind_of_token'); "
        "assert found.best.converged; "
        "print(memory('VmHWM') - before, time.perf_counter() - start, found.best.passes)"
    )
    environment = {**os.environ, **ONE_ARENA, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    command, here = [sys.executable, "-c", code], Path(__file__).parent
    done = subprocess.run(command, cwd=here, check=True, capture_output=True, text=True, env=environment)
    return Fitted(*map(float, done.stdout.split()))


def measure(folder: Path, turns: int, quick: bool) -> Iterator[Row]:
    sizes = tuple(size // 20 for size in ROWS) if quick else ROWS
    peaks: dict[int, float] = {}
    for size in sizes:
        run = write_run(folder / str(size), size)
        took = [fitted(run) for _ in range(1 if quick else turns)]
        peaks[size] = max(each.bytes for each in took)
        yield row(f"{size:,} rows: MB that a probe takes", [each.bytes / _MB for each in took], None)
        passes = f"{took[0].passes:.0f} passes"
        yield row("  seconds, with its controls", [each.seconds for each in took], None, note=passes)
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
