"""Measures what a run of very many examples costs to open, to look into, to go on with, to verify and to export of.

    python benchmarks/many_examples.py [--json FILE] [--folder FOLDER] [--figures FOLDER] [--turns 5] [--quick]

Runs of 10^3, 10^4, 10^5 and 10^6 examples are written by the store's own writer, with texts of a few tokens and the
arrays of one layer, which are the same in all shards; only ids and numbers differ. Nothing waits for the disk. Each
figure is of a new process, that has imported what it needs but has not seen the run.
"""

import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from table import Row, in_process, main, row, seconds

from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.buffer import ShardBuffer
from traceformer.store.layout import RunLayout
from traceformer.store.meta import Dims, RunMeta
from traceformer.store.writer import RunWriter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["EXAMPLES", "write_many"]

EXAMPLES = (1_000, 10_000, 100_000, 1_000_000)
PATTERN, RESIDUAL = ArrayKey("dec", "self", "attn_pattern"), ArrayKey("dec", None, "resid_post")
WIDTH, LONGEST = 4, 12
_MB = 1e6
_TEXT = "a text of a few words, as they come in logs and questions"

# What is timed, after what is not. `folder` is the run's.
OPENING = "from traceformer.store.run import Run; from pathlib import Path; import numpy, pyarrow.parquet, xxhash"
OPEN = "run = Run(folder)"
PROBES: Mapping[str, tuple[str, str]] = {
    "open": (OPENING, OPEN),
    "by number": (f"{OPENING}; {OPEN}", "run.example_id(run.n // 3), run.length(run.n // 3)"),
    "by id": (f"{OPENING}; {OPEN}", "run.row(f'example-{run.n // 3}')"),
    "its text": (f"{OPENING}; {OPEN}; run.row(0)", "run.text(f'example-{run.n // 3}')"),
    "all lengths": (f"{OPENING}; {OPEN}", "run.lengths().sum()"),
    "a page of the table of examples": (
        f"{OPENING}; from traceformer.viewer.library import Library; from traceformer.viewer.query import Query; "
        "from traceformer.viewer.resources.examples import examples; "
        "library, query = Library.at(folder.parent), Query({'run': folder.name, 'from': '700'})",
        "assert len(examples(library, query)['examples']) == 100",
    ),
    "list": (f"{OPENING}; from traceformer.store.folders import list_runs", "list_runs(folder.parent)"),
    "verify": (f"{OPENING}; {OPEN}", "assert run.verify().ok"),
    "export of two": (
        f"{OPENING}; {OPEN}; from traceformer.formats.registry import export; from shutil import rmtree; "
        "made = folder.parent / 'made'; rmtree(made, ignore_errors=True)",
        "export(run, 'safetensors', made, examples=[7, run.n - 1])",
    ),
    "resume": (
        f"{OPENING}; from many_examples import resumed",
        "assert len(resumed(folder).pending) == 3",
    ),
}
TARGETS: Mapping[str, float] = {
    **{"open": 1.0, "by number": 0.005, "by id": 0.005, "resume": 5.0, "verify": 60.0},
}


def write_many(folder: Path, n_examples: int, *, but: int = 0) -> Path:
    """Returns the folder of a run of so many examples, or of one that still lacks the last `but` shards."""
    layout = _layout(n_examples)
    lengths = np.random.default_rng(0).integers(1, LONGEST + 1, layout.shard_examples).tolist()
    digest = {"made up": n_examples}
    with _not_waiting(), RunWriter.create(folder, layout, _meta(n_examples), digest=digest) as writer:
        _write(writer, lengths, writer.pending[: layout.n_shards - but])
        return writer.finish()


def complete(folder: Path, n_examples: int) -> Path:
    """Returns the folder of a run that lacked some shards, finished."""
    lengths = np.random.default_rng(0).integers(1, LONGEST + 1, _layout(n_examples).shard_examples).tolist()
    with _not_waiting(), resumed(folder) as writer:
        _write(writer, lengths, writer.pending)
        return writer.finish()


def resumed(folder: Path) -> RunWriter:
    """Returns the writer of a run that lacks some shards."""
    n_examples = int(folder.name)
    return RunWriter.resume(folder, _layout(n_examples), _meta(n_examples), digest={"made up": n_examples})


def _write(writer: RunWriter, lengths: list[int], shards: list[int]) -> None:
    table: pa.Table | None = None
    for shard in shards:
        numbers, buffer = writer.layout.shard_range(shard), writer.buffer()
        own = lengths[: len(numbers)]
        buffer.begin({"dec": own})
        _fill(buffer, own)
        table = _table(own) if table is None or table.num_rows != len(own) else table
        ids = pa.array([f"example-{number}" for number in numbers])
        told = {
            "example_id": ids,
            "index": pa.array(list(numbers)),
            "text": pa.array([f"{_TEXT} {n}" for n in numbers]),
        }
        writer.commit(shard, buffer, pa.table({**told, **{name: table[name] for name in table.column_names}}))


def _fill(buffer: ShardBuffer, lengths: list[int]) -> None:
    for slot, n in enumerate(lengths):
        pattern = np.tril(np.ones((n, n), np.float16))
        buffer.matrices[PATTERN].take(slot, 0, 0, (pattern / pattern.sum(axis=1, keepdims=True))[None])
        buffer.rows(RESIDUAL, slot)[...] = np.arange(n * WIDTH).reshape(n, WIDTH)


def _table(lengths: list[int]) -> pa.Table:
    ids = [list(range(n)) for n in lengths]
    return pa.table(
        {
            "split": ["made up"] * len(lengths),
            "input_ids": ids,
            "attention_mask": [[1] * n for n in lengths],
            "offset_mapping": [[[i, i + 1] for i in own] for own in ids],
            "tokens": [[chr(97 + i) for i in own] for own in ids],
            "n_tokens": lengths,
            "truncated": [False] * len(lengths),
        }
    )


def _layout(n_examples: int) -> RunLayout:
    arrays = (ArraySpec(PATTERN, (0,), (0,)), ArraySpec(RESIDUAL, (0,), width=WIDTH))
    return RunLayout.plan(
        arch="dec",
        arrays=arrays,
        n_examples=n_examples,
        longest={"dec": LONGEST},
        mean={"dec": LONGEST / 2},
        triangles=[PATTERN],
    )


def _meta(n_examples: int) -> RunMeta:
    dims = Dims(n_layers=1, n_heads=1, n_kv_heads=1, d_model=WIDTH)
    return RunMeta(
        run_id=str(n_examples),
        model="made up",
        arch="dec",
        n_examples=n_examples,
        dtype="float16",
        dims={"dec": dims},
        dataset="made up",
        split="made up",
    )


@contextmanager
def _not_waiting() -> Generator[None]:
    """Files that need not survive a crash: what is measured is no writing."""
    sync, os.fsync = os.fsync, lambda _: None
    try:
        yield
    finally:
        os.fsync = sync


def probed(folder: Path, what: str) -> float:
    """Returns the seconds that something takes in a new process."""
    before, timed = PROBES[what]
    code = (
        f"from pathlib import Path; import time; folder = Path({str(folder)!r}); {before}; "
        f"start = time.perf_counter(); {timed}; print(time.perf_counter() - start)"
    )
    return in_process(code)


def grown(folder: Path, what: str) -> float:
    """Returns by how many bytes the peak of a new process's memory rises meanwhile."""
    before, timed = PROBES[what]
    code = (
        f"from pathlib import Path; from table import memory; folder = Path({str(folder)!r}); {before}; "
        f"start = memory('VmRSS'); {timed}; print(memory('VmHWM') - start)"
    )
    return in_process(code)


def draw(opened: Mapping[int, float], grew: Mapping[int, float], shards: Mapping[int, int]) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(list(opened), [1e3 * value for value in opened.values()], marker="o")
    left.set(ylabel="milliseconds", title="opening a run")
    right.plot(list(grew), [value / _MB for value in grew.values()], marker="o")
    right.set(ylabel="MB", title="memory that opening takes")
    for each in (left, right):
        each.set(xscale="log", xlabel="examples (shards)")
        each.set_xticks(list(shards), [f"{n:,}\n({count:,})" for n, count in shards.items()])
        each.minorticks_off()
        each.set_ylim(0)
    return figure


def measure(folder: Path, turns: int, quick: bool, figures: Path | None) -> Iterator[Row]:
    opened: dict[int, float] = {}
    grew: dict[int, float] = {}
    shards: dict[int, int] = {}
    sizes = EXAMPLES[:2] if quick else EXAMPLES
    for n_examples in sizes:
        run, but = folder / str(n_examples), min(3, _layout(n_examples).n_shards)
        shards[n_examples] = _layout(n_examples).n_shards
        written = seconds(partial(write_many, run, n_examples, but=but))
        is_last = n_examples == sizes[-1]
        times = [probed(run, "resume") for _ in range(turns)] if is_last else []
        finished = seconds(partial(complete, run, n_examples))
        note = f"{shards[n_examples]:,} shards, written in {written:.0f} s, finished in {finished:.0f} s"
        found = row(f"{n_examples:,} examples: open, s", [probed(run, "open") for _ in range(turns)], 1.0, note=note)
        yield found
        opened[n_examples] = found.value
        found = row("  memory that opening takes, MB", [grown(run, "open") / _MB for _ in range(turns)], None)
        yield found
        grew[n_examples] = found.value * _MB
        if is_last:
            yield row(f"{n_examples:,} examples: resume (3 shards are missing), s", times, TARGETS["resume"])
            for what in PROBES:
                if what not in ("open", "resume"):
                    values = [probed(run, what) for _ in range(turns)]
                    yield row(f"{n_examples:,} examples: {what}, s", values, TARGETS.get(what))
            yield row(
                "  memory that the export of two takes, MB",
                [grown(run, "export of two") / _MB for _ in range(turns)],
                None,
            )
    if figures:
        from traceformer.figures.style import styled

        figures.mkdir(parents=True, exist_ok=True)
        styled(draw)(opened, grew, shards).savefig(figures / "many-examples.png", dpi=150)


if __name__ == "__main__":
    main(__doc__, measure, turns=5)
