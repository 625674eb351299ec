"""Who works on what, told by files that run out: no lock that a file system must have, and none that outlives a node.

1. A lease on a thing is the file `leases/{thing}.{generation}.json` of a run, in a folder or in a bucket. It is created
   only if it is not there, so of all who try one has it. It names its owner, and when it runs out.
2. While the owner is at work, a thread of its own writes it anew every quarter of its time, with a later end.
3. A lease that has run out is taken over: whoever creates the next generation has it. So is that of a process of this
   machine that is no more, at once: a run that was killed is resumed without waiting.
4. What is done is concluded: its owner creates the next generation once more, with the record that is to be written.
   It cannot if somebody has taken over; and if it can, nobody takes over any more, but writes that record in its place,
   if it is not there. So of several owners, of whom all but one slept past their ends, one has its record written, and
   nobody has changed its files since: who may replace files is the owner of the newest generation (`placing`).
5. Generations only grow until the record is there; then all are removed.

Clocks of several machines may differ, and an owner may sleep for an hour between two lines: then two work on one thing.
That costs the work of one of them, and nothing else.
"""

import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from traceformer.errors import RunExists
from traceformer.store.files import TEMPORARY
from traceformer.store.layout import LEASES
from traceformer.store.objects.path import AnyPath, ObjectPath, each_of
from traceformer.store.system import is_running, link, replace

__all__ = ["LEASE_SECONDS", "Lease", "Leases", "refuse_at_work"]

LEASE_SECONDS = 120.0
"""How long a lease lasts that is not renewed: what a node that dies keeps others waiting for its open shard."""

_RENEWALS = 4  # in the time that a lease lasts
_NAME = re.compile(r"(\w+)\.(\d+)\.json")
_OVER = 0.0
_WRITER = "writer_"


@dataclass(frozen=True, slots=True)
class Lease:
    """What a lease says: its owner's name, machine and process, and the time when it runs out, in seconds since 1970.

    `record` is what the owner has concluded with; such a lease does not run out.
    """

    owner: str
    machine: str
    process: int
    expires: float
    record: str = ""

    @classmethod
    def parse(cls, text: bytes) -> "Lease":
        """Returns what a lease's file says; what cannot be read has run out."""
        try:
            data = json.loads(text)
            who = str(data["owner"]), str(data["machine"]), int(data["process"])
            return cls(*who, float(data["expires"]), str(data.get("record", "")))
        except (ValueError, TypeError, KeyError):
            return cls("", "", 0, _OVER)

    def to_bytes(self) -> bytes:
        return f"{json.dumps(asdict(self))}\n".encode()

    def is_alive(self, now: float) -> bool:
        """Returns whether its owner may still be at work."""
        gone = self.machine == this_machine() and not is_running(self.process)
        return now < self.expires and not gone


class Leases:
    """The leases of one owner on the things of a run. Leaving the `with` block gives back what was not done.

        with Leases(folder) as leases:
            if leases.take("3"):
                ...
                leases.release("3", done=True)

    Attributes:
        owner: A name that no other owner has.
    """

    def __init__(self, run: AnyPath, *, seconds: float = LEASE_SECONDS, clock: Callable[[], float] = time.time) -> None:
        self.owner = uuid.uuid4().hex
        self._folder = run / LEASES
        self._seconds = seconds
        self._clock = clock
        self._held: dict[str, int] = {}
        self._concluded = set[str]()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._renewing: threading.Thread | None = None

    def announce(self) -> None:
        """Takes a lease that says only that somebody is at work here."""
        self.take(f"{_WRITER}{self.owner}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def take(self, thing: str, *, by_force: bool = False) -> bool:
        """Returns whether the thing is this owner's now: nobody had it, or who had it has let it run out.

        What is done may be taken, too: who takes looks after that. With `by_force` somebody knows that who had it is no
        more, though his lease has not run out.
        """
        if self.holds(thing):
            return True
        generation = self._newest().get(thing, 0)
        if generation:
            text = _read(self._path(thing, generation))
            alive = text is not None and Lease.parse(text).is_alive(self._clock())
            if alive and not by_force:
                return False
            if text is not None and Lease.parse(text).record:
                return False
        if not _create(self._path(thing, generation + 1), self._text(), self.owner):
            return False
        with self._lock:
            self._held[thing] = generation + 1
            if self._renewing is None:
                self._renewing = threading.Thread(target=self._renew_all, name="leases", daemon=True)
                self._renewing.start()
        return True

    def look(self, things: Iterable[str]) -> tuple[list[str], dict[str, bytes]]:
        """Returns those of several things, in order, that nobody is at work on, and the records of those concluded."""
        newest, things = self._newest(), [*things]
        wanted = {thing: self._path(thing, newest[thing]) for thing in things if thing in newest}
        texts = dict(zip(wanted, each_of(self._folder, _read, wanted.values()), strict=True))
        leases = {thing: Lease.parse(text) for thing, text in texts.items() if text is not None}
        concluded = {thing: lease.record.encode() for thing, lease in leases.items() if lease.record}
        now = self._clock()
        at_work = {thing for thing, lease in leases.items() if lease.is_alive(now)}
        return [thing for thing in things if thing not in at_work and thing not in concluded], concluded

    def conclude(self, thing: str, record: bytes) -> bool:
        """Returns whether this owner's record of a thing is the one to be written: nobody has taken it over."""
        with self._lock:
            generation = self._held.get(thing)
        if generation is None:
            return False
        path = self._path(thing, generation + 1)
        if not _create(path, self._text(record=record.decode()), self.owner):
            return False
        with self._lock:
            self._held[thing] = generation + 1
            self._concluded.add(thing)
        return True

    def holds(self, thing: str) -> bool:
        """Returns whether the thing is still this owner's: it took it, and nobody has taken it over."""
        with self._lock:
            generation = self._held.get(thing)
        return generation is not None and self._newest().get(thing) == generation

    def release(self, thing: str, *, done: bool) -> None:
        """Gives a lease back; `done` says that its record is there, and never before: all generations are removed."""
        with self._lock:
            generation = self._held.pop(thing, None)
            concluded = thing in self._concluded
            self._concluded.discard(thing)
        if generation is None:
            return
        if done:
            _remove([self._path(thing, each) for each in range(1, generation + 1)])
        elif not concluded and self._newest().get(thing) == generation:
            _write(self._path(thing, generation), self._text(expires=_OVER), self.owner)

    def renew(self) -> None:
        """Lets all leases that are still this owner's last longer."""
        newest = self._newest()
        with self._lock:
            held = {thing: generation for thing, generation in self._held.items() if thing not in self._concluded}
        for thing, generation in held.items():
            if newest.get(thing) == generation:
                _write(self._path(thing, generation), self._text(), self.owner)

    def close(self) -> None:
        """Gives all leases back."""
        self._ended.set()
        if self._renewing is not None:
            self._renewing.join()
        for thing in [*self._held]:
            with suppress(OSError):  # it runs out
                self.release(thing, done=thing.startswith(_WRITER))

    def _renew_all(self) -> None:
        while not self._ended.wait(self._seconds / _RENEWALS):
            with suppress(OSError):  # of a bucket or a disk that is away for longer: the lease runs out
                self.renew()

    def _newest(self) -> dict[str, int]:
        """Returns the newest generation of each thing on which there is a lease."""
        newest: dict[str, int] = {}
        for path in _files_in(self._folder):
            if found := _NAME.fullmatch(path.name):
                newest[found[1]] = max(newest.get(found[1], 0), int(found[2]))
        return newest

    def _path(self, thing: str, generation: int) -> AnyPath:
        return self._folder / f"{thing}.{generation}.json"

    def _text(self, expires: float | None = None, record: str = "") -> bytes:
        until = self._clock() + self._seconds if expires is None else expires
        return Lease(self.owner, this_machine(), os.getpid(), until, record).to_bytes()


def refuse_at_work(run: AnyPath) -> None:
    """Refuses to begin a run anew, or to write it without leases, while others write it with them.

    Raises:
        RunExists: a lease on it has not run out.
    """
    now = time.time()
    for text in each_of(run, _read, _files_in(run / LEASES)):
        lease = None if text is None else Lease.parse(text)
        if lease is not None and lease.is_alive(now):
            host = lease.machine.partition(" ")[0]
            raise RunExists(
                f"another process is writing {run}",
                why=f"process {lease.process} of {host} has a lease on it for {lease.expires - now:.0f} seconds more",
                hint="wait for it, or choose another `out`",
            )


@cache
def this_machine() -> str:
    """Returns a name for where a process's number means that process, since the machine was started."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _files_in(folder: AnyPath) -> "list[AnyPath]":
    try:
        return [*folder.glob("*.json")]
    except FileNotFoundError:
        if isinstance(folder, ObjectPath):
            raise
        return []  # it was there when it was looked for, and the run was finished since


def _create(path: AnyPath, text: bytes, owner: str) -> bool:
    """Whether the file was created: not if it was there, nor if its folder has gone, as that of a finished run does."""
    if isinstance(path, ObjectPath):
        return path.store.put_if_absent(path.key, text)
    temporary = path.with_name(f".{path.name}.{owner}{TEMPORARY}")
    try:
        temporary.write_bytes(text)
        link(temporary, path)
    except (FileExistsError, FileNotFoundError):
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _write(path: AnyPath, text: bytes, owner: str) -> None:
    if isinstance(path, ObjectPath):
        path.store.put(path.key, text)
        return
    temporary = path.with_name(f".{path.name}.{owner}{TEMPORARY}")
    with suppress(FileNotFoundError):  # the run was finished, and its folder renamed
        temporary.write_bytes(text)
        replace(temporary, path)


def _read(path: AnyPath) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _remove(paths: "list[AnyPath]") -> None:
    objects = [path for path in paths if isinstance(path, ObjectPath)]
    if objects:
        objects[0].store.delete([path.key for path in objects])
    for path in paths:
        if isinstance(path, Path):
            path.unlink(missing_ok=True)
