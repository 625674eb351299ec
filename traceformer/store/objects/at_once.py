"""Requests of one caller that are under way together: their answers come in order, and few wait to be taken."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

__all__ = ["at_once"]

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_REQUESTS = 16
_NAME = "bucket-request"


def at_once(ask: Callable[[Item], Answer], items: Iterable[Item], *, most: int = 2 * _REQUESTS) -> Iterator[Answer]:
    """Yields what `ask` gives of each item, in order; it is asked for those that come next meanwhile, `most` at most.

    What it raises is raised here, and what was not begun by then is left. An `ask` that calls this itself does so one
    after the other: threads that waited for each other might all be waiting.
    """
    if threading.current_thread().name.startswith(_NAME):
        yield from map(ask, items)
        return
    ahead: deque[Future[Answer]] = deque()
    try:
        for item in items:
            ahead.append(_pool(os.getpid()).submit(ask, item))
            if len(ahead) >= most:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        for each in ahead:
            each.cancel()


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads do not survive a fork: each process has its own."""
    del process
    return ThreadPoolExecutor(_REQUESTS, thread_name_prefix=_NAME)
