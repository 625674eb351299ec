"""Measures whether memory stays flat while ten million tokens are recorded by two workers, and verifies the run.

    python benchmarks/soak.py [--json FILE] [--folder FOLDER] [--quick]

A tiny random llama, texts of 256 words, its residual stream. What the process that hands out shards and its two workers
hold of memory of their own (USS, mapped files not counted) is looked at every two seconds.
"""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import ray
from extract import make_texts
from long import make_long_model
from table import Row, main, row

import traceformer as tf
from traceformer.store.verification import verify_folder

TOKENS = 10_000_000
LENGTH, IN_A_SHARD, EVERY = 256, 64, 2.0


class Watched:
    """The memory of this process and of Ray's workers below it, looked at in a thread of its own."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Watched":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        began = time.monotonic()
        while not self._done.wait(EVERY):
            self.seen.append((time.monotonic() - began, megabytes()))


def megabytes() -> float:
    """Returns what this process and the workers that record hold."""
    mine = psutil.Process()
    workers = [each for each in mine.children(recursive=True) if each.name().startswith("ray::")]
    total = 0.0
    for each in (mine, *workers):
        try:
            total += each.memory_full_info().uss / 1e6
        except psutil.Error:  # it has just ended
            continue
    return total


def measure(folder: Path, quick: bool) -> Iterator[Row]:
    model = make_long_model(folder / "tiny-llama", LENGTH)
    texts = make_texts(folder / "texts.txt", (TOKENS // 20 if quick else TOKENS) // LENGTH + 1, LENGTH)
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    began = time.monotonic()
    with Watched() as watched:
        run = tf.record(
            model,
            texts,
            "resid",
            max_seq_len=LENGTH,
            shard_examples=IN_A_SHARD,
            out=folder / "run",
            engine=tf.Ray(workers=2),
        )
    seconds = time.monotonic() - began
    ray.shutdown()
    late = [held for at, held in watched.seen if at >= 120]
    late = late or [held for at, held in watched.seen if at >= seconds / 2]
    note = f"{run.n * LENGTH:,} tokens in {seconds:.0f} s; {late[0]:.0f} MB at first, {late[-1]:.0f} MB at last"
    yield row(
        "the most held from the second minute on, over what was held then", [max(late) / late[0]], 1.02, note=note
    )
    began = time.monotonic()
    problems = verify_folder(run.folder).problems
    yield row("what verify finds", [float(len(problems))], 0.0, note=f"in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main(__doc__, measure)
