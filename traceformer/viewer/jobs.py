"""Work that takes longer than a page should wait: it goes on in a thread, and the page asks again how far it is."""

from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock, Thread
from typing import Any

from traceformer.progress import OnStep
from traceformer.viewer.library import Library

__all__ = ["Pending", "worked_out"]

_PATIENCE = 0.2  # seconds until a page is told that it has to wait


@dataclass(frozen=True, slots=True)
class Pending:
    """How far work is that is not done; `of` is 0 while that is not known."""

    done: int
    of: int

    def to_json(self) -> dict[str, Any]:
        return {"pending": {"done": self.done, "of": self.of}}


def worked_out(library: Library, key: Hashable, make: Callable[[OnStep], Any]) -> Any:
    """Returns what `make` returned under a key, or how far it is: it is called once, in a thread of its own.

    What `make` raises is raised to whoever asks next, and forgotten, so that it is tried again after that.
    """
    jobs: _Jobs = library.once(_Jobs, _Jobs)
    job = jobs.job(key, make)
    try:
        return job.result.result(timeout=_PATIENCE)
    except TimeoutError:
        return job.progress
    except BaseException:
        jobs.forget(key)
        raise


class _Job:
    def __init__(self, make: Callable[[OnStep], Any]) -> None:
        self.progress = Pending(0, 0)
        self.result = Future[Any]()
        # A daemon, so that a server that is stopped stops.
        Thread(target=self._run, args=(make,), daemon=True).start()

    def _run(self, make: Callable[[OnStep], Any]) -> None:
        try:
            self.result.set_result(make(self._told))
        except BaseException as error:  # whatever it is, it belongs to whoever asks
            self.result.set_exception(error)

    def _told(self, done: int, of: int) -> None:
        self.progress = Pending(done, of)


@dataclass(frozen=True, slots=True)
class _Jobs:
    _known: dict[Hashable, _Job] = field(default_factory=dict[Hashable, _Job])
    _lock: Lock = field(default_factory=Lock)

    def job(self, key: Hashable, make: Callable[[OnStep], Any]) -> _Job:
        with self._lock:
            if key not in self._known:
                self._known[key] = _Job(make)
            return self._known[key]

    def forget(self, key: Hashable) -> None:
        with self._lock:
            self._known.pop(key, None)
