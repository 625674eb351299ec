"""How far estimates agree with what was measured in the same places."""

from dataclasses import dataclass

import numpy as np

from traceformer.shapes import Float, Float64

__all__ = ["Agreement", "agreement", "largest"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Estimates beside measurements, in the places that have both.

    Attributes:
        measured: In how many places there are both.
        spearman: The correlation of their ranks there, ties having the mean of theirs; NaN for fewer than two, or where
            all are equal. Where the largest estimates were measured it is that among these.
        worst: The largest difference between an estimate and its measurement; NaN without any.
    """

    measured: int
    spearman: float
    worst: float

    def __str__(self) -> str:
        return f"{self.measured} measured: rank agreement {self.spearman:.3f}, worst error {self.worst:.3g}"


def agreement(estimate: Float[np.ndarray, "*cell"], exact: Float[np.ndarray, "*cell"]) -> Agreement:
    """Returns how far estimates agree with measurements, where neither is NaN."""
    both = np.isfinite(estimate) & np.isfinite(exact)
    estimated, measured = estimate[both].astype(np.float64), exact[both].astype(np.float64)
    if not len(measured):
        return Agreement(0, np.nan, np.nan)
    first, second = _ranks(estimated), _ranks(measured)
    rank = float(np.corrcoef(first, second)[0, 1]) if np.ptp(first) > 0 and np.ptp(second) > 0 else np.nan
    return Agreement(len(measured), rank, float(np.abs(estimated - measured).max()))


def largest(values: Float[np.ndarray, "*cell"], k: int) -> list[tuple[int, ...]]:
    """Returns the places of the k numbers that are farthest from zero, the farthest first; NaN are left out."""
    size = np.where(np.isfinite(values), np.abs(values), -1.0).ravel()
    order = np.argsort(-size, kind="stable")[:k]
    return [tuple(int(i) for i in np.unravel_index(place, values.shape)) for place in order if size[place] >= 0]


def _ranks(values: Float64[np.ndarray, "cell"]) -> Float64[np.ndarray, "cell"]:
    """The place of each in their order, equal ones having the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - (counts - 1) / 2)[inverse]).astype(np.float64)
