"""Measures what a second worker adds: tokens that two of one thread record in a second, over those of one.

    python benchmarks/cluster.py [--json FILE] [--folder FOLDER] [--turns 3] [--quick]

Workers are Ray's, on this machine. A pace is that of the recording, from the moment the run is open until its last
shard is committed: no start of a process, no loading. One and two workers take turns.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import ray
from table import Row, main, row

import traceformer as tf
from traceformer.progress import Progress

LENGTH = 256
EXAMPLES = 1600
IN_A_SHARD = 16


def texts(count: int) -> list[str]:
    """Returns texts of as many bytes, so of as many tokens, as `LENGTH` says."""
    chance = Random(0)
    words = ["return", "the", "function", "of", "a", "list", "raises", "if", "is", "not", "value", "string", "and"]
    return [" ".join(chance.choices(words, k=LENGTH))[:LENGTH] for _ in range(count)]


def pace(folder: Path, workers: int, read: list[str]) -> float:
    """Returns the tokens per second of one recording by so many workers."""
    last = Progress(0, 0, 0, 0, 1.0)

    def note(progress: Progress) -> None:
        nonlocal last
        if progress.bytes_written > last.bytes_written:  # a shard was committed
            last = progress

    run = tf.record(
        "byte",
        read,
        "attn resid",
        shard_examples=IN_A_SHARD,
        out=folder / "run",
        overwrite=True,
        engine=tf.Ray(workers=workers),
        progress=note,
    )
    assert run.n == len(read)
    return last.tokens_done / last.seconds


def measure(folder: Path, turns: int, quick: bool) -> Iterator[Row]:
    read = texts(EXAMPLES // 10 if quick else EXAMPLES)
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    ratios: list[float] = []
    paces: list[tuple[float, float]] = []
    for _ in range(1 if quick else turns):
        one, two = pace(folder, 1, read), pace(folder, 2, read)
        paces.append((one, two))
        ratios.append(two / one)
    ray.shutdown()
    note = "; ".join(f"{one:,.0f} and {two:,.0f} tokens/s" for one, two in paces)
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    yield row("two workers over one", ratios, 1.6, at_least=True, note=f"{note}; {load}")


if __name__ == "__main__":
    main(__doc__, measure, turns=3)
