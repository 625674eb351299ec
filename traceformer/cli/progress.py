"""Progress on stderr: a bar in a terminal, a plain line every few seconds anywhere else."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from traceformer.cli.units import amount_of_bytes, duration

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from traceformer.capture.extract import Progress

__all__ = ["Totals", "progress_shown", "steps_shown"]

_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_OF_SILENCE = 1.0


@dataclass(slots=True)
class Totals:
    """What an extraction had done when it last said so."""

    examples: int = 0
    tokens: int = 0
    bytes: int = 0
    seconds: float = 0.0


@contextmanager
def progress_shown(totals: Totals) -> "Generator[Callable[[Progress], None]]":
    """Yields a callback that shows each progress it is given, and keeps `totals` up to date."""
    with (_bar if sys.stderr.isatty() else _lines)() as show:

        def note(progress: "Progress") -> None:
            totals.examples, totals.tokens = progress.examples_done, progress.tokens_done
            totals.bytes, totals.seconds = progress.bytes_written, progress.seconds
            show(progress)

        yield note


@contextmanager
def _bar() -> "Generator[Callable[[Progress], None]]":
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

        def show(progress: "Progress") -> None:
            bar.update(
                task,
                description=progress.message,
                completed=progress.examples_done,
                total=progress.examples_total or None,
                speed=_speed(progress),
            )

        yield show


@contextmanager
def _lines() -> "Generator[Callable[[Progress], None]]":
    shown_at, shown_message = 0.0, ""

    def show(progress: "Progress") -> None:
        nonlocal shown_at, shown_message
        finished = progress.examples_done == progress.examples_total > 0
        due = progress.seconds - shown_at >= _SECONDS_BETWEEN_LINES
        if due or finished or progress.message != shown_message:
            shown_at, shown_message = progress.seconds, progress.message
            counts = f"{progress.examples_done}/{progress.examples_total} examples" if progress.examples_total else ""
            parts = (progress.message, counts, _speed(progress))
            print(*(part for part in parts if part), sep="  ", file=sys.stderr, flush=True)

    yield show


def _speed(progress: "Progress") -> str:
    if progress.seconds <= 0 or not progress.tokens_done:
        return ""
    tokens, written = progress.tokens_done / progress.seconds, progress.bytes_written / progress.seconds
    remaining = progress.seconds * (progress.examples_total / max(progress.examples_done, 1) - 1)
    left = f"  {duration(remaining)} left" if remaining > 0 else ""
    return f"{tokens:,.0f} tokens/s  {amount_of_bytes(written)}/s{left}"


@contextmanager
def steps_shown(what: str) -> Generator[Callable[[int, int], None]]:
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
