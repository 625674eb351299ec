"""The largest keys of each query, as a run that was recorded with `store_topk` has them."""

from typing import NamedTuple

import numpy as np

from traceformer.shapes import Float, Float32, Int32

__all__ = ["TopKeys"]


class TopKeys(NamedTuple):
    """Where each query looks most: K keys, the largest weight first, of equal ones the earlier key first.

    Attributes:
        keys: Their numbers; -1 where a query has weight on fewer than K.
        weights: Their weights, as a pattern would have been stored; 0 for key -1.
        rest: What all other keys have together: 0 where nothing is missing.
    """

    keys: Int32[np.ndarray, "*lead query rank"]
    weights: Float[np.ndarray, "*lead query rank"]
    rest: Float32[np.ndarray, "*lead query"]
