"""Measures how long a command and the library take to start, against processes that do the least that is needed.

    python benchmarks/startup.py [--json FILE] [--folder FOLDER] [--quick]

In every turn a command and its peer run one after the other, each in a process of its own; a figure is what the
command takes beyond its peer: the median of nine turns. It is processor time, which on an idle machine is what the
clock says, and which whatever else runs there disturbs less. Byte code is kept, as it is from any first start on.
"""

import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from store import PATTERN, write_run
from table import Row, main, row

from traceformer.cli import VERBS

TURNS = 9
PYTHON, ARRAYS = "pass", "import numpy, tensorstore"


def milliseconds(code: str, bytecode: Path) -> float:
    """Returns the processor time of a process that runs `code`, from its start to its end."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(bytecode)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1e3 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def beyond(what: str, code: str, peer: str, target: float, turns: int, bytecode: Path) -> Row:
    """Returns the row of what `code` takes beyond its peer."""
    for each in (code, peer):
        milliseconds(each, bytecode)  # compiles what is not compiled yet
    ours: list[float] = []
    least: list[float] = []
    for _ in range(turns):
        least.append(milliseconds(peer, bytecode))
        ours.append(milliseconds(code, bytecode))
    ratio = statistics.median(one / other for one, other in zip(ours, least, strict=True))
    more = [one - other for one, other in zip(ours, least, strict=True)]
    return row(what, more, target, note=f"{ratio:.1f} times its {statistics.median(least):.0f} ms")


def measure_help(folder: Path, quick: bool) -> Iterator[Row]:
    turns = 2 if quick else TURNS
    for words, target in ([], 150), *(([verb], 250) for verb in VERBS):
        command = " ".join(["traceformer", *words, "--help"])
        code = f"from traceformer.cli import main; main({[*words, '--help']})"
        yield beyond(f"{command}, ms over python -c pass", code, PYTHON, target, turns, folder / "bytecode")


def measure_opening(folder: Path, quick: bool) -> Iterator[Row]:
    run, _ = write_run(folder / "attention", [PATTERN])
    code = f"import traceformer as tf; tf.open_run({str(run)!r}).attn(5, layer=2, head=1)"
    what = "open a run and read a matrix, ms over numpy and tensorstore"
    yield beyond(what, code, ARRAYS, 40, 2 if quick else TURNS, folder / "bytecode")


if __name__ == "__main__":
    main(__doc__, measure_help, measure_opening)
