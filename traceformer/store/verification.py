"""What became of a run's files since they were written."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from traceformer.store.commits import CommitRecord, Problem, has_lost_manifest, verify_run
from traceformer.store.hosts import Computed, Host, computed_by
from traceformer.store.layout import MANIFEST
from traceformer.store.objects.path import AnyPath, sizes_in

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Verification", "verify_folder"]


@dataclass(frozen=True, slots=True, repr=False)
class Verification:
    """Every file of a run held against its records.

    Attributes:
        folder: The run's.
        problems: What is not as it was written, by path; none for an intact run.
        n_files: The files that lie there.
        n_bytes: Their size.
        finished: False for an unfinished run, of which the committed shards were looked at.
        computed: Which shards were computed by which kind of host, where their records say.
    """

    folder: AnyPath
    problems: tuple[Problem, ...]
    n_files: int
    n_bytes: int
    finished: bool
    computed: tuple[Computed, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems

    def __repr__(self) -> str:
        what = "as written" if self.ok else f"{len(self.problems)} problem{'s' if len(self.problems) > 1 else ''}"
        state = "" if self.finished else ", unfinished"
        return f"Verification({str(self.folder)!r}: {what}, {self.n_files} files{state})"

    def to_frame(self) -> "pd.DataFrame":
        """Returns one row per problem."""
        import pandas as pd

        return pd.DataFrame([(str(each.path), each.what) for each in self.problems], columns=["path", "what"])

    def to_json(self) -> dict[str, Any]:
        problems = [{"path": str(problem.path), "what": problem.what} for problem in self.problems]
        computed = [each.to_json() for each in self.computed]
        return {"run": str(self.folder), "ok": self.ok, "problems": problems, "computed": computed}


def verify_folder(folder: AnyPath) -> Verification:
    """Returns whether every file of the run in `folder` is there and as it was written; reads all of them.

    Raises:
        NotFound: there is no run.
        Unreadable: it is not a run of this package, or a later version of it wrote the run.
    """
    hosts: dict[int, Host] = {}

    def seen(record: CommitRecord) -> None:
        hosts[record.shard] = record.host

    problems = tuple(verify_run(folder, seen))
    sizes = sizes_in(folder).values()
    finished = (folder / MANIFEST).exists() or has_lost_manifest(folder)
    return Verification(folder, problems, len(sizes), sum(sizes), finished, computed_by(hosts))
