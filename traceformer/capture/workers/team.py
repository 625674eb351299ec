"""Parts of work that workers share, each with something that it has prepared once, such as a model and its texts.

1. Every worker prepares; whichever is ready is given the first part that waits, one at a time.
2. What parts come to is handed on in the order of parts, however they end.
3. A worker that dies is missed at once. Its part waits again, before all others, and another worker takes its place.
4. Without an engine this process does all of it, in the same order.
"""

import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from traceformer.capture.workers.engine import Ray, result_of, use_threads
from traceformer.errors import TraceformerError

__all__ = ["Team", "team"]

_PAUSE = 0.1
_MOST_DEATHS = 20
_AHEAD = 8  # parts a worker that may be done before the one that is handed on next

M = TypeVar("M")
M_co = TypeVar("M_co", covariant=True)
P = TypeVar("P")
R = TypeVar("R")


@runtime_checkable
class Team(Protocol[M_co]):
    """Whoever does the work: this process, or workers."""

    def one(self, function: Callable[[M_co], R]) -> R:
        """Returns what a function makes of what any one of them has prepared."""
        ...

    def each(self, function: Callable[[M_co, P], R], parts: Sequence[P]) -> Generator[R]:
        """Yields what a function makes of each part, with what is prepared, in their order."""
        ...


@contextmanager
def team(engine: Ray | None, prepare: Callable[[], M]) -> Generator[Team[M]]:
    """Yields whoever does the work, as long as a `with` block lasts.

    Args:
        engine: How many workers, and where; this process for None.
        prepare: What each of them makes first. For workers it is pickled, and so is all that they are asked.

    Raises:
        Unsupported, NotFound, UsageError: as `Ray.session` raises them.
    """
    if engine is None:
        yield _Alone(prepare())
        return
    with engine.session() as ray:
        workers = _Workers[Any](ray, engine, prepare)
        try:
            yield workers
        finally:
            workers.end()


class _Alone(Generic[M]):
    """This process."""

    def __init__(self, made: M) -> None:
        self._made = made

    def one(self, function: Callable[[M], R]) -> R:
        return function(self._made)

    def each(self, function: Callable[[M, P], R], parts: Sequence[P]) -> Generator[R]:
        return (function(self._made, part) for part in parts)


class _Member:
    """One worker; Ray makes it an actor.

    Args:
        prepare: What it makes first.
        threads: How many it computes with.
        folder: Where names of files are meant, if this machine has it.
    """

    def __init__(self, prepare: Callable[[], Any], threads: int, folder: str) -> None:
        use_threads(threads)  # before torch is there
        with suppress(OSError):
            os.chdir(folder)
        self._prepare, self._threads = prepare, threads
        self._made: Any = None

    def prepare(self) -> tuple[None, list[str]]:
        """Makes what it works with; returns what there was to say."""
        import torch

        torch.set_num_threads(self._threads)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("default")
            self._made = self._prepare()
        return None, _notices(said)

    def does(self, function: Callable[..., Any], *part: Any) -> tuple[Any, list[str]]:
        """Returns what a function makes of a part, and what there was to say."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("default")
            result = function(self._made, *part)
        return result, _notices(said)


def _notices(said: "Iterable[warnings.WarningMessage] | None") -> list[str]:
    return [str(each.message) for each in said or () if issubclass(each.category, UserWarning)]


@dataclass(slots=True, eq=False)
class _Worker:
    """One worker as it is seen from here: what was asked of it last, and which part that is; None once it is told."""

    number: int
    actor: Any
    answer: Any
    part: int | None = None


class _Workers(Generic[M]):
    """Workers that Ray starts."""

    def __init__(self, ray: Any, engine: Ray, prepare: Callable[[], M]) -> None:
        self._ray, self._engine = ray, engine
        self._prepare = ray.put(prepare)
        self._actor = ray.remote(**engine.resources, max_restarts=0)(_Member)
        self._workers: list[_Worker] = []
        self._numbers = count()
        self._deaths = 0
        self._said: set[str] = set()

    def end(self) -> None:
        """Ends all workers."""
        for worker in self._workers:
            self._ray.kill(worker.actor)
        self._workers.clear()

    def one(self, function: Callable[[M], R]) -> R:
        [result] = self._each(function, [()])
        return result

    def each(self, function: Callable[[M, P], R], parts: Sequence[P]) -> Generator[R]:
        return self._each(function, [(part,) for part in parts])

    def _each(self, function: Callable[..., R], parts: Sequence[tuple[Any, ...]]) -> Generator[R]:
        asked = self._ray.put(function)
        waiting, done = deque(range(len(parts))), dict[int, R]()
        is_done = False
        try:
            for following in range(len(parts)):
                while following not in done:
                    if waiting or not self._workers:
                        self._start_missing()
                    for worker in self._workers:
                        if worker.answer is None and waiting and waiting[0] < following + self._furthest:
                            worker.part = waiting.popleft()
                            worker.answer = worker.actor.does.remote(asked, *parts[worker.part])
                    for worker, result in self._answers(waiting):
                        if worker.part is not None:
                            done[worker.part], worker.part = result, None
                            self._deaths = 0
                yield done.pop(following)
            is_done = True
        finally:
            if not is_done:  # nobody writes any more once an error is seen
                self.end()

    @property
    def _furthest(self) -> int:
        return _AHEAD * self._engine.workers

    def _start_missing(self) -> None:
        while len(self._workers) < self._engine.workers:
            actor = self._actor.remote(self._prepare, self._engine.threads_per_worker, os.getcwd())
            self._workers.append(_Worker(next(self._numbers), actor, actor.prepare.remote()))

    def _answers(self, waiting: deque[int]) -> Iterator[tuple[_Worker, Any]]:
        """Yields the workers that have answered within a moment, and what they did."""
        of = {worker.answer: worker for worker in self._workers if worker.answer is not None}
        answered, _ = self._ray.wait([*of], num_returns=1, timeout=_PAUSE)
        for reference in answered:
            worker = of[reference]
            try:
                result, notices = result_of(self._ray, reference)
            except self._ray.exceptions.RayActorError as error:
                self._miss(worker, waiting, error)
                continue
            worker.answer = None
            for notice in notices:
                self._say(notice)
            yield worker, result

    def _miss(self, worker: _Worker, waiting: deque[int], error: Exception) -> None:
        """Lets go of a worker that died."""
        self._workers.remove(worker)
        if worker.part is not None:
            waiting.appendleft(worker.part)
        self._deaths += 1
        if self._deaths > _MOST_DEATHS:
            raise TraceformerError(
                f"workers died {self._deaths} times, and nothing was done between",
                why=str(error).split("\n")[0],
                hint="fewer `workers` if memory is short",
            ) from error
        self._say(f"worker {worker.number} died" + ("; another does its part" if worker.part is not None else ""))

    def _say(self, notice: str) -> None:
        """Says something once: what all workers say alike, too."""
        if notice not in self._said:
            self._said.add(notice)
            warnings.warn(notice, stacklevel=2)
