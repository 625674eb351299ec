"""What recorded arrays look like in numbers: attention head by head, activations, logits position by position.

A tally takes arrays piece by piece and keeps sums only, in float64, so its memory grows with neither the run nor its
examples. Entropies are in nats. Rows that are NaN throughout (positions that an imported file does not have) are passed
over; everything else counts.

What entropy, sparsity and std mean, `conventions.py` says.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from traceformer.analysis.conventions import Convention
from traceformer.analysis.rows import NOTHING, TINY, row_divisors, row_entropies, sparse_cells
from traceformer.analysis.visibility import Visibility
from traceformer.errors import Unsupported, UsageError
from traceformer.shapes import Float, Int

__all__ = [
    "AttentionTally",
    "HeadStatistics",
    "LogitStatistics",
    "ValueStatistics",
    "ValueTally",
    "logit_statistics",
]

_AT_ONCE = 1 << 20  # elements that are looked at together


@dataclass(frozen=True, slots=True)
class HeadStatistics:
    """Attention of each head of one layer, over all `queries` that were tallied.

    Attributes:
        mean: Mean weight of a cell, as it was recorded.
        max: The largest weight, as it was recorded.
        entropy: Mean over queries of the entropy of where they look.
        sparsity: Share of cells that are sparse.
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
        self._weights, self._sparse, self._entropy = np.zeros((3, heads))
        self._of_cells = self._of_queries = 0.0  # what these sums are divided by
        self._largest = np.full(heads, -np.inf)

    def add(self, pattern: Float[np.ndarray, "head query key"]) -> None:
        """Takes the patterns of one example.

        Raises:
            NumericError: a row of it adds up to nothing, or is NaN in part.
        """
        self.add_rows([pattern], pattern.shape[1])

    def add_rows(self, parts: Iterable[Float[np.ndarray, "head _ key"]], queries: int) -> None:
        """Takes the patterns of one example of so many queries, some rows after the other.

        Raises:
            NumericError: as of `add`.
        """
        sums, n_queries, n_cells = np.zeros((3, len(self._largest))), 0, 0
        first = 0
        for pattern in parts:
            heads, length, keys = pattern.shape
            seen = self._sight.count(queries, keys)[first : first + length]
            at_once = max(1, _AT_ONCE // max(1, heads * keys))
            for start in range(0, length, at_once):
                rows = slice(start, start + at_once)
                known = ~np.isnan(pattern[:, rows]).all(axis=(0, 2))
                if not known.any():
                    continue
                block = pattern[:, rows][:, known].astype(np.float32, copy=False)
                hidden = 0 if self._convention.hidden_cells else int((keys - seen[rows][known]).sum())
                sums += self._sums(block, hidden)
                n_queries += block.shape[1]
                n_cells += block.shape[1] * keys - hidden
            first += length
        if not n_queries:
            return
        self._queries += n_queries
        if self._convention.weighs == "examples":
            sums /= np.array([[n_cells], [n_cells], [n_queries]])
            n_queries = n_cells = 1
        self._weights += sums[0]
        self._sparse += sums[1]
        self._entropy += sums[2]
        self._of_queries += n_queries
        self._of_cells += n_cells

    def _sums(self, block: Float[np.ndarray, "head query key"], hidden: int) -> Float[np.ndarray, "3 head"]:
        """The sums of weights, sparse cells and entropies over some queries, of whose cells so many are hidden."""
        self._largest = np.maximum(self._largest, block.max(axis=(1, 2)))
        weights = block.clip(TINY)
        divisors = row_divisors(weights.sum(axis=2), self._convention)
        entropy = row_entropies(weights, divisors, self._convention).sum(axis=1, dtype=np.float64)
        sparse = np.count_nonzero(sparse_cells(weights, divisors, self._convention), axis=(1, 2)) - hidden
        entropy[np.abs(entropy) < NOTHING] = 0
        return np.stack([block.sum(axis=(1, 2), dtype=np.float64), sparse, entropy])

    def result(self) -> HeadStatistics:
        """Returns the statistics of all that was added; NaN if that was nothing."""
        cells, queries = self._of_cells or np.nan, self._of_queries or np.nan
        largest = np.where(self._queries, self._largest, np.nan)
        return HeadStatistics(
            self._queries, self._weights / cells, largest, self._entropy / queries, self._sparse / cells
        )


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
    """Takes arrays of any shape; the rows of the last axis that are NaN throughout do not count.

    Raises:
        Unsupported: the convention says nothing about activations.
    """

    def __init__(self, convention: Convention) -> None:
        if convention.sparse_value is None:
            raise Unsupported(f"the {convention.name} convention says nothing about activations and logits")
        self._sparse_value, self._lost_degrees = convention.sparse_value, convention.lost_degrees
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
        self._sparse += np.count_nonzero(np.abs(values) < self._sparse_value)

    def result(self) -> ValueStatistics:
        """Returns the statistics of all that was added; NaN where that is too little."""
        if not self._count:
            return ValueStatistics(0, *(np.nan,) * 5)
        degrees = self._count - self._lost_degrees
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
        target_probability: Of the token that came, NaN where none did.
        target_rank: 1 if no other token was more likely (or as likely with a lower id); 0 where none came.
    """

    entropy: Float[np.ndarray, "position"]
    top_ids: Int[np.ndarray, "position top"]
    top_probabilities: Float[np.ndarray, "position top"]
    target_probability: Float[np.ndarray, "position"]
    target_rank: Int[np.ndarray, "position"]


def logit_statistics(
    logits: Float[np.ndarray, "position d_vocab"],
    targets: Int[np.ndarray, "position"],
    convention: Convention,
    *,
    top: int = 5,
) -> LogitStatistics:
    """Returns what the logits of one example say, position by position.

    Args:
        logits: One row per position.
        targets: The token that each row speaks about, -1 where there is none (after the last token of a decoder).
        convention: Decides about the entropy.
        top: How many of the most likely tokens to list.

    Raises:
        UsageError: a token is not in the vocabulary, or `top` is more than it holds.
    """
    positions, d_vocab = logits.shape
    if not 0 <= top <= d_vocab or (positions and not -1 <= targets.min() <= targets.max() < d_vocab):
        raise UsageError(f"{top} most likely tokens, and tokens up to {targets.max(initial=0)}, of {d_vocab}")
    entropy, target_probability = np.full(positions, np.nan), np.full(positions, np.nan)
    top_ids, target_rank = np.full((positions, top), -1), np.zeros(positions, np.int64)
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
            token = targets[row]
            if token >= 0:
                target_probability[row] = probabilities[token]
                better = np.count_nonzero(own > own[token]) + np.count_nonzero(own[:token] == own[token])
                target_rank[row] = better + 1
    return LogitStatistics(entropy, top_ids, top_probabilities, target_probability, target_rank)


def _largest(values: Float[np.ndarray, "d_vocab"], count: int) -> Int[np.ndarray, "top"]:
    """Returns where the largest values are, largest first, of equal ones the first one first."""
    if not count:
        return np.zeros(0, np.int64)
    least = np.partition(values, -count)[-count]
    found = np.flatnonzero(values >= least)
    return found[np.argsort(-values[found], kind="stable")][:count]
