"""A worker: one process that has the model, told which shards of a run to record, and asked how far it is.

Ray calls `run`, which lasts as long as the worker, and beside it, in threads of their own, the other methods. What a
worker is told comes in order: the place of the run, then shards one after the other, and in the end nothing more.
"""

import os
import queue
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from traceformer.capture.workers.engine import use_threads
from traceformer.progress import Counting, quiet

if TYPE_CHECKING:
    from traceformer.store.commits import CommitRecord
    from traceformer.store.layout import RunLayout
    from traceformer.store.leased import LeasedWriter
    from traceformer.store.place import Place, Writer
    from traceformer.store.writer import RunWriter

    Shared: TypeAlias = RunWriter | LeasedWriter

__all__ = ["Committed", "Opened", "Ready", "RecordingWorker", "Report"]

_PAUSE = 0.2


class Ready(Protocol):
    """What is to be recorded, ready to begin: an `Extraction`, or the answers to prompts."""

    @property
    def layout(self) -> "RunLayout": ...

    def open(self, place: "Place") -> "Writer": ...

    def record(self, writer: "Writer", shards: Iterable[int | None], counting: Counting) -> None: ...


class Opened(NamedTuple):
    """The run that a worker has opened: where others join it, which shards it lacked, how many examples these have."""

    place: "Place"
    pending: Sequence[int]
    n_examples: int


class Committed(NamedTuple):
    """A shard that a worker has committed, and what is in it."""

    shard: int
    examples: int
    tokens: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Report:
    """How far a worker is.

    Attributes:
        process: Its id, where it runs.
        queued: How many shards it was told and has not begun.
        is_idle: Whether it waits for one.
        committed: What it has committed since it was last asked.
        examples, tokens: What it has recorded that is not committed yet.
        notices: What it has to say, since it was last asked.
    """

    process: int
    queued: int
    is_idle: bool
    committed: tuple[Committed, ...]
    examples: int
    tokens: int
    notices: tuple[str, ...]


class RecordingWorker:
    """One worker; Ray makes it an actor.

    Args:
        prepare: Loads the model and the texts, and returns what is to be recorded, ready.
        threads: How many it computes with.
        folder: Where names of files are meant, if this machine has it.
    """

    def __init__(self, prepare: Callable[[], Ready], threads: int, folder: str) -> None:
        use_threads(threads)  # before torch is there
        with suppress(OSError):
            os.chdir(folder)
        self._prepare, self._threads = prepare, threads
        self._place: queue.SimpleQueue[Place] = queue.SimpleQueue()
        self._shards: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._is_open = threading.Event()
        self._opened: Opened | None = None
        self._counting = Counting(quiet, 0, lambda: 0)
        self._lock = threading.Lock()
        self._committed: list[Committed] = []
        self._total = Committed(0, 0, 0, 0)
        self._notices: list[str] = []
        self._begun: set[int] = set()
        self._is_idle = True

    def goes_to(self, place: "Place") -> None:
        """Says where the run is."""
        self._place.put(place)

    def records(self, shard: int | None) -> None:
        """Says which shard is next; None that there are no more, so that the run is finished."""
        self._shards.put(shard)

    def opened(self) -> Opened:
        """Returns, when the run is open, what it lacks."""
        self._is_open.wait()
        assert self._opened is not None
        return self._opened

    def report(self) -> Report:
        """Returns how far it is."""
        with self._lock:
            committed, self._committed = tuple(self._committed), []
            notices, self._notices = tuple(self._notices), []
            open_examples = self._counting.examples - self._total.examples
            open_tokens = self._counting.tokens - self._total.tokens
        return Report(
            os.getpid(),
            self._shards.qsize(),
            self._is_idle,
            committed,
            max(0, open_examples),
            max(0, open_tokens),
            notices,
        )

    def run(self) -> str:
        """Returns the folder of the run, when there are no more shards."""
        import torch

        from traceformer.store.memory import MemoryWriter

        torch.set_num_threads(self._threads)
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.showwarning = self._note
            ready = self._prepare()
            place = self._place.get()
            with ready.open(place) as writer:
                assert not isinstance(writer, MemoryWriter), "workers share a folder"
                pending = writer.pending
                examples = sum(len(ready.layout.shard_range(shard)) for shard in pending)
                self._opened = Opened(_joined(place, writer), pending, examples)
                writer.on_commit = self._on_commit
                self._is_open.set()
                ready.record(writer, self._told(writer), self._counting)
                return str(place.finish(writer).folder)

    def _told(self, writer: "Shared") -> Iterator[int | None]:
        """Yields the shards that it is told, and None while it waits for one; passes over what is there already."""
        while True:
            try:
                shard = self._shards.get(timeout=_PAUSE)
            except queue.Empty:
                yield None  # all that was begun is settled then
                for left in [*self._begun]:  # what another writer has committed before
                    self._is_there(writer, left, counted=True)
                self._is_idle = True
                continue
            self._is_idle = False
            if shard is None:
                return
            with self._lock:
                self._begun.add(shard)
            if not self._is_there(writer, shard, counted=False):  # a worker may have died behind its commit
                yield shard

    def _is_there(self, writer: "Shared", shard: int, *, counted: bool) -> bool:
        record = writer.record_of(shard)
        if record is not None:
            self._add(record, counted=counted)
        return record is not None

    def _on_commit(self, record: "CommitRecord") -> None:
        self._add(record, counted=True)

    def _add(self, record: "CommitRecord", *, counted: bool) -> None:
        made = Committed(
            record.shard,
            len(record.examples),
            sum(sum(own) for own in record.lengths.values()),
            sum(file.bytes for file in record.files.values()),
        )
        with self._lock:
            if record.shard not in self._begun:
                return
            self._begun.remove(record.shard)
            self._committed.append(made)
            if counted:
                self._total = Committed(0, *(a + b for a, b in zip(self._total[1:], made[1:], strict=True)))

    def _note(self, message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, UserWarning):  # of others the driver says as much
            with self._lock:
                self._notices.append(str(message))


def _joined(place: "Place", writer: "Shared") -> "Place":
    """Where others join the run that a writer has begun."""
    from pathlib import Path

    from traceformer.store.locks import final_folder

    folder = final_folder(writer.folder) if isinstance(writer.folder, Path) else writer.folder
    return replace(place, folder=folder, parent=None, resume=True)
