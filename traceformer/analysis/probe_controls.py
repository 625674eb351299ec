"""How texts are split for probes, what is beside them, and how far they are from chance.

1. Texts are split, never rows: `held_out_texts` draws those that are held out.
2. Beside the labels a probe is given others, which one that learns by heart would learn as well:
   `shuffled`, the same labels dealt out anew among the rows of each side of the split;
   `control_labels`, for labels of tokens, one drawn at random for each kind of token (Hewitt and Liang, "Designing and
   Interpreting Probes with Control Tasks", 2019). What the probe has over that is its selectivity.
   And it is given rows that know nothing: random signs, as wide as the run's.
3. Without any fit: the most frequent class, and the most frequent class of each kind of token.
4. Intervals are of texts drawn anew, with replacement, from those held out; the same draws for every number.
"""

from collections.abc import Iterator
from typing import Literal, TypeAlias, get_args

import numpy as np

from traceformer.shapes import Bool, Float64, Int32, Int64

__all__ = [
    "Drawn",
    "control_labels",
    "draws_of",
    "held_out_texts",
    "hits_of_kinds",
    "random_rows",
    "resampled",
    "shuffled",
]

RESAMPLES = 1000
Drawn: TypeAlias = Literal["split", "shuffled", "control", "training rows", "held-out rows", "texts"]
_DRAWN: tuple[Drawn, ...] = get_args(Drawn)


def draws_of(seed: int, what: Drawn, number: int = 0) -> np.random.Generator:
    """Returns what draws one thing: of each thing by itself, and by none of the seeds that a caller's draws have."""
    key = (0x70726F6265, _DRAWN.index(what), number)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def held_out_texts(
    n_texts: int, share: float, seed: int, kinds: Int32[np.ndarray, "text"] | None = None
) -> Bool[np.ndarray, "text"]:
    """Returns which of some texts are held out: about a share of them, one at least and all but one at most.

    They are shuffled, put in the order of their kinds, if these are given, and of this order every so many is taken, so
    that each kind has its share.
    """
    order = draws_of(seed, "split").permutation(n_texts)
    if kinds is not None:
        order = order[np.argsort(kinds[order], kind="stable")]
    wanted = min(max(round(n_texts * share), 1), n_texts - 1)
    places = (np.arange(wanted) * n_texts + n_texts // 2) // wanted
    held = np.zeros(n_texts, bool)
    held[order[places]] = True
    return held


def shuffled(
    codes: Int32[np.ndarray, "row"], is_held: Bool[np.ndarray, "row"], random: np.random.Generator
) -> Int32[np.ndarray, "row"]:
    """Returns the labels dealt out anew among training rows, and among those that are held out."""
    found = codes.copy()
    for side in (~is_held, is_held):
        found[side] = random.permutation(codes[side])
    return found


def control_labels(
    kinds: Int32[np.ndarray, "row"], shares: Float64[np.ndarray, "class"], random: np.random.Generator
) -> Int32[np.ndarray, "row"]:
    """Returns a label drawn for each kind of token, from the shares that classes have: a control task's.

    Args:
        kinds: Each row's kind of token, from 0 on.
        shares: What is drawn from.
        random: What draws.
    """
    drawn = random.choice(len(shares), size=int(kinds.max(initial=-1)) + 1, p=shares).astype(np.int32)
    return drawn[kinds]


def hits_of_kinds(
    codes: Int32[np.ndarray, "row"],
    kinds: Int32[np.ndarray, "row"],
    is_held: Bool[np.ndarray, "row"],
    majority: int,
) -> Bool[np.ndarray, "held"]:
    """Returns which held-out rows have the class that is most frequent among training rows of their kind of token.

    A kind that no training row has is taken for the majority's class; of classes that are as frequent the first counts.
    """
    n_classes = int(codes.max()) + 1
    pairs, counts = np.unique(kinds[~is_held].astype(np.int64) * n_classes + codes[~is_held], return_counts=True)
    order = np.lexsort((pairs % n_classes, -counts, pairs // n_classes))
    own, first = np.unique(pairs[order] // n_classes, return_index=True)
    likeliest = np.full(int(kinds.max()) + 1, majority, np.int64)
    likeliest[own] = pairs[order][first] % n_classes
    return likeliest[kinds[is_held]] == codes[is_held]


def random_rows(
    n_rows: int, width: int, seed: int, what: Literal["training rows", "held-out rows"]
) -> Iterator[Float64[np.ndarray, "row d"]]:
    """Yields rows of random signs, which are the same for the same seed."""
    random = draws_of(seed, what)
    for first in range(0, n_rows, 2048):
        bits = random.integers(0, 2, (min(2048, n_rows - first), width), np.int8)
        yield bits.astype(np.float64) * 2 - 1


def resampled(
    correct: Int64[np.ndarray, "score text"], totals: Int64[np.ndarray, "text"], seed: int, resamples: int = RESAMPLES
) -> Float64[np.ndarray, "resample score"]:
    """Returns accuracies over texts drawn anew, as many as there are, with replacement.

    Args:
        correct: How many rows of each text each score has right.
        totals: How many rows each text has.
        seed: Of the draws.
        resamples: How often texts are drawn.
    """
    random, n, hits = draws_of(seed, "texts"), len(totals), correct.astype(np.float64)
    found = np.empty((resamples, len(correct)))
    for own in found:
        times = np.bincount(random.integers(0, n, n), minlength=n)
        own[...] = (hits @ times) / (totals @ times)
    return found
