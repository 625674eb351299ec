"""Work that keeps what it has done, however it is ended: by Ctrl-C, or by a scheduler that says that it will end it.

SIGTERM comes before a job is killed (SLURM, Kubernetes, spot machines), SIGUSR1 where one asks for it in time
(`sbatch --signal=USR1@120`). Either drops the shard or text at hand, waits for what is being written, and ends the
process with a code of its own and the command that goes on.
"""

import shlex
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

__all__ = ["TO_BE_RESUMED", "Announced", "keeping"]

TO_BE_RESUMED = 75  # EX_TEMPFAIL of sysexits.h: the same again will do
_ANNOUNCING = ("SIGTERM", "SIGUSR1")


class Announced(KeyboardInterrupt):
    """The end of this process was announced: by the signal of this name, or, told in full, what is kept and the hint.

    Whatever ends well at Ctrl-C does so here, too.
    """


@contextmanager
def keeping(what: str, *, resumes: bool = True) -> Generator[None]:
    """Runs a block of work; whoever interrupts it is told that `what` is kept, and how it is gone on with.

    Args:
        what: Such as "what was committed is kept".
        resumes: Whether anything is kept. If not, signals and Ctrl-C do what they always do.
    """
    if not resumes:
        yield
        return
    announced: list[str] = []
    try:
        with _announcements(announced):
            yield
    except (KeyboardInterrupt, Exception) as stop:
        if announced:  # whatever else a library makes of it, as Ray does, whose compiled code waits (2.60)
            raise Announced(f"stopped by {announced[0]}; {what}", _again()) from stop
        if not isinstance(stop, KeyboardInterrupt):
            raise
        raise KeyboardInterrupt(f"interrupted; {what}", "the same command with --resume") from stop


@contextmanager
def _announcements(announced: list[str]) -> Generator[None]:
    """Raises `Announced` where one of the signals arrives, once: what is being written then is not disturbed again.

    `announced` is given the name of that signal.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone may listen
        yield
        return
    numbers = [signal.Signals[name] for name in _ANNOUNCING if name in signal.Signals.__members__]

    def announce(number: int, _: Any) -> None:
        announced.append(signal.Signals(number).name)
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise Announced(announced[0])

    before = {number: signal.signal(number, announce) for number in numbers}
    try:
        yield
    finally:
        if not announced:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _again() -> str:
    """The command that goes on with this one."""
    words = sys.argv[1:]
    return shlex.join(["traceformer", *words, *([] if "--resume" in words else ["--resume"])])
