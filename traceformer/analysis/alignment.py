"""Which tokens of one text are which of another's.

1. What both texts begin and end with is the same.
2. Between, the longest common stretch is the same, and so on to its left and to its right
   (Ratcliff and Obershelp, "Pattern matching: the gestalt approach", 1988, as `difflib` has it).
3. Stretches in between of the same length stand for each other, place by place; others have no counterpart.
"""

from collections.abc import Hashable, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

import numpy as np

from traceformer.shapes import Int64

__all__ = ["Stretch", "align", "partners"]

_FREQUENT = 1024  # tokens from which those that come all the time start no stretch: that would take seconds


class Stretch(NamedTuple):
    """Tokens that stand for each other: `size` of them, from `first` in the one text and `second` in the other.

    `same` says whether they are the same tokens, or others at the same place between those.
    """

    first: int
    second: int
    size: int
    same: bool


def align(first: Sequence[Hashable], second: Sequence[Hashable]) -> list[Stretch]:
    """Returns which tokens of two texts stand for each other, in order.

    align(["The", " dog", " ran"], ["The", " cat", " ran"])
    """
    shorter = min(len(first), len(second))
    start = next((at for at in range(shorter) if first[at] != second[at]), shorter)
    left = shorter - start
    end = next((at for at in range(left) if first[len(first) - 1 - at] != second[len(second) - 1 - at]), left)
    inner, other = first[start : len(first) - end], second[start : len(second) - end]
    matcher = SequenceMatcher(None, inner, other, autojunk=max(len(inner), len(other)) > _FREQUENT)
    found = [Stretch(0, 0, start, same=True)] if start else []
    for kind, one, stop, two, two_stop in matcher.get_opcodes():
        if kind == "equal" or (kind == "replace" and stop - one == two_stop - two):
            found.append(Stretch(start + one, start + two, stop - one, same=kind == "equal"))
    if end:
        found.append(Stretch(len(first) - end, len(second) - end, end, same=True))
    return found


def partners(stretches: Sequence[Stretch]) -> tuple[Int64[np.ndarray, "pair"], Int64[np.ndarray, "pair"]]:
    """Returns the positions that stand for each other, those of the one text and those of the other."""
    firsts = [position for stretch in stretches for position in range(stretch.first, stretch.first + stretch.size)]
    seconds = [position for stretch in stretches for position in range(stretch.second, stretch.second + stretch.size)]
    return np.array(firsts, np.int64), np.array(seconds, np.int64)
