"""How far apart two predictions are, and two attention patterns.

1. Of two predictions of the next token the divergences of Kullback and Leibler, in nats, both ways:
   KL(P, Q) = Σ p (log p - log q). Logits come a block of words at a time; of each row are kept the largest, the sum of
   exponentials, and that of exponentials times the difference of both logits, from which KL follows.
2. Of two rows of attention the total variation, half the sum of what each weight differs by, from 0 to 1, and the
   divergence of Jensen and Shannon in bits, from 0 to 1: the mean of KL(P, M) and KL(Q, M), M halfway between.
3. Rows of models with sinks sum to less than 1; the rest then counts as one key more.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from traceformer.shapes import Bool, Float, Float32, Float64, Int64

__all__ = ["Divergences", "WordLogits", "all_total_variations", "divergences", "in_pieces", "pattern_distances"]

_WORDS = 4096

WordLogits: TypeAlias = Callable[[int, int], Float32[np.ndarray, "row word"]]
"""Gives the logits of the words from one number to another, of all rows."""


class Divergences(NamedTuple):
    """Of each row how far apart two predictions are, and whether both take the same token for the likeliest."""

    forward: Float64[np.ndarray, "row"]
    backward: Float64[np.ndarray, "row"]
    same_top: Bool[np.ndarray, "row"]


def divergences(first: WordLogits, second: WordLogits, n_rows: int, n_words: int) -> Divergences:
    """Returns KL(first, second) and KL(second, first) of each row, in nats; NaN where a logit is no finite number."""
    tallies = _Tally(n_rows), _Tally(n_rows)
    for start in range(0, n_words, _WORDS):
        stop = min(start + _WORDS, n_words)
        ours, theirs = (np.asarray(logits(start, stop), np.float64) for logits in (first, second))
        apart = ours - theirs
        tallies[0].add(ours, apart, start)
        tallies[1].add(theirs, np.negative(apart, out=apart), start)
    ends = [tally.log_sum() for tally in tallies]
    # Nothing is below 0 but by rounding.
    forward = np.maximum(tallies[0].mean() - ends[0] + ends[1], 0)
    backward = np.maximum(tallies[1].mean() - ends[1] + ends[0], 0)
    return Divergences(forward, backward, tallies[0].likeliest == tallies[1].likeliest)


class _Tally:
    """What is known of rows' logits, and of their differences from others, after some blocks of words."""

    def __init__(self, n_rows: int) -> None:
        self._largest = np.full(n_rows, -np.inf)
        self._sum, self._weighted = np.zeros(n_rows), np.zeros(n_rows)
        self.likeliest: Int64[np.ndarray, "row"] = np.full(n_rows, -1)

    def add(self, logits: Float64[np.ndarray, "row word"], apart: Float64[np.ndarray, "row word"], start: int) -> None:
        places = logits.argmax(axis=1)
        here = np.take_along_axis(logits, places[:, None], axis=1)[:, 0]
        self.likeliest = np.where(here > self._largest, places + start, self.likeliest)
        largest = np.maximum(self._largest, here)
        kept = np.exp(self._largest - largest)
        powers = np.exp(logits - largest[:, None])
        self._sum = kept * self._sum + powers.sum(axis=1)
        self._weighted = kept * self._weighted + np.einsum("rw,rw->r", powers, apart)
        self._largest = largest

    def log_sum(self) -> Float64[np.ndarray, "row"]:
        return self._largest + np.log(self._sum)

    def mean(self) -> Float64[np.ndarray, "row"]:
        return self._weighted / self._sum


def in_pieces(
    patterns: Float[np.ndarray, "*lead key"], pieces: Int64[np.ndarray, "key"], count: int
) -> Float[np.ndarray, "*lead piece"]:
    """Returns what each of `count` pieces of a text has of a row's attention, and at the end what no piece has."""
    order = np.argsort(pieces, kind="stable")
    numbers, starts = np.unique(pieces[order], return_index=True)
    summed = np.zeros((*patterns.shape[:-1], count + 1), patterns.dtype)
    if len(numbers):
        summed[..., numbers] = np.add.reduceat(patterns[..., order], starts, axis=-1)
    return summed


def pattern_distances(
    first: Float[np.ndarray, "head query key"], second: Float[np.ndarray, "head query key"], *, rest: bool
) -> tuple[Float64[np.ndarray, "head query"], Float64[np.ndarray, "head query"]]:
    """Returns total variation and Jensen-Shannon divergence of each row; `rest` counts what a row lacks to 1."""
    ours, theirs = (_with_rest(each, rest) for each in (first, second))
    variation = np.abs(ours - theirs).sum(axis=-1) / 2
    between = (ours + theirs) / 2
    bits = sum(_bits(each, between) for each in (ours, theirs))
    return variation, np.maximum(bits / 2, 0)


def _with_rest(patterns: Float[np.ndarray, "*lead key"], rest: bool) -> Float64[np.ndarray, "*lead more"]:
    wide = patterns.astype(np.float64)
    if not rest:
        return wide
    lacking = np.maximum(1 - wide.sum(axis=-1, keepdims=True), 0)
    return np.concatenate([wide, lacking], axis=-1)


def _bits(
    weights: Float64[np.ndarray, "head query key"], between: Float64[np.ndarray, "head query key"]
) -> Float64[np.ndarray, "head query"]:
    """The sum of p log2(p / m), of what is 0 nothing."""
    ratio = np.divide(weights, between, out=np.ones_like(weights), where=weights > 0)
    return np.einsum("hqk,hqk->hq", weights, np.log2(ratio))


def all_total_variations(
    first: Float[np.ndarray, "head query key"], second: Float[np.ndarray, "other query key"], *, rest: bool
) -> Float64[np.ndarray, "head other"]:
    """Returns the total variation of every head from every other one, added up over queries."""
    ours, theirs = (_with_rest(each, rest).astype(np.float32) for each in (first, second))
    found = np.empty((len(ours), len(theirs)))
    difference = np.empty_like(theirs)
    for head, own in enumerate(ours):
        np.abs(np.subtract(theirs, own, out=difference), out=difference)
        found[head] = difference.sum(axis=-1).sum(axis=-1, dtype=np.float64)
    return found / 2
