"""The runs that the viewer's benchmarks open, the server that opens them, and rows of milliseconds."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode
from urllib.request import urlopen

import numpy as np
from synthetic_runs import LIKE, write_run
from table import Row

__all__ = ["Server", "figures", "forget", "runs_in", "serving"]

SIZE = 10e9  # bytes of the largest run


class Server(NamedTuple):
    """A viewer at work: where, and how many ms after its process was begun it said so, and had answered."""

    address: str
    process: int
    listening: float
    answered: float

    def at(self, **view: object) -> str:
        """Returns the address of a view: `run`, `screen`, `ex`, and what else it is made of."""
        return f"{self.address}#{urlencode(view)}"


@contextmanager
def serving(runs: Path) -> Iterator[Server]:
    """A process of the command line that serves a folder of runs. It must not load torch, whatever it is asked."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "traceformer", "view", str(runs), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            listening = 1e3 * (time.perf_counter() - start)
            with urlopen(address) as answer:
                answer.read()
            yield Server(address, process.pid, listening, 1e3 * (time.perf_counter() - start))
            if "libtorch" in Path(f"/proc/{process.pid}/maps").read_text():
                raise SystemExit("the server has loaded torch")
        finally:
            process.terminate()


def figures(what: str, values: Sequence[float], target: float | None, *, percentile: float = 50, note: str = "") -> Row:
    """Returns the row of a percentile of `values`; its note has the median and the 95th."""
    low, median, high = np.percentile(values, (0, 50, 100))
    told = f"median {median:.1f}, 95 %: {np.percentile(values, 95):.1f}, of {len(values)}{note and '; '}{note}"
    return Row(what, float(np.percentile(values, percentile)), low, high, target, False, told)


def runs_in(folder: Path, quick: bool) -> Path:
    """Returns a folder with a run of each shape; those that are missing are made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, shape in LIKE.items():
        if not (folder / name).is_dir():
            print(f"making {folder / name}", file=sys.stderr)
            write_run(folder / name, shape.of_size(SIZE) if name == "wide" and not quick else shape)
    return folder


def forget(runs: Path, name: str) -> None:
    """Deletes what the viewer keeps beside the runs, and has the system forget a run's files."""
    shutil.rmtree(runs / ".traceformer", ignore_errors=True)
    os.sync()
    for path in (path for path in (runs / name).rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
