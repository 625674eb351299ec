"""Ridge regression from sums that rows are added to, so that no row need be kept: from a layer's rows x to others y.

1. `Moments` adds up, in float64, what rows and targets come to: their numbers, sums, and products.
2. About the means, with r = y - x, the matrix I + D that minimises sum |(I + D) x - y|^2 + penalty |D|^2 is
   D = R (X + penalty I)^-1, where R = sum r x^T and X = sum x x^T; the vector b puts mean on mean. A large penalty
   leaves the rows as they are. `Spectrum` has X's eigenvectors, out of which D comes for any penalty.
3. `error` is the same sum of squares on other rows, from their moments, which is what a penalty is chosen by.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from traceformer.errors import UsageError
from traceformer.shapes import Float, Float64

__all__ = ["PENALTIES", "Affine", "Moments", "Spectrum", "chosen_ridge", "error"]

PENALTIES = tuple(10.0**power for power in range(-6, 2))
"""What is tried: a penalty relative to the mean eigenvalue of X."""


@dataclass(frozen=True, slots=True)
class Affine:
    """y = W x + b."""

    matrix: Float64[np.ndarray, "d d"]
    vector: Float64[np.ndarray, "d"]


class Moments:
    """What rows and their targets come to, in float64.

    Rows are counted from the first one, so that a column far from zero loses no digits.
    """

    def __init__(self, d: int) -> None:
        self.n = 0
        self._origin = np.zeros(d)
        self._sum_x, self._sum_r = np.zeros(d), np.zeros(d)
        self._xx, self._rx, self._rr = np.zeros((d, d)), np.zeros((d, d)), 0.0

    def add(self, rows: Float[np.ndarray, "row d"], targets: Float[np.ndarray, "row d"]) -> None:
        """Adds rows and what each should become."""
        x = rows.astype(np.float64)
        r = targets.astype(np.float64) - x
        if not self.n and len(x):
            self._origin = x[0].copy()
        x -= self._origin
        self.n += len(x)
        self._sum_x += x.sum(axis=0)
        self._sum_r += r.sum(axis=0)
        self._xx += x.T @ x
        self._rx += r.T @ x
        self._rr += float(np.einsum("rd,rd->", r, r))

    @property
    def mean(self) -> Float64[np.ndarray, "d"]:
        """The mean row."""
        return self._origin + self._sum_x / self.n

    @property
    def mean_rest(self) -> Float64[np.ndarray, "d"]:
        """The mean of what is missing to the target."""
        return self._sum_r / self.n

    def about(
        self, mean: Float64[np.ndarray, "d"], rest: Float64[np.ndarray, "d"]
    ) -> tuple[Float64[np.ndarray, "d d"], Float64[np.ndarray, "d d"], float]:
        """Returns sum x x^T, sum r x^T and sum |r|^2, where x and r are counted from these."""
        mean = mean - self._origin
        xx = self._xx - np.outer(self._sum_x, mean) - np.outer(mean, self._sum_x) + self.n * np.outer(mean, mean)
        rx = self._rx - np.outer(self._sum_r, mean) - np.outer(rest, self._sum_x) + self.n * np.outer(rest, mean)
        return xx, rx, self._rr - 2 * float(self._sum_r @ rest) + self.n * float(rest @ rest)


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Rows about their mean, by the axes along which they vary, from the least to the most.

    Attributes:
        mean, rest: The mean row, and the mean of what is missing to the target.
        axes: The eigenvectors of sum x x^T, as columns.
        powers: Its eigenvalues.
        missing: sum r x^T, in these axes.
        n: The number of rows.
    """

    mean: Float64[np.ndarray, "d"]
    rest: Float64[np.ndarray, "d"]
    axes: Float64[np.ndarray, "d axis"]
    powers: Float64[np.ndarray, "axis"]
    missing: Float64[np.ndarray, "d axis"]
    n: int

    @classmethod
    def of(cls, moments: Moments) -> "Spectrum":
        """Returns that of the rows that were added.

        Raises:
            UsageError: there are none, or all are the same.
        """
        if not moments.n:
            raise UsageError("no rows to fit")
        mean, rest = moments.mean, moments.mean_rest
        xx, rx, _ = moments.about(mean, rest)
        powers, axes = np.linalg.eigh(xx)
        if powers[-1] <= 0:
            raise UsageError("all rows to fit are the same")
        return cls(mean, rest, axes, np.maximum(powers, 0), rx @ axes, moments.n)

    @property
    def scale(self) -> float:
        """The mean eigenvalue, which penalties are relative to."""
        return float(self.powers.mean())

    def ridge(self, penalty: float) -> Affine:
        """Returns the map for a penalty, which is no relative one here."""
        change = (self.missing / (self.powers + penalty)) @ self.axes.T
        return Affine(np.eye(len(change)) + change, self.rest - change @ self.mean)


def error(map_: Affine, moments: Moments) -> float:
    """Returns the mean over rows of |W x + b - y|^2."""
    change = map_.matrix - np.eye(len(map_.vector))
    xx, rx, rr = moments.about(np.zeros_like(map_.vector), map_.vector)
    squares = rr - 2 * np.einsum("rd,rd->", change, rx) + np.einsum("re,ed,rd->", change, xx, change, optimize=True)
    return float(squares) / moments.n


def chosen_ridge(
    fit: Moments, held_out: Moments, penalties: Sequence[float] = PENALTIES
) -> tuple[Affine, float, Spectrum]:
    """Returns the map that does best on held-out rows, its relative penalty, and the spectrum of the fitted rows.

    Raises:
        UsageError: there are no rows, or all are the same.
    """
    if not held_out.n:
        raise UsageError("no rows to choose a penalty by")
    spectrum = Spectrum.of(fit)
    maps = [spectrum.ridge(penalty * spectrum.scale) for penalty in penalties]
    errors = [error(map_, held_out) for map_ in maps]
    best = int(np.argmin(errors))
    return maps[best], penalties[best], spectrum
