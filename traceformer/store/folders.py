"""Folders of runs: a run by its folder, its name or `latest`, and what lies where."""

from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traceformer.errors import NotFound, UsageError
from traceformer.store.commits import RunHead, committed_examples
from traceformer.store.layout import MANIFEST, META, UNFINISHED
from traceformer.store.locks import unfinished_folder
from traceformer.store.names import TRACES

if TYPE_CHECKING:
    import pandas as pd

    from traceformer.store.run import Run

__all__ = ["ListedRun", "RunList", "find_run", "find_runs", "folder_bytes", "list_runs", "open_run", "runs_in"]

LATEST = "latest"


def open_run(name: str | Path = LATEST, traces: str | Path = TRACES) -> "Run":
    """Returns a run by its folder, by its name in the folder `traces`, or the newest one there for `latest`.

        run = open_run("latest")

    Raises:
        NotFound: there is no such run; the hint names the nearest one.
        UsageError: the folder holds several runs.
        CorruptRun, Unreadable: what lies there cannot be read.
    """
    from traceformer.store.run import Run

    return Run(find_run(str(name), Path(traces)))


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
            if (place / META).is_file():
                return [place]
    if inner := runs_in(Path(name)):
        return inner
    if Path(name).is_dir():
        raise NotFound(f"{name} is not a run", why=f"it holds no {META}", hint=_nearest(name, runs))
    raise NotFound(f"no run {name!r}", why=f"neither a folder nor a run in {traces}", hint=_nearest(name, runs))


def runs_in(folder: Path) -> list[Path]:
    """Returns the runs that lie in a folder, the newest first."""
    return sorted((path.parent for path in folder.glob(f"*/{META}")), key=_age)


def folder_bytes(folder: Path) -> int:
    """Returns the size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _age(run: Path) -> tuple[int, str]:
    return -(run / META).stat().st_mtime_ns, run.name


def _nearest(name: str, runs: list[Path]) -> str:
    if not runs:
        return "traceformer extract makes a run"
    import difflib

    near = difflib.get_close_matches(Path(name).name, [run.name for run in runs], n=1)
    return near[0] if near else f"{LATEST}, which is {runs[0].name}"


@dataclass(frozen=True, slots=True)
class ListedRun:
    """One run of a list: `bytes` is its size on disk, `begun` the local time at which it was begun.

    Of a run whose head cannot be read, what it does not say is None.
    """

    run: str
    model: str | None
    dataset: str | None
    n_examples: int
    bytes: int
    finished: bool
    begun: str

    @property
    def state(self) -> str:
        """`unfinished`, `damaged` if a finished run has lost its manifest, or nothing."""
        return "" if self.finished else "unfinished" if self.run.startswith(UNFINISHED) else "damaged"


@dataclass(frozen=True, slots=True, repr=False)
class RunList:
    """The runs of a folder, the newest first."""

    folder: Path
    runs: tuple[ListedRun, ...]

    def __repr__(self) -> str:
        return f"RunList({str(self.folder)!r}: {len(self.runs)} run{'s' * (len(self.runs) != 1)})"

    def to_frame(self) -> "pd.DataFrame":
        """Returns one row per run."""
        import pandas as pd

        return pd.DataFrame(map(asdict, self.runs), columns=[*ListedRun.__slots__])

    def to_json(self) -> dict[str, Any]:
        return {"folder": str(self.folder), "runs": [asdict(run) for run in self.runs]}


def list_runs(folder: str | Path = TRACES) -> RunList:
    """Returns the runs in a folder, unfinished ones included, the newest first; reads no array.

    Raises:
        NotFound: there is no such folder.
    """
    if not Path(folder).is_dir():
        raise NotFound(f"no folder {folder}", hint="traceformer extract makes a run in ./traces")
    return RunList(Path(folder), tuple(map(_listed, runs_in(Path(folder)))))


def _listed(run: Path) -> ListedRun:
    size = folder_bytes(run)
    begun = datetime.fromtimestamp((run / META).stat().st_mtime).isoformat(sep=" ", timespec="seconds")
    try:
        head = RunHead.read(run)
        n_examples = committed_examples(run, head)
    except ValueError:  # CorruptRun and Unreadable: it is listed all the same
        return ListedRun(run.name, None, None, 0, size, (run / MANIFEST).exists(), begun)
    return ListedRun(run.name, head.about.model, head.about.dataset, n_examples, size, (run / MANIFEST).exists(), begun)
