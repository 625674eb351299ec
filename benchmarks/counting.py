"""Counts the memory that a recording takes beside the model's own, allocation by allocation.

Import it before `traceformer`, so that memory which that maps is counted. Three kinds are counted, each at its own
peak, so that their sum is never too small: mapped memory; what Python and numpy allocate, as tracemalloc sees it; and
by how much the most that torch holds at once exceeds what it holds at once in a plain pass.
"""

import mmap
import tracemalloc
from collections.abc import Callable
from typing import Any

_mapped = [0, 0]  # now, at most


class _Counted(mmap.mmap):
    """Mapped memory that is counted for as long as it lives."""

    def __new__(cls, fileno: int, length: int, *args: Any, **options: Any) -> "_Counted":
        made = super().__new__(cls, fileno, length, *args, **options)
        _mapped[0] += length
        _mapped[1] = max(_mapped)
        return made

    def __del__(self) -> None:
        _mapped[0] -= len(self)


mmap.mmap = _Counted


class OurMemory:
    """Counts while it records."""

    def beyond(self, plain: Callable[[], object], record: Callable[[], object]) -> int:
        """Returns the bytes that `record` takes beyond `plain`; both run once beforehand."""
        plain()
        record()
        of_torch = _peak_of_torch(plain)
        _mapped[1] = _mapped[0]
        tracemalloc.start()
        more = _peak_of_torch(record) - of_torch
        _, of_python = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return _mapped[1] + of_python + max(0, more)


def _peak_of_torch(work: Callable[[], object]) -> int:
    """Returns the most bytes that torch held at once of what it took while `work` ran."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    results = seen.profiler.kineto_results  # pyright: ignore[reportOptionalMemberAccess]
    events = [event for event in results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
