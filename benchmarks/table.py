"""What all benchmarks share: the command line, a row of figures with its target, the table, and the JSON beside it."""

import argparse
import inspect
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

OPTIONS: dict[str, dict[str, Any]] = {
    "folder": {"type": Path, "default": Path(), "help": "where to write: on the disk to be measured"},
    "quick": {"action": "store_true", "help": "few turns or small sizes, to see that it runs"},
    "turns": {"type": int, "default": 5},
    "threads": {"type": int, "default": 2},
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: `target` is a bound on `value`, from above unless `at_least`; None for peers."""

    what: str
    value: float
    low: float
    high: float
    target: float | None
    at_least: bool
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        met = self.value >= self.target if self.at_least else self.value <= self.target
        return "met" if met else "NOT MET"


def row(what: str, values: list[float], target: float | None, *, at_least: bool = False, note: str = "") -> Row:
    """Returns the row of the median of `values`, with the smallest and the largest."""
    return Row(what, statistics.median(values), min(values), max(values), target, at_least, note)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def delete(*paths: Path) -> None:
    """Deletes files and folders for good, where they are there: else the next durable write would wait for that too."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    os.sync()


def memory(kind: str) -> int:
    """Returns the bytes of this process, now (`VmRSS`) or at most (`VmHWM`).

    `ru_maxrss` would be inherited from the process that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{kind}:")))


def in_process(code: str) -> float:
    """Returns the number that `code` prints last in a process of its own, where it can import the benchmarks."""
    command, here = [sys.executable, "-c", code], Path(__file__).parent
    done = subprocess.run(command, cwd=here, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main(doc: str | None, *parts: Callable[..., Iterable[Row]], threads: int | None = None) -> None:
    """Runs the command line of a script: prints the rows of its parts, whose parameters are its options.

    A part's `folder` is a new one within that of the command line, and is deleted at the end. `threads` are torch's.
    """
    taken = {part: inspect.signature(part).parameters for part in parts}
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    for name, option in OPTIONS.items():
        if any(name in names for names in taken.values()):
            parser.add_argument(f"--{name}", **option)
    given = vars(parser.parse_args())
    warnings.simplefilter("ignore")
    if threads:
        import torch

        torch.set_num_threads(threads)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=given.get("folder")) as folder:
        given["folder"] = Path(folder).resolve()
        rows = (each for part in parts for each in part(**{name: given[name] for name in taken[part]}))
        print_table(rows, given["json"])
    print(f"took {time.perf_counter() - start:.0f} s", file=sys.stderr)


def print_table(rows: Iterable[Row], json_file: Path | None) -> None:
    """Prints each row when it is there; writes all of them, and what machine it was, to `json_file`."""
    print(f"{'':58} {'median':>8} {'spread':>17} {'target':>9}")
    done: list[Row] = []
    for each in rows:
        done.append(each)
        bound = "" if each.target is None else f"{'>=' if each.at_least else '<='} {each.target}"
        figures = f"{each.value:8.3f} {each.low:8.3f}-{each.high:8.3f}"
        print(f"{each.what:58} {figures} {bound:>9} {each.verdict:7}  {each.note}", flush=True)
    if json_file:
        machine = {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
        json_file.write_text(json.dumps({"machine": machine, "rows": [asdict(row) for row in done]}, indent=2) + "\n")
