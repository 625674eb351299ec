"""The order in which a training sees what a run holds: each item once an epoch, and any stretch of it by itself.

1. Items (rows, or squares of patterns) lie in pieces that are read together. The pieces are put in random order.
2. One behind the other they are cut into windows of so many items, the last one shorter. A piece that lies across a
   cut is read for both.
3. Each window is shuffled by itself.

So what comes where follows from the seed, the epoch and the pieces alone: not from the size of batches, nor from how
many processes read. Without a seed steps 1 and 3 are left out. Several processes share an epoch's batches: in stretches
where they are shuffled, so that each window is read by one or two of them, else in turns, which keeps their order.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np

from traceformer.shapes import Int64

__all__ = ["Part", "Stretch", "TrainingOrder", "left_after", "shared"]

Stretch: TypeAlias = tuple[int, int]
"""Numbers that follow each other, from the first to the last + 1."""

_PIECES = 0  # what the random numbers of an epoch are for; windows count from 1


class Part(NamedTuple):
    """Items of one piece, from the first to the last + 1."""

    piece: int
    first: int
    stop: int


@dataclass(frozen=True)
class TrainingOrder:
    """One epoch's order; `counts` says how many items each piece has, `window` how many are shuffled together.

    `seed` is None where nothing is shuffled.
    """

    counts: Int64[np.ndarray, "piece"]
    window: int
    seed: int | None = None
    epoch: int = 0

    @cached_property
    def n(self) -> int:
        """The number of items."""
        return int(self.counts.sum())

    @cached_property
    def _pieces(self) -> Int64[np.ndarray, "piece"]:
        """The pieces in their order."""
        there = np.arange(len(self.counts))
        return there if self.seed is None else self._random(_PIECES).permutation(there)

    @cached_property
    def _ends(self) -> Int64[np.ndarray, "piece"]:
        """Behind how many items each of the pieces in order ends."""
        return np.cumsum(self.counts[self._pieces])

    def length(self, window: int) -> int:
        """Returns how many items are in a window."""
        return min(self.window, self.n - window * self.window)

    def parts(self, window: int) -> list[Part]:
        """Returns what is to be read for a window, one behind the other."""
        start = window * self.window
        stop = start + self.length(window)
        found: list[Part] = []
        for place in range(int(np.searchsorted(self._ends, start, side="right")), len(self._pieces)):
            piece, end = int(self._pieces[place]), int(self._ends[place])
            begin = end - int(self.counts[piece])
            if begin >= stop:
                break
            found.append(Part(piece, max(start - begin, 0), min(stop, end) - begin))
        return [part for part in found if part.stop > part.first]

    def places(self, window: int) -> Int64[np.ndarray, "item"]:
        """Returns which of a window's items, as `parts` has them one behind the other, comes at each place of it."""
        length = self.length(window)
        return np.arange(length) if self.seed is None else self._random(1 + window).permutation(length)

    def beginning(self) -> str:
        """Returns a hash of the pieces and of the first window, which tells orders apart."""
        found = hashlib.blake2b(np.asarray(self.counts, "<i8").tobytes(), digest_size=8)
        if self.n:
            found.update(np.asarray(self.parts(0), "<i8").tobytes() + np.asarray(self.places(0), "<i8").tobytes())
        return found.hexdigest()

    def _random(self, use: int) -> np.random.Generator:
        return np.random.default_rng([self.seed or 0, self.epoch, use])


def shared(left: Sequence[Stretch], parts: int, *, in_turns: bool) -> list[list[range]]:
    """Returns the numbers of batches that each of several processes makes: all of `left`, each once.

    Who comes first has one more where they cannot all have as many: taken in turns they end together.
    """
    if in_turns:
        (start, stop), *_ = left or [(0, 0)]
        return [[range(start + part, stop, parts)] for part in range(parts)]
    total = sum(stop - start for start, stop in left)
    each, more = divmod(total, parts)
    ends = np.cumsum([each + (part < more) for part in range(parts)]).tolist()
    return [[range(*one) for one in _cut(left, end - each - (part < more), end)] for part, end in enumerate(ends)]


def left_after(left: Sequence[Stretch], parts: int, taken: int, *, in_turns: bool) -> list[Stretch]:
    """Returns what is left of `left` once so many batches were taken in turn from the processes that `shared` it."""
    if in_turns:
        return [*_cut(left, taken, sum(stop - start for start, stop in left))]
    found: list[Stretch] = []
    for part, own in enumerate(shared(left, parts, in_turns=False)):
        done = (taken - part + parts - 1) // parts
        stretches = [(each.start, each.stop) for each in own]
        found += _cut(stretches, min(done, sum(map(len, own))), sum(map(len, own)))
    return _joined(found)


def _cut(stretches: Sequence[Stretch], first: int, stop: int) -> Iterator[Stretch]:
    """Yields the numbers at the places `first` to `stop` of stretches one behind the other."""
    at = 0
    for begin, end in stretches:
        low, high = max(first - at, 0), min(stop - at, end - begin)
        if low < high:
            yield begin + low, begin + high
        at += end - begin


def _joined(stretches: Sequence[Stretch]) -> list[Stretch]:
    """Returns stretches of which none begins where the one before it ends."""
    found: list[Stretch] = []
    for start, stop in stretches:
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return found
