"""What a viewer shows: the runs and effects of a folder, or some that are at hand, each by its name and no other way.

Names are found by looking into the folder, never made into paths: what does not lie there has none.

1. A run lies in the folder, or in an experiment there, whose runs are `EXPERIMENT/RUN`; so do folders of effects.
2. A run that is being written goes by the name that it will have, and is opened as far as it is committed. Its
   *state* changes when more is, or when it is finished; then it is opened anew.
3. What is opened or worked out is kept while there is room (`kept`).
"""

import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traceformer.errors import NotFound
from traceformer.progress import OnStep
from traceformer.questions.effects_folder import EFFECTS, open_effects
from traceformer.store.layout import COMMITS, MANIFEST, META, UNFINISHED
from traceformer.store.objects.at_once import at_once
from traceformer.store.objects.path import AnyPath, ObjectPath, states_of
from traceformer.store.run import Run
from traceformer.viewer.kept import Kept, Pending

if TYPE_CHECKING:
    from traceformer.analysis.effects import Effects

__all__ = ["Library"]

_OPEN_RUNS = 24
_MOMENT = 2.0  # seconds
_VALUES, _VALUE_BYTES = 10_000, 512 << 20


@dataclass(frozen=True, slots=True)
class Library:
    """Runs and effects by name; nothing beside them can be reached through it.

    Attributes:
        folder: The folder whose runs are shown, those that are begun meanwhile, too; None for the runs at hand only.
        only: The names of those of the folder that are shown; None for all.
        at_hand: Runs that were opened before, or lie in memory.
    """

    folder: AnyPath | None = None
    only: tuple[str, ...] | None = None
    at_hand: Mapping[str, Run] = field(default_factory=dict[str, Run])
    _found: dict[str, AnyPath] = field(default_factory=dict[str, AnyPath])
    _glances: dict[tuple[AnyPath, str], tuple[float, Any]] = field(default_factory=dict[tuple[AnyPath, str], Any])
    _runs: Kept = field(default_factory=lambda: Kept(_OPEN_RUNS, _VALUE_BYTES))
    _values: Kept = field(default_factory=lambda: Kept(_VALUES, _VALUE_BYTES))

    @classmethod
    def of(cls, *runs: Run) -> "Library":
        """Returns a library of some runs; of two of the same name the second is called NAME-2."""
        named: dict[str, Run] = {}
        for run in runs:
            again = (f"{run.name}-{number}" for number in range(2, len(runs) + 1))
            named[next(name for name in (run.name, *again) if name not in named)] = run
        return cls(at_hand=named)

    @classmethod
    def at(cls, folder: AnyPath) -> "Library":
        """Returns the library of a folder of runs, or of the one run or the effects that lie there."""
        folder = folder.absolute()
        if (folder / META).is_file() or (folder / EFFECTS).is_file():
            return cls(folder.parent, only=(_public(folder.name),))
        return cls(folder)

    def names(self) -> list[str]:
        """Returns the names of all runs, the newest first."""
        inside = self._look(META)
        self._found.update(inside)
        return [*self.at_hand, *(name for name in inside if name not in self.at_hand)]

    def place(self, name: str) -> AnyPath | None:
        """Returns the folder of a run; None if it is in memory.

        Raises:
            NotFound: there is no such run.
        """
        if name in self.at_hand:
            return self.at_hand[name].folder
        return self._place(name, META, "run")

    def state(self, name: str) -> str:
        """Returns a text that changes when there is more of a run, or when it is another one; reads no file.

        Raises:
            NotFound: there is no such run.
        """
        return "" if name in self.at_hand else self._state(self._place(name, META, "run"))

    def begun(self, name: str) -> str:
        """Returns a text that changes when a run is another one, and stays while it grows; reads no file.

        Raises:
            NotFound: there is no such run.
        """
        return self.state(name).partition("-")[0]

    def run(self, name: str) -> Run:
        """Returns the run of a name; one that is being written as far as it has come.

        Raises:
            NotFound: there is none.
            CorruptRun, Unreadable: it cannot be read.
        """
        if name in self.at_hand:
            return self.at_hand[name]
        folder = self._place(name, META, "run")
        try:
            return self._runs.get((folder, self._state(folder)), lambda: Run(folder))
        except NotFound:  # it was finished, and renamed, this moment
            folder = self._place(name, META, "run")
            return self._runs.get((folder, self._state(folder)), lambda: Run(folder))

    def effects(self) -> list[str]:
        """Returns the names of all folders of effects, the newest first."""
        return [*self._look(EFFECTS)]

    def open_effects(self, name: str) -> "Effects":
        """Returns the effects of a name.

        Raises:
            NotFound: there are none.
            CorruptRun: they cannot be read, or are still being measured.
        """
        folder = self._place(name, EFFECTS, "effects")
        key = ("effects", folder, (folder / EFFECTS).stat().st_mtime_ns)
        return self._values.get(key, lambda: open_effects(str(folder)))

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Returns what was made under a key before, or makes it now. What is of a run has its `state` in the key."""
        return self._values.get(key, make)

    def later(self, key: Hashable, make: Callable[[OnStep], Any]) -> Any | Pending:
        """Returns the same of work of over a second, or how far it is (`Kept.later`), which a page asks for again."""
        return self._values.later(key, make)

    def _place(self, name: str, file: str, what: str) -> AnyPath:
        folder = self._found.get(name)
        if folder is None or not self._has(folder, file):
            self._found.update(self._look(file))
            folder = self._found.get(name)
        if folder is None or not self._has(folder, file):
            raise NotFound(
                f"no {what} {name!r}", why="nothing here has that name", hint="one of those on the first page"
            )
        return folder

    def _has(self, folder: AnyPath, file: str) -> bool:
        return self._glance(folder, file, lambda: (folder / file).is_file())

    def _state(self, folder: AnyPath) -> str:
        return self._glance(folder, "", lambda: _state(folder))

    def _glance(self, folder: AnyPath, what: str, look: Callable[[], Any]) -> Any:
        """Returns what is seen of a folder; of one in a bucket what was seen a moment ago is still so."""
        if isinstance(folder, Path):
            return look()
        now = time.monotonic()
        at, seen = self._glances.get((folder, what), (-inf, None))
        if now - at >= _MOMENT:
            seen = look()
            self._glances[folder, what] = now, seen
        return seen

    def _look(self, file: str) -> dict[str, AnyPath]:
        folder = self.folder
        if folder is None:
            return {}
        found = self._glance(folder, f"*/{file}", lambda: _found_in(folder, file, self.only))
        named: dict[str, AnyPath] = {}
        # The finished run of a name comes first: one that is to take its place is named as it lies there.
        for place in sorted(found, key=lambda each: each.name.startswith(UNFINISHED)):
            path = place.relative_to(folder)
            name = path.with_name(_public(path.name)).as_posix()
            named[path.as_posix() if name in named else name] = place
        shown = named.items() if self.only is None else [(name, named[name]) for name in self.only if name in named]
        return dict(sorted(shown, key=lambda each: (-found[each[1]], each[0])))


def _found_in(folder: AnyPath, file: str, only: Sequence[str] | None) -> dict[AnyPath, int]:
    """Returns the folders in a folder, and in those of experiments there, that hold a file, and when it was written."""
    if isinstance(folder, Path):
        found = {path: age for pattern in (f"*/{file}", f"*/*/{file}") for path, age in _ages(folder, pattern)}
        return {path: age for path, age in found.items() if path.parent == folder or not (path.parent / META).exists()}
    if file != META:
        return {}  # effects lie on a disk
    first = folder.folders() if only is None else [folder / name for name in only]
    runs = states_of(path / META for path in first)
    others = [path for path in first if path / META not in runs] if only is None else []
    runs |= states_of(path / META for inner in at_once(ObjectPath.folders, others) for path in inner)
    return {path.parent: int(state.modified * 1e9) for path, state in runs.items()}


def _ages(folder: Path, pattern: str) -> Iterable[tuple[Path, int]]:
    for path in folder.glob(pattern):
        try:
            yield path.parent, path.stat().st_mtime_ns
        except FileNotFoundError:  # it was renamed or removed meanwhile
            continue


def _public(name: str) -> str:
    return name.removeprefix(UNFINISHED)


def _state(folder: AnyPath) -> str:
    finished = (folder / MANIFEST).is_file()
    try:
        begun = (folder / META).stat().st_mtime_ns
        commits = 0 if finished else sum(path.name.endswith(".json") for path in (folder / COMMITS).iterdir())
    except FileNotFoundError:
        return "nothing is committed"
    return f"{begun:x}-{'finished' if finished else commits}"
