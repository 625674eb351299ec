"""The recording of a run by workers, watched to its end.

1. Workers are started; each loads the model and prepares. The first that is ready opens the run, at the place that was
   asked for; the others join it there.
2. Each has a shard at hand and one ahead, as long as there are some: which are whose is in the `Ledger`.
3. A worker that dies, or whose machine does, is missed at once. What it had waits again, and another takes its place.
   A shard has one record whoever writes it, and a worker passes over one that has it already.
4. When all shards are committed one of the workers finishes the run.
"""

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from traceformer.capture.workers.engine import Ray, result_of
from traceformer.capture.workers.ledger import Ledger
from traceformer.capture.workers.recording import Opened, Ready, RecordingWorker, Report
from traceformer.errors import TraceformerError, UsageError
from traceformer.presentation import present
from traceformer.progress import OnProgress, Progress
from traceformer.store.locks import clear_unfinished, unfinished_folder
from traceformer.store.objects.path import AnyPath, as_path
from traceformer.store.place import Place
from traceformer.store.run import Run

__all__ = ["record_on"]

_PAUSE = 0.1
_MOST_DEATHS = 20
_METHODS_AT_A_TIME = 4


def record_on(engine: Ray, prepare: Callable[[], Ready], place: Place, progress: OnProgress) -> Run:
    """Returns the run that workers have recorded together.

    Args:
        engine: How many they are, and where.
        prepare: Called by each of them: loads the model and the texts, and returns what is to be recorded.
        place: Where the run goes; not to memory, which they do not share.
        progress: Told how far all are together, and of workers that died.

    Raises:
        RunExists: as `Place.check` raises it.
        UsageError: the run goes to memory, or is shared in another way, too.
        TraceformerError: what a worker raised; or workers die again and again, and nothing is committed.
    """
    if place.folder is None and place.parent is None:
        raise UsageError("workers, and a run in memory", why="they do not share it", hint="give `out`")
    if place.is_shared:
        raise UsageError("`engine` and `num_shards`", why="the engine hands out shards", hint="one of them")
    place.check()
    place = place.made_absolute()
    if isinstance(place.folder, Path) and place.overwrite and not place.resume:
        clear_unfinished(unfinished_folder(place.folder))
    with engine.session() as ray, _Driving(ray, engine, prepare, place, progress).workers_ended() as driving:
        run = Run(driving.run())
    if place.thumbnails and run.finished:
        present(
            run, "thumbnails", lambda done, of: progress(replace(driving.progress(), message=f"drawing {done} of {of}"))
        )
    return run


@dataclass(slots=True, eq=False)
class _Worker:
    """One worker as it is seen from here: what was asked of it and is not answered yet, and what it last said."""

    number: int
    actor: Any
    result: Any
    opened: Any
    answer: Any = None
    report: Report | None = None
    is_sent: bool = False
    is_open: bool = False
    is_finishing: bool = False


class _Driving:
    """The state of a recording by workers."""

    def __init__(self, ray: Any, engine: Ray, prepare: Callable[[], Ready], place: Place, progress: OnProgress) -> None:
        self._ray, self._engine, self._place, self._report = ray, engine, place, progress
        self._prepare = ray.put(prepare)
        self._actor = ray.remote(**engine.resources, max_restarts=0, max_concurrency=_METHODS_AT_A_TIME)(
            RecordingWorker
        )
        self._workers: list[_Worker] = []
        self._started = 0
        self._ledger: Ledger | None = None
        self._joining: Place | None = None
        self._n_examples = self._examples = self._tokens = self._bytes = 0
        self._began = time.perf_counter()
        self._deaths = 0
        self._said: set[str] = set()
        self._folder: AnyPath | None = None

    @contextmanager
    def workers_ended(self) -> Generator["_Driving"]:
        """Ends the workers with the block, however it ends: what they have committed is kept."""
        try:
            yield self
        finally:
            for worker in self._workers:
                self._ray.kill(worker.actor)

    def run(self) -> AnyPath:
        """Returns the folder of the run."""
        while self._folder is None:
            self._start_missing()
            self._listen()
            self._send_to_place()
            self._hand_out()
            self._report(self.progress())
        return self._folder

    def progress(self) -> Progress:
        """Returns how far all workers are together."""
        reports = [worker.report for worker in self._workers if worker.report is not None]
        examples = min(self._n_examples, self._examples + sum(report.examples for report in reports))
        tokens = self._tokens + sum(report.tokens for report in reports)
        working = sum(worker.is_open for worker in self._workers)
        message = f"recording, {working} worker{'s' * (working != 1)}" if working else "loading"
        if any(worker.is_finishing for worker in self._workers):
            message = "finishing"
        return Progress(examples, self._n_examples, tokens, self._bytes, time.perf_counter() - self._began, message)

    def _start_missing(self) -> None:
        """Has as many workers as there should be, while there is something left for a new one to do."""
        has_work = self._ledger is None or self._ledger.waiting or not self._workers
        while has_work and len(self._workers) < self._engine.workers:
            actor = self._actor.remote(self._prepare, self._engine.threads_per_worker, os.getcwd())
            self._workers.append(_Worker(self._started, actor, actor.run.remote(), actor.opened.remote()))
            self._started += 1

    def _listen(self) -> None:
        """Takes what workers answer within a moment."""
        of: dict[Any, _Worker] = {}
        for worker in self._workers:
            if worker.answer is None and worker.is_open:
                worker.answer = worker.actor.report.remote()
            of |= dict.fromkeys(filter(None, (worker.result, worker.opened, worker.answer)), worker)
        answered, _ = self._ray.wait([*of], num_returns=len(of), timeout=_PAUSE)
        for reference in answered:
            worker = of[reference]
            try:
                found = result_of(self._ray, reference)
            except self._ray.exceptions.RayActorError as error:
                self._miss(worker, error)
                continue
            if reference == worker.result:
                self._folder = as_path(found)
            elif reference == worker.opened:
                worker.opened, worker.is_open = None, True
                self._open(found)
            else:
                worker.answer = None
                self._take(worker, found)

    def _open(self, opened: Opened) -> None:
        if self._ledger is None:
            self._ledger, self._joining = Ledger(opened.pending), opened.place
            self._n_examples, self._began = opened.n_examples, time.perf_counter()

    def _take(self, worker: _Worker, report: Report) -> None:
        assert self._ledger is not None
        worker.report = report
        for shard, examples, tokens, size in report.committed:
            self._ledger.commit(worker.number, shard)
            self._examples += examples
            self._tokens += tokens
            self._bytes += size
            self._deaths = 0
        for notice in report.notices:
            self._say(notice)

    def _send_to_place(self) -> None:
        """Tells one worker to open the run, and the others, once that is done, to join it."""
        for worker in self._workers:
            if worker.is_sent or (self._joining is None and any(each.is_sent for each in self._workers)):
                continue
            worker.is_sent = True
            place = replace(self._joining or self._place, writer=(worker.number, 0), claims="lease", thumbnails=False)
            worker.actor.goes_to.remote(place)

    def _hand_out(self) -> None:
        """Gives shards to workers that have none ahead; the last ones to those that wait."""
        if self._ledger is None:
            return
        there = [worker for worker in self._workers if worker.report is not None and not worker.is_finishing]
        for worker in there:
            assert worker.report is not None
            has_room = worker.report.queued == 0
            is_tail = self._ledger.waiting < len(self._workers)
            if has_room and (worker.report.is_idle or not is_tail):
                shard = self._ledger.give(worker.number)
                if shard is not None:
                    worker.actor.records.remote(shard)
                    worker.report = replace(worker.report, queued=1)
        if self._ledger.is_done and there and not any(worker.is_finishing for worker in self._workers):
            there[0].is_finishing = True
            there[0].actor.records.remote(None)

    def _miss(self, worker: _Worker, error: Exception) -> None:
        """Lets go of a worker that died."""
        if worker not in self._workers:  # another of its answers said so
            return
        self._workers.remove(worker)
        lost = [] if self._ledger is None else self._ledger.lose(worker.number)
        shards = f"; shard{'s' * (len(lost) != 1)} {', '.join(map(str, sorted(lost)))} will be recorded by another"
        self._say(f"worker {worker.number} died{shards if lost else ''}")
        self._deaths += 1
        if self._deaths > _MOST_DEATHS:
            raise TraceformerError(
                f"workers died {self._deaths} times, and nothing was committed between",
                why=str(error).split("\n")[0],
                hint="what is committed is kept: `resume=True`, with fewer `workers` if memory is short",
            ) from error

    def _say(self, notice: str) -> None:
        """Says something once: what all workers say alike, too."""
        if notice not in self._said:
            self._said.add(notice)
            self._report(replace(self.progress(), message=notice, is_notice=True))
