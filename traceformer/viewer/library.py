"""What a viewer shows: the runs of a folder, or some that are at hand, each by its name and no other way."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from traceformer.errors import NotFound
from traceformer.store.folders import runs_in
from traceformer.store.layout import UNFINISHED
from traceformer.store.run import Run

__all__ = ["Library"]


@dataclass(frozen=True, slots=True)
class Library:
    """Runs by name; nothing beside them can be reached through it.

    Attributes:
        folder: The folder whose runs are shown, those that are begun meanwhile, too; None for the runs at hand only.
        at_hand: Runs that were opened before, or lie in memory.
    """

    folder: Path | None = None
    at_hand: Mapping[str, Run] = field(default_factory=dict[str, Run])
    _opened: dict[str, tuple[Hashable, Run]] = field(default_factory=dict[str, tuple[Hashable, Run]])
    _kept: dict[Hashable, Any] = field(default_factory=dict[Hashable, Any])
    _lock: Lock = field(default_factory=Lock)

    @classmethod
    def of(cls, *runs: Run) -> "Library":
        """Returns a library of some runs."""
        return cls(at_hand={run.name: run for run in runs})

    def names(self) -> list[str]:
        """Returns the names of all runs, the newest first."""
        inside = [] if self.folder is None else [folder.name for folder in runs_in(self.folder)]
        return [*self.at_hand, *(name for name in inside if name not in self.at_hand)]

    def run(self, name: str) -> Run:
        """Returns the run of a name; one that is being written as far as it has come.

        Raises:
            NotFound: there is none.
            CorruptRun, Unreadable: it cannot be read.
        """
        if name in self.at_hand:
            return self.at_hand[name]
        if self.folder is None or name not in self.names():
            raise NotFound(f"no run {name!r}", hint="one of those on the page of runs")
        folder = self.folder / name
        state = (folder.stat().st_mtime_ns, name.startswith(UNFINISHED) and len(list(folder.rglob("*.json"))))
        with self._lock:
            known = self._opened.get(name)
        if known is not None and known[0] == state:
            return known[1]
        run = Run(folder)
        with self._lock:
            self._opened[name] = (state, run)
        return run

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Returns what was made under a key before, or makes it now."""
        with self._lock:
            if key in self._kept:
                return self._kept[key]
        value = make()
        with self._lock:
            return self._kept.setdefault(key, value)
