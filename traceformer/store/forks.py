"""Processes that were forked: the threads of tensorstore and of the client of buckets stay behind.

tensorstore's first use there would abort the process, and a request to a bucket would be waited for without end. A
process may be forked while neither was used in it: what opens a run in a folder reads no array. After that, what is
asked of an array or of a bucket in the child is refused here, before either library hears of it.
"""

import os

from traceformer.errors import Unsupported

__all__ = ["use_bucket_client", "use_tensorstore"]

_SPAWN = (
    "start it with multiprocessing.get_context('spawn'), a DataLoader with multiprocessing_context='spawn'; or {} "
    "before the fork"
)

_users: dict[str, int] = {}  # the process that first used each library, and in its children still that one


def use_tensorstore() -> None:
    """Says that this process is about to read or write arrays.

    Raises:
        Unsupported: it was forked from one that did so before.
    """
    if _is_left_behind("tensorstore"):
        raise Unsupported(
            "arrays cannot be read in a process that was forked from one that had read some",
            why="tensorstore's threads do not survive a fork",
            hint=_SPAWN.format("read nothing"),
        )


def use_bucket_client() -> None:
    """Says that this process is about to ask a bucket.

    Raises:
        Unsupported: it was forked from one that did so before.
    """
    if _is_left_behind("obstore"):
        raise Unsupported(
            "buckets cannot be asked in a process that was forked from one that had asked one",
            why="the threads of obstore, their client, do not survive a fork",
            hint=_SPAWN.format("open no run in a bucket"),
        )


def _is_left_behind(library: str) -> bool:
    """Whether the threads that a library began are those of the process that this one was forked from."""
    return _users.setdefault(library, os.getpid()) != os.getpid()
