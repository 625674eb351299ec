"""What all benchmarks share: the command line, a row of figures with its target, the table, and the JSON beside it.

Both sides of a ratio run in one process under the same settings of the heap, those that the recording commands have.
"""

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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

TURNS = 7
OPTIONS: dict[str, dict[str, Any]] = {
    "folder": {"type": Path, "default": Path(), "help": "where to write: on the disk to be measured"},
    "quick": {"action": "store_true", "help": "few turns or small sizes, to see that it runs"},
    "turns": {"type": int, "default": TURNS, "help": "a figure is the median of so many"},
    "threads": {"type": int, "default": 2},
    "figures": {"type": Path, "help": "a folder to draw into"},
    "runs": {"type": Path, "help": "a folder of synthetic runs; those that are missing are made there, and left"},
    "libraries": {"type": Path, "help": "a folder with node_modules that BertViz's page needs"},
    "only": {"help": "one of the names that the script knows"},
}
ONE_ARENA = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(32 << 20),
}
"""The environment of a process whose peak of memory says what it needed, and not how its heap was cut up."""


class Took(NamedTuple):
    """The seconds that something took: by the clock, and of all processors."""

    wall: float
    processor: float


@dataclass(frozen=True, slots=True)
class Ratios:
    """What something took over its peer in the same turn, turn by turn."""

    wall: list[float] = field(default_factory=list[float])
    processor: list[float] = field(default_factory=list[float])

    def add(self, one: Took, other: Took) -> None:
        self.wall.append(one.wall / other.wall)
        self.processor.append(one.processor / other.processor)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: `target` is a bound on `value`, from above unless `at_least`; None for peers.

    `processor` is the median of the same ratio in processor seconds, where `value` is one by the clock.
    """

    what: str
    value: float
    low: float
    high: float
    target: float | None
    at_least: bool
    note: str = ""
    processor: float | None = None

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        met = self.value >= self.target if self.at_least else self.value <= self.target
        return "met" if met else "NOT MET"


def row(
    what: str, values: list[float] | Ratios, target: float | None, *, at_least: bool = False, note: str = ""
) -> Row:
    """Returns the row of the median of `values`, with the smallest and the largest."""
    processor = statistics.median(values.processor) if isinstance(values, Ratios) else None
    figures = values.wall if isinstance(values, Ratios) else values
    return Row(what, statistics.median(figures), min(figures), max(figures), target, at_least, note, processor)


def took(work: Callable[[], object]) -> Took:
    start, processor = time.perf_counter(), time.process_time()
    work()
    return Took(time.perf_counter() - start, time.process_time() - processor)


def seconds(work: Callable[[], object]) -> float:
    return took(work).wall


def in_turn(
    plain: Callable[[], object],
    others: Mapping[str, Callable[[], object]],
    turns: int,
    between: Callable[[], object] = lambda: None,
) -> dict[str, Ratios]:
    """Returns, for each of `others`, what it took over the plain pass of the same turn; the first turn warms up.

    `between` is called before each of `others`, and is not timed.
    """
    ratios = {name: Ratios() for name in others}
    for turn in range(turns + 1):
        base = took(plain)
        for name, work in others.items():
            between()
            own = took(work)
            if turn:
                ratios[name].add(own, base)
    return ratios


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


def in_process(code: str, **environment: str) -> float:
    """Returns the number that `code` prints last in a process of its own, where it can import the benchmarks."""
    command, here = [sys.executable, "-c", code], Path(__file__).parent
    done = subprocess.run(
        command, cwd=here, check=True, capture_output=True, text=True, env={**os.environ, **environment}
    )
    return float(done.stdout.split()[-1])


def main(doc: str | None, *parts: Callable[..., Iterable[Row]], threads: int | None = None, turns: int = TURNS) -> None:
    """Runs the command line of a script: prints the rows of its parts, whose parameters are its options.

    A part's `folder` is a new one within that of the command line, and is deleted at the end. `threads` are torch's.
    `turns` is how many there are unless the command line says.
    """
    from traceformer.heap import keep_freed_memory

    keep_freed_memory()
    taken = {part: inspect.signature(part).parameters for part in parts}
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    for name, option in OPTIONS.items():
        if any(name in names for names in taken.values()):
            parser.add_argument(f"--{name}", **option)
    parser.set_defaults(turns=turns)
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
    print(f"{'':58} {'median':>8} {'spread':>17} {'processor':>9} {'target':>9}")
    done: list[Row] = []
    for each in rows:
        done.append(each)
        bound = "" if each.target is None else f"{'>=' if each.at_least else '<='} {each.target}"
        processor = "" if each.processor is None else f"{each.processor:.3f}"
        figures = f"{each.value:8.3f} {each.low:8.3f}-{each.high:8.3f} {processor:>9}"
        print(f"{each.what:58} {figures} {bound:>9} {each.verdict:7}  {each.note}", flush=True)
        if json_file:
            machine = {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
            told = {"machine": machine, "rows": [asdict(row) for row in done]}
            json_file.write_text(json.dumps(told, indent=2) + "\n")
