"""How many queries of a text can see a repeat, without looking at every pair of tokens.

The nearest occurrence of a token before a place, and the nearest one behind it, come out of one sort. If a query sees
any repeat on a side, it sees the nearest one there.
"""

import numpy as np

from traceformer.analysis.visibility import Visibility
from traceformer.shapes import Int, Int64

__all__ = ["count_repeats"]


def count_repeats(tokens: Int[np.ndarray, "position"], sight: Visibility) -> Int64[np.ndarray, "3"]:
    """Returns how many queries can see a duplicate of their token, what follows one, and the token that comes next.

    What `BlockSums.repeating` adds up to over a whole example.
    """
    place, far = np.arange(len(tokens)), 2 * len(tokens) + 2
    order = np.argsort(tokens, kind="stable")
    same = tokens[order][1:] == tokens[order][:-1]
    before, behind = np.full(len(tokens), -far), np.full(len(tokens), far)
    before[order[1:][same]] = order[:-1][same]
    behind[order[:-1][same]] = order[1:][same]
    window = far if sight.window is None else sight.window
    reach = min(window - (1 if sight.causal else 0), len(tokens))
    found = [
        place - before <= reach,
        place - before - 1 <= reach,
        place[:-1] - before[1:] <= reach,
    ]
    if not sight.causal:
        follows = behind + 1 < len(tokens)
        found[0] |= behind - place <= reach
        found[1] |= follows & (behind + 1 - place <= reach)
        found[2] |= behind[1:] - place[:-1] <= reach
    return np.array([np.count_nonzero(each) for each in found], np.int64)
