"""Which shards are whose: every shard waits, is at one worker, or is committed; what a dead worker had waits again."""

from collections import deque
from collections.abc import Iterable

__all__ = ["Ledger"]


class Ledger:
    """The shards of a run that were missing when it was opened.

    Attributes:
        committed: How many of them are there.
    """

    def __init__(self, shards: Iterable[int]) -> None:
        self._waiting = deque(shards)
        self._of: dict[int, list[int]] = {}
        self.committed = 0

    @property
    def waiting(self) -> int:
        """How many are at no worker."""
        return len(self._waiting)

    @property
    def is_done(self) -> bool:
        return not self._waiting and not any(self._of.values())

    def give(self, worker: int) -> int | None:
        """Returns the next shard, which is this worker's now; None where none waits."""
        if not self._waiting:
            return None
        shard = self._waiting.popleft()
        self._of.setdefault(worker, []).append(shard)
        return shard

    def commit(self, worker: int, shard: int) -> None:
        """Takes note that a worker has committed one of its shards."""
        self._of[worker].remove(shard)
        self.committed += 1

    def lose(self, worker: int) -> list[int]:
        """Returns what a worker that died had; it waits again, before all others."""
        lost = self._of.pop(worker, [])
        self._waiting.extendleft(reversed(lost))
        return lost
