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

__all__ = ["Pieces", "Stretch", "align", "partners", "pieces_by_characters", "pieces_from_start"]

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


class Pieces(NamedTuple):
    """Pieces that two tokenizations of a text share: the token of each that ends a piece has read as much as the other.

    Attributes:
        first, second: The token that ends each piece, of the one text and of the other.
        of_first, of_second: The piece that each token belongs to, or the number of pieces where it belongs to none;
            None where each token up to that number is a piece by itself.
    """

    first: Int64[np.ndarray, "piece"]
    second: Int64[np.ndarray, "piece"]
    of_first: Int64[np.ndarray, "_"] | None = None
    of_second: Int64[np.ndarray, "_"] | None = None


def pieces_from_start(first: Int64[np.ndarray, "token"], second: Int64[np.ndarray, "other"]) -> Pieces:
    """Returns the tokens with which both texts begin, each a piece."""
    shorter = min(len(first), len(second))
    differing = np.flatnonzero(first[:shorter] != second[:shorter])
    count = int(differing[0]) if len(differing) else shorter
    each = np.arange(count)
    if count == len(first) == len(second):
        return Pieces(each, each)
    of_first, of_second = (np.minimum(np.arange(len(ids)), count) for ids in (first, second))
    return Pieces(each, each, of_first, of_second)


def pieces_by_characters(first: Int64[np.ndarray, "token 2"], second: Int64[np.ndarray, "other 2"]) -> Pieces:
    """Returns the pieces of a text between the characters at which tokens of both end.

    pieces_by_characters(offsets, other_offsets)  # where each token begins in the text, and where it ends

    A token without characters, as those that stand for no text have it, belongs to none.
    """
    ends = [_ends(offsets) for offsets in (first, second)]
    common = np.intersect1d(ends[0][ends[0] > 0], ends[1][ends[1] > 0])
    places = [np.flatnonzero(np.isin(own, common) & (own > 0)) for own in ends]
    of_tokens = [
        np.where(offsets[:, 1] > offsets[:, 0], np.searchsorted(common, offsets[:, 1]), len(common))
        for offsets in (first, second)
    ]
    return Pieces(places[0], places[1], of_tokens[0], of_tokens[1])


def _ends(offsets: Int64[np.ndarray, "token 2"]) -> Int64[np.ndarray, "token"]:
    """The character at which a token ends all that has come, so that none behind it has a part of that; else 0.

    Several tokens may be parts of one character, and all have it as theirs.
    """
    starts, ends = offsets.T
    there = ends > starts
    so_far = np.maximum.accumulate(np.where(there, ends, 0))
    ahead = np.minimum.accumulate(np.where(there, starts, np.iinfo(np.int64).max)[::-1])[::-1]
    following = np.append(ahead[1:], np.iinfo(np.int64).max)
    return np.where(there & (so_far <= following), so_far, 0)
