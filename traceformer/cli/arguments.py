"""What the arguments RUN, --example, --head and numbers may be."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import Parameter, Token

from traceformer.errors import NotFound, SelectionError, UsageError
from traceformer.store import layout
from traceformer.store.locks import unfinished_folder

if TYPE_CHECKING:
    from traceformer.store.run import Run

__all__ = ["TRACES", "count", "find_example", "find_run", "find_runs", "parse_head", "runs_in"]

TRACES = Path("traces")
LATEST = "latest"


def count(metavar: str, *, least: int = 1) -> Parameter:
    """Returns a parameter of whole numbers from `least`, or of the word that its metavar names: `N|auto`."""
    # cyclopts itself would round 1.5 without a word.
    word = metavar.partition("|")[2]

    def converter(_: object, tokens: Sequence[Token]) -> int | str:
        text = tokens[0].value
        if word and text == word:
            return text
        if not text.isdecimal() or int(text) < least:
            raise ValueError(f"it takes a whole number from {least}" + (f", or {word}" if word else ""))
        return int(text)

    return Parameter(metavar=metavar, show_choices=False, converter=converter, n_tokens=1)


def find_run(name: str, traces: Path = TRACES) -> Path:
    """Returns the folder of a run: a folder itself, a run's name under `traces`, or the newest run there for `latest`.

    A run that is not finished yet goes by the name that it will have. An experiment, which is a folder of runs,
    stands for its only run.

    Raises:
        NotFound: there is no such run; the hint names the nearest one.
        UsageError: an experiment with several runs.
    """
    found = find_runs(name, traces)
    if len(found) > 1:
        raise UsageError(f"{name} holds {len(found)} runs", hint=f"one of them, such as {found[0]}")
    return found[0]


def find_runs(name: str, traces: Path = TRACES) -> list[Path]:
    """Returns the folder of the run that `find_run` finds, or those of all runs of an experiment, the newest first.

    Raises:
        NotFound: there is no such run; the hint names the nearest one.
    """
    runs = runs_in(traces)
    if name == LATEST:
        if not runs:
            raise NotFound(f"no run in {traces}", hint="traceformer extract makes one; or name a run's folder")
        return runs[:1]
    for folder in (Path(name), traces / name):
        places = (folder, unfinished_folder(folder)) if folder.name else (folder,)
        for place in places:
            if (place / layout.META).is_file():
                return [place]
    if inner := runs_in(Path(name)):
        return inner
    if Path(name).is_dir():
        raise NotFound(f"{name} is not a run", why=f"it holds no {layout.META}", hint=_nearest(name, runs))
    raise NotFound(f"no run {name!r}", why=f"neither a folder nor a run in {traces}", hint=_nearest(name, runs))


def runs_in(folder: Path) -> list[Path]:
    """Returns the runs that lie in a folder, the newest first."""
    return sorted((path.parent for path in folder.glob(f"*/{layout.META}")), key=_age)


def _age(run: Path) -> tuple[int, str]:
    return -(run / layout.META).stat().st_mtime_ns, run.name


def _nearest(name: str, runs: list[Path]) -> str:
    if not runs:
        return "traceformer extract makes a run"
    near = difflib.get_close_matches(Path(name).name, [run.name for run in runs], n=1)
    return near[0] if near else f"{LATEST}, which is {runs[0].name}"


def find_example(run: "Run", name: str | None) -> str:
    """Returns the id of the example that `--example` names by id or by number, the first one for None.

    Raises:
        ExampleNotFound: neither an id nor a number of this run's.
    """
    return run.example_id(0 if name is None else name)


def parse_head(layer: int | None, head: str | None) -> tuple[int | None, int | None]:
    """Returns layer and head numbers from `--layer 5 --head 3`, `--head L5H3`, or parts of them.

    Raises:
        SelectionError: `head` is neither a number nor such as L5H3, or the layer is given twice and differs.
    """
    if head is None:
        return layer, None
    match = re.fullmatch(r"(?:[Ll](\d+))?[Hh]?(\d+)", head)
    if not match:
        raise SelectionError(f"cannot read the head {head!r}", hint="--head L5H3, or --layer 5 --head 3")
    if match[1] is None:
        return layer, int(match[2])
    if layer not in (None, int(match[1])):
        raise SelectionError(f"--layer {layer} and --head {head} name different layers", hint=f"--head {head} alone")
    return int(match[1]), int(match[2])
