"""What compressors reach on the same held-out text: the figures that a trained model's bits per byte stand beside.

The n-gram model, of order n:

1. Count in the training text how often each context of 0, 1, ... n tokens occurs, with what follows it.
2. A context c of k tokens that was seen N times, with U different followers, predicts
   P_k(x) = (count(c, x) + U P_{k-1}(x)) / (N + U), where P_{-1} is uniform and an unseen context leaves P_{k-1}.
   (Witten and Bell 1991, method C, interpolated.)
3. Its bits on the held-out text are the sum of -log2 P_n; nothing is learned from the held-out text.
"""

import lzma
from typing import NamedTuple

import numpy as np

from traceformer.bytelm.corpus import SEPARATOR, Span
from traceformer.shapes import Float64, Int64

__all__ = ["ngram_bits_per_byte", "ngram_probabilities", "xz_bits_per_byte"]

_BITS = 9  # of a token: bytes and the separator
_SYMBOLS = SEPARATOR + 1


def xz_bits_per_byte(text: Span, *, block: int | None = None) -> float:
    """Returns what `xz -9` needs per byte of text, for all of it at once or for blocks of so many bytes.

    The file's own header is counted, as for a user who keeps the compressed file.
    """
    data, size = text.data, block or max(1, len(text))
    packed = sum(len(lzma.compress(data[at : at + size].tobytes(), preset=9)) for at in range(0, len(data), size))
    return packed * 8 / text.n_bytes


def ngram_bits_per_byte(train: Span, held_out: Span, *, order: int = 5) -> float:
    """Returns the bits per byte of the n-gram model of this order, ends of documents included.

    Takes about 60 bytes of memory per training byte.
    """
    probabilities = ngram_probabilities(train.tokens(0, len(train)), held_out.tokens(0, len(held_out)), order=order)
    return float(-np.log2(probabilities).sum()) / held_out.n_bytes


def ngram_probabilities(
    train: Int64[np.ndarray, " train_position"], held_out: Int64[np.ndarray, " position"], *, order: int
) -> Float64[np.ndarray, " position"]:
    """Returns the probability of each held-out token given up to `order` tokens before it (order at most 5)."""
    probabilities = np.full(len(held_out), 1 / _SYMBOLS)
    for k in range(min(order + 1, len(train), len(held_out))):
        seen, wanted = _grams(train, k), _grams(held_out, k)
        followers = _Counts.of(seen)
        contexts = _Counts.of(seen >> _BITS)
        distinct = _Counts.of(followers.keys >> _BITS)
        n_follows = followers.look_up(wanted)
        n_context, n_distinct = contexts.look_up(wanted >> _BITS), distinct.look_up(wanted >> _BITS)
        mixed = probabilities[k:]
        known = n_context > 0
        mixed[known] = (n_follows + n_distinct * mixed)[known] / (n_context + n_distinct)[known]
    return probabilities


def _grams(tokens: Int64[np.ndarray, " position"], k: int) -> Int64[np.ndarray, " gram"]:
    """Each token from the k-th on with the k before it, as one number whose lowest bits are the token."""
    grams = np.zeros(len(tokens) - k, np.int64)
    for before in range(k, -1, -1):
        grams = grams << _BITS | tokens[k - before : len(tokens) - before]
    return grams


class _Counts(NamedTuple):
    """How often each key occurs; zero for all others."""

    keys: Int64[np.ndarray, " key"]
    counts: Int64[np.ndarray, " key"]

    @classmethod
    def of(cls, values: Int64[np.ndarray, " value"]) -> "_Counts":
        return cls(*np.unique(values, return_counts=True))

    def look_up(self, wanted: Int64[np.ndarray, " wanted"]) -> Int64[np.ndarray, " wanted"]:
        place = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(self.keys[place] == wanted, self.counts[place], 0)
