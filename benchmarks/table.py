"""What all benchmarks share: a row of figures with its target, the table, and the JSON beside it."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path


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
