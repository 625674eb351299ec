"""Rows of attention in numbers: what they are divided by, their entropy, their sparse cells. One formula for all verbs.

Weights are a numpy array or a torch tensor, and above 0: `TINY` stands for 0, whose logarithm a processor calls NaN.
"""

import math
import sys
from typing import Any

import numpy as np

from traceformer.analysis.conventions import Convention
from traceformer.errors import NumericError
from traceformer.shapes import Bool, Float

__all__ = ["NOTHING", "TINY", "namespace", "no_attention", "row_divisors", "row_entropies", "sparse_cells"]

TINY = 1e-37
NOTHING = 1e-20  # a sum below this is one of such zeros


def namespace(array: Any) -> Any:
    """Returns the module, numpy or torch, whose functions take this array."""
    return np if isinstance(array, np.ndarray) else sys.modules[type(array).__module__.partition(".")[0]]


def no_attention() -> NumericError:
    """Returns what is said of a row that adds up to nothing."""
    return NumericError("a query's attention adds up to nothing", why="its row of the pattern is zero, or NaN")


def row_divisors(totals: Float[Any, "*row"], convention: Convention) -> Float[Any, "*row"]:
    """Returns what rows that add up to `totals` are divided by.

    Raises:
        NumericError: a row adds up to nothing, or is no number.
    """
    if not bool((totals > NOTHING).all()):
        raise no_attention()
    if not convention.divides_rows:
        return namespace(totals).ones_like(totals)
    return totals + convention.beside_sum


def row_entropies(
    weights: Float[Any, "*row key"], divisors: Float[Any, "*row"], convention: Convention
) -> Float[Any, "*row"]:
    """Returns the entropy of each row in nats."""
    xp = namespace(weights)
    if convention.in_logarithm:
        p = weights / divisors[..., None]
        bits = -xp.linalg.vecdot(p, xp.log2(p + convention.in_logarithm))
    else:  # divided after it is summed up: dividing cells would be one more pass over them
        bits = (xp.log2(divisors) - xp.linalg.vecdot(weights, xp.log2(weights)) / divisors).clip(0)
    return bits * math.log(2)


def sparse_cells(
    weights: Float[Any, "*row key"], divisors: Float[Any, "*row"], convention: Convention
) -> Bool[Any, "*row key"]:
    """Returns which cells are sparse, those that the mask hides among them."""
    return weights < convention.sparse_weight * divisors[..., None]
