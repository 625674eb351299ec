"""What recorded arrays look like in numbers: attention head by head, activations, logits position by position.

A tally takes arrays piece by piece and keeps sums only, in float64, so its memory grows with neither the run nor its
examples. Entropies are in nats. Rows that are NaN throughout (positions that an imported file does not have) are passed
over; everything else counts.

Two conventions. `exact`: 0 log 0 = 0, cells that the mask hides do not count, and std is that of the numbers at hand.
`nanochat` is document 2's: 1e-8 inside every logarithm, hidden cells count (their weight of 0 is sparse, the mean of
a full square is 1 / its width, whatever the head does), std with n - 1. Thresholds are document 2's in both.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from traceformer.analysis.choices import ConventionName
from traceformer.analysis.visibility import Visibility
from traceformer.errors import UsageError

__all__ = [
    "CONVENTIONS",
    "AttentionTally",
    "Convention",
    "HeadStatistics",
    "LogitStatistics",
    "ValueStatistics",
    "ValueTally",
    "Visibility",
    "logit_statistics",
]

_AT_ONCE = 1 << 20  # elements that are looked at together


@dataclass(frozen=True, slots=True)
class Convention:
    """How entropy, mean, sparsity and std are meant.

    Attributes:
        in_logarithm: Added to every probability inside a logarithm; 0 means 0 log 0 = 0.
        hidden_cells: Whether cells that the mask hides count in the mean and the sparsity of attention.
        lost_degrees: What std divides by: the count less this.
        sparse_weight: An attention weight below this is sparse.
        sparse_value: An activation whose absolute value is below this is sparse.
    """

    in_logarithm: float
    hidden_cells: bool
    lost_degrees: int
    sparse_weight: float = 0.01
    sparse_value: float = 1e-6


CONVENTIONS: Mapping[ConventionName, Convention] = {
    "exact": Convention(in_logarithm=0.0, hidden_cells=False, lost_degrees=0),
    "nanochat": Convention(in_logarithm=1e-8, hidden_cells=True, lost_degrees=1),
}


@dataclass(frozen=True, slots=True)
class HeadStatistics:
    """Attention of each head of one layer, over all `queries` that were tallied.

    Attributes:
        mean: Mean weight of a cell (see `Convention.hidden_cells`).
        max: The largest weight.
        entropy: Mean over queries of the entropy of where they look.
        sparsity: Share of cells whose weight is below the threshold.
    """

    queries: int
    mean: Float[np.ndarray, "head"]
    max: Float[np.ndarray, "head"]
    entropy: Float[np.ndarray, "head"]
    sparsity: Float[np.ndarray, "head"]


class AttentionTally:
    """Takes one layer's patterns, example by example."""

    def __init__(self, heads: int, convention: Convention, sight: Visibility) -> None:
        self._convention = convention
        self._sight = sight
        self._queries = 0
        self._cells = 0
        self._total, self._entropy, self._sparse = (np.zeros(heads) for _ in range(3))
        self._largest = np.full(heads, -np.inf)

    def add(self, pattern: Float[np.ndarray, "head query key"]) -> None:
        """Takes the patterns of one example."""
        heads, queries, keys = pattern.shape
        seen = self._sight.count(queries, keys)
        at_once = max(1, _AT_ONCE // max(1, heads * keys))
        for start in range(0, queries, at_once):
            rows = slice(start, start + at_once)
            known = ~np.isnan(pattern[:, rows]).all(axis=(0, 2))
            if known.any():
                block = pattern[:, rows][:, known].astype(np.float32, copy=False)
                self._add_rows(block, int(seen[rows][known].sum()))

    def _add_rows(self, weights: Float[np.ndarray, "head query key"], seen: int) -> None:
        convention = self._convention
        _, queries, keys = weights.shape
        hidden = 0 if convention.hidden_cells else queries * keys - seen
        self._queries += queries
        self._cells += queries * keys - hidden
        self._total += weights.sum(axis=(1, 2), dtype=np.float64)
        self._entropy += _entropy(weights, convention.in_logarithm).sum(axis=1, dtype=np.float64)
        # What the mask hides has weight 0, and is among the cells below the threshold.
        self._sparse += np.count_nonzero(weights < convention.sparse_weight, axis=(1, 2)) - hidden
        self._largest = np.maximum(self._largest, weights.max(axis=(1, 2)))

    def result(self) -> HeadStatistics:
        """Returns the statistics of all that was added; NaN if that was nothing."""
        cells, queries = self._cells or np.nan, self._queries or np.nan
        largest = np.where(self._queries, self._largest, np.nan)
        return HeadStatistics(
            self._queries, self._total / cells, largest, self._entropy / queries, self._sparse / cells
        )


def _entropy(p: Float[np.ndarray, "*row key"], in_logarithm: float) -> Float[np.ndarray, "*row"]:
    logarithm = np.log(p + in_logarithm) if in_logarithm else np.log(np.where(p > 0, p, 1))
    return -(p * logarithm).sum(axis=-1, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class ValueStatistics:
    """The distribution of `count` numbers; `sparsity` is the share of them that are next to zero."""

    count: int
    mean: float
    std: float
    min: float
    max: float
    sparsity: float


class ValueTally:
    """Takes arrays of any shape; the rows of the last axis that are NaN throughout do not count."""

    def __init__(self, convention: Convention) -> None:
        self._convention = convention
        self._count = 0
        self._mean = self._squares = 0.0
        self._min, self._max = np.inf, -np.inf
        self._sparse = 0

    def add(self, values: Float[np.ndarray, "..."]) -> None:
        for rows in _blocks(values.reshape(-1, values.shape[-1])):
            self._add_rows(rows[~np.isnan(rows).all(axis=1)].astype(np.float64))

    def _add_rows(self, values: Float[np.ndarray, "row d"]) -> None:
        if not values.size:
            return
        mean = values.mean()
        count = self._count + values.size
        # Chan, Golub and LeVeque 1979: how the squares around two means add up, without cancellation.
        apart = mean - self._mean
        self._squares += np.square(values - mean).sum() + apart**2 * self._count * values.size / count
        self._mean += apart * values.size / count
        self._count = count
        self._min, self._max = min(self._min, values.min()), max(self._max, values.max())
        self._sparse += np.count_nonzero(np.abs(values) < self._convention.sparse_value)

    def result(self) -> ValueStatistics:
        """Returns the statistics of all that was added; NaN where that is too little."""
        if not self._count:
            return ValueStatistics(0, *(np.nan,) * 5)
        degrees = self._count - self._convention.lost_degrees
        return ValueStatistics(
            count=self._count,
            mean=float(self._mean),
            std=float(np.sqrt(self._squares / degrees)) if degrees else np.nan,
            min=float(self._min),
            max=float(self._max),
            sparsity=self._sparse / self._count,
        )


def _blocks(rows: Float[np.ndarray, "row d"]) -> Iterator[Float[np.ndarray, "block d"]]:
    at_once = max(1, _AT_ONCE // max(1, rows.shape[1]))
    return (rows[start : start + at_once] for start in range(0, len(rows), at_once))


@dataclass(frozen=True, slots=True)
class LogitStatistics:
    """What the model expects at each position.

    Attributes:
        entropy: Of the softmax, per position; NaN where the logits are not known.
        top_ids: The most likely tokens, best first; of equal ones the lower id first. -1 where not known.
        top_probabilities: Their probabilities.
        came_probability: Of the token that came, NaN where none did.
        came_rank: 1 if no other token was more likely (or as likely with a lower id); 0 where none came.
    """

    entropy: Float[np.ndarray, "position"]
    top_ids: Int[np.ndarray, "position top"]
    top_probabilities: Float[np.ndarray, "position top"]
    came_probability: Float[np.ndarray, "position"]
    came_rank: Int[np.ndarray, "position"]


def logit_statistics(
    logits: Float[np.ndarray, "position d_vocab"],
    came: Int[np.ndarray, "position"],
    convention: Convention,
    *,
    top: int = 5,
) -> LogitStatistics:
    """Returns what the logits of one example say, position by position.

    Args:
        logits: One row per position.
        came: The token that each row speaks about, -1 where there is none (after the last token of a decoder).
        convention: Decides about the entropy.
        top: How many of the most likely tokens to list.

    Raises:
        UsageError: a token is not in the vocabulary, or `top` is more than it holds.
    """
    positions, d_vocab = logits.shape
    if not 0 <= top <= d_vocab or (positions and not -1 <= came.min() <= came.max() < d_vocab):
        raise UsageError(f"{top} most likely tokens, and tokens up to {came.max(initial=0)}, of {d_vocab}")
    entropy, came_probability = np.full(positions, np.nan), np.full(positions, np.nan)
    top_ids, came_rank = np.full((positions, top), -1), np.zeros(positions, np.int64)
    top_probabilities = np.full((positions, top), np.nan)
    start = 0
    for block in _blocks(logits):
        rows = start + np.flatnonzero(~np.isnan(block).all(axis=1))
        start += len(block)
        values = logits[rows].astype(np.float64)
        log_p = values - values.max(axis=1, keepdims=True, initial=-np.inf)
        log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        entropy[rows] = -(p * (np.log(p + convention.in_logarithm) if convention.in_logarithm else log_p)).sum(axis=1)
        for row, own, probabilities in zip(rows, values, p, strict=True):
            best = _largest(own, top)
            top_ids[row], top_probabilities[row] = best, probabilities[best]
            token = came[row]
            if token >= 0:
                came_probability[row] = probabilities[token]
                better = np.count_nonzero(own > own[token]) + np.count_nonzero(own[:token] == own[token])
                came_rank[row] = better + 1
    return LogitStatistics(entropy, top_ids, top_probabilities, came_probability, came_rank)


def _largest(values: Float[np.ndarray, "d_vocab"], count: int) -> Int[np.ndarray, "top"]:
    """Returns where the largest values are, largest first, of equal ones the first one first."""
    if not count:
        return np.zeros(0, np.int64)
    least = np.partition(values, -count)[-count]
    found = np.flatnonzero(values >= least)
    return found[np.argsort(-values[found], kind="stable")][:count]
