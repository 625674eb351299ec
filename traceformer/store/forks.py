"""tensorstore in processes that were forked: its threads stay behind, and its first use there would abort the process.

A process may be forked while no array was read in it yet: what opens a run reads none. After that, what is asked of
an array in the child is refused here, before tensorstore hears of it.
"""

import os

from traceformer.errors import Unsupported

__all__ = ["use_tensorstore"]

_users: set[int] = set()  # the process that used tensorstore, and in its children still that one


def use_tensorstore() -> None:
    """Says that this process is about to read or write arrays.

    Raises:
        Unsupported: it was forked from one that did so before.
    """
    if not _users:
        _users.add(os.getpid())
    elif os.getpid() not in _users:
        raise Unsupported(
            "arrays cannot be read in a process that was forked from one that had read some",
            why="tensorstore's threads do not survive a fork",
            hint="start it with multiprocessing.get_context('spawn'), a DataLoader with "
            "multiprocessing_context='spawn'; or read nothing before the fork",
        )
