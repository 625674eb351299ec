"""Counts the memory that a recording takes beside the model's own, allocation by allocation.

Import it before `traceformer`, so that memory which that maps is counted. Three kinds are counted, each at its own
peak, so that their sum is never too small: mapped memory that was touched; what Python and numpy allocate, as
tracemalloc sees it; and by how much the most that torch holds at once exceeds what it holds at once in a plain pass.
"""

import ctypes
import mmap
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

_LIBC = ctypes.CDLL(None)
_PAGE = mmap.PAGESIZE
_most = 0


class _Counted(mmap.mmap):
    """Mapped memory whose pages are counted when it goes: until then they only become more."""

    def __new__(cls, fileno: int, length: int, *args: Any, **options: Any) -> "_Counted":
        made = super().__new__(cls, fileno, length, *args, **options)
        if fileno == -1:
            _live[id(made)] = made
        return made

    def __del__(self) -> None:
        if id(self) in _live:
            note_mapped()


_live: weakref.WeakValueDictionary[int, _Counted] = weakref.WeakValueDictionary()


def note_mapped() -> None:
    """Looks how much of the mapped memory was touched."""
    global _most
    _most = max(_most, sum(_touched(each) for each in list(_live.values())))


def _touched(memory: mmap.mmap) -> int:
    pages = (len(memory) + _PAGE - 1) // _PAGE
    seen = (ctypes.c_ubyte * pages)()
    view = (ctypes.c_char * len(memory)).from_buffer(memory)
    failed = _LIBC.mincore(ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_size_t(len(memory)), seen)
    assert not failed
    return _PAGE * sum(each & 1 for each in bytes(seen))


mmap.mmap = _Counted


class OurMemory:
    """Counts while it records."""

    def beyond(self, plain: Callable[[], object], record: Callable[[], object]) -> int:
        """Returns the bytes that `record` takes beyond `plain`; both run once beforehand."""
        global _most
        plain()
        record()
        of_torch = _peak_of_torch(plain)
        _most = 0
        tracemalloc.start()
        more = _peak_of_torch(record) - of_torch
        _, of_python = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        note_mapped()
        return _most + of_python + max(0, more)


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
