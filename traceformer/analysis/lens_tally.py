"""What is known of rows' logits after some blocks of words: the likeliest, sums of exponentials, ranks and divergences.

A block's logits are made, added up and let go, so that memory does not grow with the vocabulary. Sums are of
exponentials relative to the largest logit so far, and are scaled down when a larger one comes. KL(p || q) = sum of p
(log p - log q) is added up in the same way, p being what the row that a row is compared with says, of which no logits
are kept either.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from traceformer.models.readout import Readout
from traceformer.shapes import Float32, Int, Int64

__all__ = ["WORDS", "Compared", "LensRows", "Tally", "capped"]

WORDS = 4096
"""How many words are multiplied at once."""
_BLOCK_BYTES = 32 << 20  # of the logits at hand


@dataclass(frozen=True, slots=True)
class LensRows:
    """What rows of the residual stream say, read out.

    Attributes:
        top_ids: The k most likely words, the likeliest first.
        top_probabilities: Theirs.
        entropy: Of all words.
        target_probability: That of the target token, which came next; NaN where none did.
        target_rank: 1 if that was the likeliest; 0 where none came.
        kl: KL(what the row that it is compared with says || what it says), in nats; NaN where there is none.
    """

    top_ids: Int64[np.ndarray, "row k"]
    top_probabilities: Float32[np.ndarray, "row k"]
    entropy: Float32[np.ndarray, "row"]
    target_probability: Float32[np.ndarray, "row"]
    target_rank: Int64[np.ndarray, "row"]
    kl: Float32[np.ndarray, "row"]


class Compared(NamedTuple):
    """What rows are compared with: other normed rows, and which of these each of the rows is compared with."""

    rows: Float32[np.ndarray, "other d_embed"]
    number: Int[np.ndarray, "row"]


def capped(logits: Float32[np.ndarray, "row word"], readout: Readout, first: int) -> Float32[np.ndarray, "row word"]:
    """Returns logits of the words from `first` on, as products gave them, with bias and softcap; in place."""
    bias, cap = readout.bias, readout.softcap
    if bias is not None:
        logits += bias[first : first + logits.shape[1]]
    if cap is not None:
        logits /= np.float32(cap)
        np.tanh(logits, out=logits)
        logits *= np.float32(cap)
    return logits


class Tally:
    """What is known of rows' logits after some blocks of words."""

    def __init__(
        self,
        rows: Float32[np.ndarray, "row d_embed"],
        targets: Int[np.ndarray, "row"],
        readout: Readout,
        top: int,
        compared: Compared | None,
    ) -> None:
        self._rows, self._targets, self._readout, self._compared = rows, targets, readout, compared
        self._top_ids = np.full((len(rows), top), readout.d_vocab, np.int64)
        self._top = np.full((len(rows), top), -np.inf, np.float32)
        # Of exponentials relative to the largest logit so far; of these times the relative logits.
        self._largest = np.full(len(rows), np.finfo(np.float32).min, np.float64)
        self._sum, self._weighted = np.zeros(len(rows)), np.zeros(len(rows))
        # Of the rows that they are compared with: the same, and exponentials times how far both logits are apart.
        self._others_largest = self._largest.copy()
        self._others_sum, self._apart = np.zeros(len(rows)), np.zeros(len(rows))
        self._above = np.zeros(len(rows), np.int64)
        self._target_logits = self._logits_of_targets()

    def _logits_of_targets(self) -> Float32[np.ndarray, "row"]:
        logits = np.full(len(self._rows), np.nan, np.float32)
        for word in np.unique(self._targets[self._targets >= 0]).tolist():
            here = self._targets == word
            logits[here] = self._logits(self._rows[here], self._words(word, word + 1), word)[:, 0]
        return logits

    def _words(self, first: int, last: int) -> Float32[np.ndarray, "word d_embed"]:
        return self._readout.unembedding.rows(first, last)

    def _logits(
        self, rows: Float32[np.ndarray, "row d_embed"], words: Float32[np.ndarray, "word d_embed"], first: int
    ) -> Float32[np.ndarray, "row word"]:
        return capped(rows @ words.T, self._readout, first)

    def add(self, first: int) -> None:
        """Takes the words from `first` on, as many as a block holds."""
        words = self._words(first, min(first + WORDS, self._readout.d_vocab))
        at_once = max(1, _BLOCK_BYTES // (4 * len(words)))
        for start in range(0, len(self._rows), at_once):
            here = slice(start, start + at_once)
            logits = self._logits(self._rows[here], words, first)
            self._add_targets(here, logits, first)
            self._add_top(here, logits, first)
            if self._compared is not None:
                self._add_divergence(here, logits, self._compared, words, first)
            self._add_sums(here, logits)

    def _add_targets(self, here: slice, logits: Float32[np.ndarray, "row word"], first: int) -> None:
        targets, own = self._targets[here] - first, self._target_logits[here]
        inside = np.flatnonzero((targets >= 0) & (targets < logits.shape[1]))
        # The same number from another product may differ in its last bit, and would be above itself.
        logits[inside, targets[inside]] = own[inside]
        self._above[here] += np.count_nonzero(logits > own[:, None], axis=1)

    def _add_top(self, here: slice, logits: Float32[np.ndarray, "row word"], first: int) -> None:
        count = min(self._top.shape[1], logits.shape[1])
        found = np.argpartition(logits, logits.shape[1] - count, axis=1)[:, -count:]
        values = np.concatenate([self._top[here], np.take_along_axis(logits, found, axis=1)], axis=1)
        ids = np.concatenate([self._top_ids[here], found + first], axis=1)
        order = np.lexsort((ids, -values), axis=1)[:, : self._top.shape[1]]
        self._top[here] = np.take_along_axis(values, order, axis=1)
        self._top_ids[here] = np.take_along_axis(ids, order, axis=1)

    def _add_divergence(
        self,
        here: slice,
        logits: Float32[np.ndarray, "row word"],
        compared: Compared,
        words: Float32[np.ndarray, "word d_embed"],
        first: int,
    ) -> None:
        # Layers at the same position share a row to compare with, whose logits are made once.
        numbers, of_number, number_of = np.unique(compared.number[here], return_index=True, return_inverse=True)
        others = self._logits(compared.rows[numbers], words, first)
        before = self._others_largest[here]
        largest = np.maximum(before, others.max(axis=1)[number_of])
        powers = np.exp(others - largest[of_number][:, None].astype(np.float32))
        kept = np.exp(before - largest)
        apart = others[number_of]
        apart -= logits
        added = np.einsum("rw,rw->r", powers[number_of], apart)
        self._apart[here] = kept * self._apart[here] + added
        self._others_sum[here] = kept * self._others_sum[here] + powers.sum(axis=1)[number_of]
        self._others_largest[here] = largest

    def _add_sums(self, here: slice, logits: Float32[np.ndarray, "row word"]) -> None:
        before = self._largest[here]
        largest = np.maximum(before, logits.max(axis=1))
        logits -= largest[:, None].astype(np.float32)
        powers = np.exp(logits)
        kept = np.exp(before - largest)
        weighted = np.einsum("rw,rw->r", powers, logits)
        self._weighted[here] = kept * (self._weighted[here] + (before - largest) * self._sum[here]) + weighted
        self._sum[here] = kept * self._sum[here] + powers.sum(axis=1)
        self._largest[here] = largest

    def result(self) -> LensRows:
        def probability(logits: Float32[np.ndarray, "row k"]) -> Float32[np.ndarray, "row k"]:
            return (np.exp(logits - self._largest[:, None]) / self._sum[:, None]).astype(np.float32)

        entropy = np.log(self._sum) - self._weighted / self._sum
        return LensRows(
            self._top_ids,
            probability(self._top),
            entropy.astype(np.float32),
            probability(self._target_logits[:, None])[:, 0],
            np.where(self._targets >= 0, self._above + 1, 0),
            self._divergence(),
        )

    def _divergence(self) -> Float32[np.ndarray, "row"]:
        if self._compared is None:
            return np.full(len(self._rows), np.nan, np.float32)
        of_all = (self._largest + np.log(self._sum)) - (self._others_largest + np.log(self._others_sum))
        # It is none below zero but for rounding, where both say the same.
        return np.maximum(self._apart / self._others_sum + of_all, 0).astype(np.float32)
