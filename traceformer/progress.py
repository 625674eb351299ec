"""How far long work is: a bar in a terminal or a notebook, plain lines anywhere else.

A command always says how it goes (`progress_shown`, `steps_shown`). A call from Python shows a bar where somebody
watches, a terminal or a notebook, and is silent elsewhere (`watched`, `steps_watched`).
"""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from traceformer.presentation import notebook
from traceformer.units import amount_of_bytes, duration

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

__all__ = [
    "LOADING",
    "Counting",
    "OnProgress",
    "OnStep",
    "Progress",
    "Totals",
    "progress_shown",
    "quiet",
    "steps_shown",
    "steps_watched",
    "watched",
]

_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_OF_SILENCE = 1.0
_SECONDS_BETWEEN_DRAWINGS = 0.1


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a recording is; `seconds` and the counts are of this process, since it began to run.

    A notice is said once, and stays where it can be read.
    """

    examples_done: int
    examples_total: int
    tokens_done: int
    bytes_written: int
    seconds: float
    message: str = ""
    is_notice: bool = False


LOADING = Progress(0, 0, 0, 0, 0.0, "loading")

OnProgress: TypeAlias = Callable[[Progress], None]
OnStep: TypeAlias = Callable[[int, int], None]
"""Told how many of how many steps are done."""


def quiet(*_: object) -> None:
    """Shows nothing."""


class Counting:
    """Counts what a recording has done since it began, and tells it."""

    def __init__(self, report: OnProgress, total: int, written: Callable[[], int]) -> None:
        self._report, self._total, self._written = report, total, written
        self._started = time.perf_counter()
        self.examples = self.tokens = 0

    def tell(self, message: str) -> None:
        elapsed = time.perf_counter() - self._started
        self._report(Progress(self.examples, self._total, self.tokens, self._written(), elapsed, message))


@dataclass(slots=True)
class Totals:
    """What an extraction had done when it last said so."""

    examples: int = 0
    tokens: int = 0
    bytes: int = 0
    seconds: float = 0.0


@contextmanager
def progress_shown(totals: Totals) -> Generator[OnProgress]:
    """Yields a callback that shows each progress it is given, and keeps `totals` up to date."""
    with (_bar if sys.stderr.isatty() else _lines)() as show:

        def note(progress: Progress) -> None:
            totals.examples, totals.tokens = progress.examples_done, progress.tokens_done
            totals.bytes, totals.seconds = progress.bytes_written, progress.seconds
            show(progress)

        yield note


@contextmanager
def _bar() -> Generator[OnProgress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None, speed="")

        def show(progress: Progress) -> None:
            if progress.is_notice:
                bar.console.print(progress.message, markup=False, highlight=False)
                return
            bar.update(
                task,
                description=progress.message,
                completed=progress.examples_done,
                total=progress.examples_total or None,
                speed=_speed(progress),
            )

        yield show


@contextmanager
def _lines() -> Generator[OnProgress]:
    shown_at, shown_message = 0.0, ""

    def show(progress: Progress) -> None:
        nonlocal shown_at, shown_message
        finished = progress.examples_done == progress.examples_total > 0
        due = progress.seconds - shown_at >= _SECONDS_BETWEEN_LINES
        if due or finished or progress.message != shown_message:
            shown_at, shown_message = progress.seconds, progress.message
            total = f"/{progress.examples_total}" * bool(progress.examples_total)
            counts = f"{progress.examples_done}{total} examples" if total or progress.examples_done else ""
            parts = (progress.message, counts, _speed(progress))
            print(*(part for part in parts if part), sep="  ", file=sys.stderr, flush=True)

    yield show


def _speed(progress: Progress) -> str:
    if progress.seconds <= 0 or not progress.tokens_done:
        return ""
    tokens, written = progress.tokens_done / progress.seconds, progress.bytes_written / progress.seconds
    remaining = progress.seconds * (progress.examples_total / max(progress.examples_done, 1) - 1)
    left = f"  {duration(remaining)} left" if remaining > 0 else ""
    return f"{tokens:,.0f} tokens/s  {amount_of_bytes(written)}/s{left}"


@contextmanager
def steps_shown(what: str) -> Generator[OnStep]:
    """Yields a callback for work that only counts (done, of): a bar in a terminal, lines elsewhere, after a second."""
    started = shown_at = time.perf_counter()
    with ExitStack() as stack:
        bar: "Bar | None" = None

        def show(done: int, of: int) -> None:
            nonlocal bar, shown_at
            now = time.perf_counter()
            if sys.stderr.isatty():
                if bar is None and now - started > _SECONDS_OF_SILENCE:
                    bar = stack.enter_context(_step_bar(what))
                if bar is not None:
                    bar.update(bar.task_ids[0], completed=done, total=of)
            elif now - shown_at >= _SECONDS_BETWEEN_LINES:
                shown_at = now
                print(f"{what}  {done}/{of}", file=sys.stderr, flush=True)

        yield show


def _step_bar(what: str) -> "Bar":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Bar(*columns, console=Console(stderr=True))
    bar.add_task(what)
    return bar


@contextmanager
def watched(progress: OnProgress | None) -> Generator[OnProgress]:
    """Yields what is to be told of a recording: `progress`, or for None a bar where somebody watches."""
    if progress is not None:
        yield progress
    elif notebook() is not None:
        bar = _NotebookBar()
        yield lambda at: bar.show(at.message, at.examples_done, at.examples_total, _speed(at), at.seconds)
        bar.close()
    elif sys.stderr.isatty():
        with _bar() as show:
            yield show
    else:
        yield quiet


@contextmanager
def steps_watched(what: str, progress: OnStep | None) -> Generator[OnStep]:
    """Yields what is to be told of counted steps: `progress`, or for None a bar where somebody watches."""
    if progress is not None:
        yield progress
    elif notebook() is not None:
        bar, started = _NotebookBar(), time.perf_counter()
        yield lambda done, of: bar.show(what, done, of, "", time.perf_counter() - started)
        bar.close()
    elif sys.stderr.isatty():
        with steps_shown(what) as show:
            yield show
    else:
        yield quiet


class _NotebookBar:
    """One line of HTML that is drawn over, ten times a second at most, and goes when the work is done."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown_at = 0.0

    def show(self, what: str, done: int, of: int, more: str, seconds: float) -> None:
        from html import escape

        from IPython.display import HTML, display

        now = time.perf_counter()
        if seconds < _SECONDS_OF_SILENCE or now - self._shown_at < _SECONDS_BETWEEN_DRAWINGS:
            return
        self._shown_at = now
        count = f"{done}/{of}" if of else ""
        words = escape(" ".join(filter(None, (what, count, more))))
        line = HTML(f"<progress max='{of or 1}' value='{done}'></progress> {words}")
        if self._handle is None:
            self._handle = display(line, display_id=True)
        else:
            self._handle.update(line)

    def close(self) -> None:
        from IPython.display import HTML

        if self._handle is not None:
            self._handle.update(HTML(""))
