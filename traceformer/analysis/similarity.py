"""How alike two sets of rows of the same tokens are, up to rotation: linear CKA and Procrustes distance.

1. The mean of each column is subtracted from its rows: X of the one, Y of the other, n rows each.
2. Piece by piece, in float64, are added up: XᵀY, and over tokens the product of the rows' squared lengths |x|²|y|².
   `CrossTally` has them of a pair, and of X with itself; memory does not grow with n.
3. With H(X, Y) = |XᵀY|² (the sum of squares of its entries), CKA is H(X, Y) / √(H(X, X) H(Y, Y)): Kornblith, Norouzi,
   Lee and Hinton, "Similarity of neural network representations revisited" (2019).
4. That is above zero for rows that have nothing to do with each other, the more so the fewer there are for their
   width. Without that bias H(X, Y) is |XᵀY|² - n/(n-2) Σ|x|²|y|² + |X|²|Y|² / ((n-1)(n-2)): the estimator of Song,
   Smola, Gretton, Bedo and Borgwardt, "Feature selection via dependence maximization" (2012), of linear kernels.
5. The Procrustes distance is what is left when both, scaled to |X| = |Y| = 1, are laid onto each other by a rotation
   or reflection: min |X - YQ|² = 2 - 2 Σσ(XᵀY), σ the singular values. It is from 0 to 2 (Ding, Denain and Steinhardt,
   "Grounding representation similarity with statistical testing", 2021). The narrower is as if padded with zeros.

None of them changes where either side is moved, rotated or scaled as a whole.
"""

from typing import NamedTuple

import numpy as np

from traceformer.shapes import Float64

__all__ = ["FEWEST", "CrossTally", "Crossed", "Similarity", "similarity"]

FEWEST = 4
"""Rows that CKA without bias takes at least."""
_ROUNDING = 1e-12  # of sums that cancel


class Crossed(NamedTuple):
    """What is known of two sets of rows once all were seen.

    Attributes:
        squares: |XᵀY|².
        products: Σ|x|²|y|² over rows.
        trace: The sum of the diagonal of XᵀY, which is |X|² where both are the same; 0 where widths differ.
        nuclear: The sum of the singular values of XᵀY; NaN where it was not asked for.
    """

    squares: float
    products: float
    trace: float
    nuclear: float


class CrossTally:
    """XᵀY and Σ|x|²|y|², added up."""

    def __init__(self, width: int, other_width: int) -> None:
        self._cross = np.zeros((width, other_width))
        self._products = 0.0

    def add(self, rows: Float64[np.ndarray, "row d"], others: Float64[np.ndarray, "row other"]) -> None:
        """Takes some more rows, centred."""
        self._cross += rows.T @ others
        lengths = (np.einsum("rd,rd->r", each, each) for each in (rows, others))
        self._products += float(np.dot(*lengths))

    def result(self, *, nuclear: bool) -> Crossed:
        """Returns what came; the singular values take longest, and are not needed of rows with themselves."""
        cross = self._cross
        values = np.linalg.svd(cross, compute_uv=False).sum() if nuclear else np.nan
        trace = np.trace(cross) if cross.shape[0] == cross.shape[1] else 0.0
        return Crossed(float(np.square(cross).sum()), self._products, float(trace), float(values))


class Similarity(NamedTuple):
    """How alike two sets of rows are; NaN where the rows of one do not differ from each other.

    Attributes:
        cka: Without bias: 1 for the same up to rotation and scale, around 0 for what is unrelated. NaN, too, where all
            rows of one but a single one are the same.
        cka_biased: As Kornblith et al. define it: from 0 to 1.
        procrustes: From 0, the same up to rotation and scale, to 2.
    """

    cka: float
    cka_biased: float
    procrustes: float


def similarity(both: Crossed, first: Crossed, second: Crossed, rows: int) -> Similarity:
    """Returns how alike X and Y are, from what is known of both, of X with itself and of Y with itself.

    Fewer than 4 rows have no CKA without bias.
    """
    one, other = first.trace, second.trace
    if not one or not other:
        return Similarity(np.nan, np.nan, np.nan)
    unbiased = (_unbiased(*each, rows) for each in ((both, one, other), (first, one, one), (second, other, other)))
    return Similarity(
        _ratio(*unbiased),
        _ratio(both.squares, first.squares, second.squares),
        max(0.0, 2 - 2 * both.nuclear / (one**0.5 * other**0.5)),  # rounding leaves the same rows a little below 0
    )


def _unbiased(crossed: Crossed, length: float, other_length: float, rows: int) -> float:
    """H without bias, but for a factor that is the same of all; 0 where rounding of its parts leaves nothing of it."""
    if rows < FEWEST:
        return np.nan
    n = float(rows)
    parts = crossed.squares, -n / (n - 2) * crossed.products, length * other_length / ((n - 1) * (n - 2))
    found = sum(parts)
    return found if abs(found) > _ROUNDING * sum(map(abs, parts)) else 0.0


def _ratio(both: float, first: float, second: float) -> float:
    return both / (first**0.5 * second**0.5) if first > 0 and second > 0 else np.nan
