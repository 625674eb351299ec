"""Folders of runs: a run by its folder, its name or `latest`, and what lies where."""

from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traceformer.errors import NotFound, UsageError
from traceformer.store.commits import RunHead, committed_examples, has_lost_manifest
from traceformer.store.layout import MANIFEST, META
from traceformer.store.locks import unfinished_folder
from traceformer.store.names import TRACES
from traceformer.store.objects.path import AnyPath, as_path, is_bucket, sizes_in, states_of

if TYPE_CHECKING:
    import pandas as pd

    from traceformer.store.run import Run

__all__ = ["ListedRun", "RunList", "find_run", "find_runs", "folder_bytes", "list_runs", "open_run", "runs_in"]

LATEST = "latest"


def open_run(name: str | AnyPath = LATEST, traces: str | AnyPath = TRACES) -> "Run":
    """Returns a run by its folder, by its name in the folder `traces`, or the newest one there for `latest`.

    Folders can lie in a bucket: `s3://bucket/prefix`, `gs://bucket/prefix`, `hf://buckets/OWNER/NAME/prefix`.

        run = open_run("latest")
        run = open_run("s3://bucket/traces/latest")

    Raises:
        NotFound: there is no such run; the hint names the nearest one.
        UsageError: the folder holds several runs, or the name is neither text nor a path.
        Unreachable: a bucket does not answer, or refuses.
        CorruptRun, Unreadable: what lies there cannot be read.
    """
    from traceformer.store.run import Run

    return Run(find_run(name if isinstance(name, str) else str(as_path(name)), as_path(traces)))


def find_run(name: str, traces: AnyPath = TRACES) -> AnyPath:
    """Returns the folder of a run: a folder itself, a run's name under `traces`, or the newest run there for `latest`.

    `FOLDER/latest` is the newest run in another folder.
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


def find_runs(name: str, traces: AnyPath = TRACES) -> list[AnyPath]:
    """Returns the folder of the run that `find_run` finds, or those of all runs of an experiment, the newest first.

    Raises:
        NotFound: there is no such run; the hint names the nearest one.
    """
    if name == LATEST:
        runs = runs_in(traces)
        if not runs:
            raise NotFound(f"no run in {traces}", hint="traceformer extract makes one; or name a run's folder")
        return runs[:1]
    place = as_path(name)
    for folder in (place,) if is_bucket(name) else (place, traces / name):
        begun = (unfinished_folder(folder),) if isinstance(folder, Path) and folder.name else ()
        for each in (folder, *begun):
            if (each / META).is_file():
                return [each]
    if inner := runs_in(place):
        return inner
    if place.name == LATEST and not place.is_dir() and (inner := runs_in(place.parent)):
        return inner[:1]
    hint = _nearest(name, runs_in(place.parent if is_bucket(name) else traces))
    if place.is_dir():
        raise NotFound(f"{name} is not a run", why=f"it holds no {META}", hint=hint)
    where = "nothing lies there" if is_bucket(name) else f"neither a folder nor a run in {traces}"
    raise NotFound(f"no run {name!r}", why=where, hint=hint)


def runs_in(folder: AnyPath) -> list[AnyPath]:
    """Returns the runs that lie in a folder, the newest first."""
    if isinstance(folder, Path):
        begun = {path.parent: path.stat().st_mtime_ns for path in folder.glob(f"*/{META}")}
        return [run for run, _ in sorted(begun.items(), key=lambda each: (-each[1], each[0].name))]
    heads = states_of(path / META for path in folder.folders())
    return [path.parent for path, _ in sorted(heads.items(), key=lambda each: (-each[1].modified, each[0]))]


def folder_bytes(folder: AnyPath) -> int:
    """Returns the size of all files in a folder."""
    return sum(sizes_in(folder).values())


def _nearest(name: str, runs: list[AnyPath]) -> str:
    if not runs:
        return "traceformer extract makes a run"
    import difflib

    near = difflib.get_close_matches(as_path(name).name, [run.name for run in runs], n=1)
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
    damaged: bool = False

    @property
    def state(self) -> str:
        """`unfinished`, `damaged` if a finished run has lost its manifest, or nothing."""
        return "" if self.finished else "damaged" if self.damaged else "unfinished"


@dataclass(frozen=True, slots=True, repr=False)
class RunList:
    """The runs of a folder, the newest first."""

    folder: AnyPath
    runs: tuple[ListedRun, ...]

    def __repr__(self) -> str:
        return f"RunList({str(self.folder)!r}: {len(self.runs)} run{'s' * (len(self.runs) != 1)})"

    def to_frame(self) -> "pd.DataFrame":
        """Returns one row per run."""
        import pandas as pd

        return pd.DataFrame(map(asdict, self.runs), columns=[*ListedRun.__slots__])

    def to_json(self) -> dict[str, Any]:
        return {"folder": str(self.folder), "runs": [asdict(run) for run in self.runs]}


def list_runs(folder: str | AnyPath = TRACES) -> RunList:
    """Returns the runs in a folder, unfinished ones included, the newest first; reads no array.

    Raises:
        NotFound: there is no such folder.
    """
    place = as_path(folder)
    if not place.is_dir():
        raise NotFound(f"no folder {place}", hint="traceformer extract makes a run in ./traces")
    runs = runs_in(place)
    if isinstance(place, Path):
        return RunList(place, tuple(map(_listed, runs)))
    from traceformer.store.objects.at_once import at_once

    return RunList(place, tuple(at_once(_listed, runs)))


def _listed(run: AnyPath) -> ListedRun:
    begun = datetime.fromtimestamp((run / META).stat().st_mtime).isoformat(sep=" ", timespec="seconds")
    told: dict[str, Any] = {
        "run": run.name or str(run),
        "bytes": folder_bytes(run),
        "finished": (run / MANIFEST).is_file(),
        "begun": begun,
        "damaged": has_lost_manifest(run),
    }
    try:
        head = RunHead.read(run)
        n_examples = committed_examples(run, head)
    except ValueError:  # CorruptRun and Unreadable: it is listed all the same
        return ListedRun(model=None, dataset=None, n_examples=0, **told)
    return ListedRun(model=head.about.model, dataset=head.about.dataset, n_examples=n_examples, **told)
