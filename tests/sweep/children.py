"""Jobs in processes of their own, a few at a time: what one of them does with time or memory hurts no other.

A child is forked, so that it begins with all that its parent has imported; the parent must have begun no thread.
"""

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["Ended", "in_children"]


class Ended(NamedTuple):
    """How a job's process ended; `trouble` is empty where it came to its own end."""

    job: str
    trouble: str
    seconds: float


def in_children(
    jobs: Sequence[str], work: Callable[[str], None], logs: Path, *, at_once: int, seconds: float, memory: int
) -> Iterator[Ended]:
    """Yields how each job ended, as they end; what one prints is in `logs`, under its name.

    `seconds` and `memory` (bytes, on top of what the parent has) are what one may take.
    """
    limit = _address_space() + memory
    running: dict[int, tuple[str, float]] = {}
    waiting = list(reversed(jobs))
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop()
                running[_forked(job, work, logs / f"{job}.log", limit)] = (job, time.monotonic())
            time.sleep(0.02)
            for pid, (job, began) in list(running.items()):
                took = time.monotonic() - began
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    del running[pid]
                    yield Ended(job, _trouble(status), took)
                elif took > seconds:
                    _kill(pid)
                    del running[pid]
                    yield Ended(job, f"it took more than {seconds:.0f} seconds", took)
    finally:
        for pid in running:
            _kill(pid)


def _forked(job: str, work: Callable[[str], None], log: Path, limit: int) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        work(job)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # nothing of the parent's is tidied up


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _trouble(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"its process was ended by {signal.Signals(os.WTERMSIG(status)).name}"
    code = os.waitstatus_to_exitcode(status)
    return f"its process ended with {code}" if code else ""


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
