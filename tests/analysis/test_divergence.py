"""Divergences of predictions against torch, distances of patterns against scipy and cell by cell."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from traceformer.analysis import divergence
from traceformer.analysis.divergence import all_total_variations, divergences, in_pieces, pattern_distances


def of(logits: np.ndarray) -> divergence.WordLogits:
    return lambda start, stop: logits[:, start:stop]


def patterns(seed: int, heads: int = 2, queries: int = 5, keys: int = 6, total: float = 1) -> np.ndarray:
    weights = np.random.default_rng(seed).random((heads, queries, keys)).astype(np.float32)
    weights[:, :, -1] = 0  # as what lies ahead has it
    return total * weights / weights.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("scale", [1e-3, 1, 30])
def test_kl_is_torchs_both_ways_whatever_the_blocks(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "_WORDS", 7)
    random = np.random.default_rng(0)
    first, second = (scale * random.normal(size=(6, 40)).astype(np.float32) + 50 for _ in range(2))
    found = divergences(of(first), of(second), 6, 40)
    p, q = (torch.from_numpy(each).double().log_softmax(-1) for each in (first, second))
    for own, (one, other) in ((found.forward, (p, q)), (found.backward, (q, p))):
        expected = torch.nn.functional.kl_div(other, one, reduction="none", log_target=True).sum(-1).numpy()
        np.testing.assert_allclose(own, expected, rtol=1e-9, atol=1e-13)  # of numbers around 50 in float64
    assert found.same_top.tolist() == (first.argmax(-1) == second.argmax(-1)).tolist()


def test_the_same_logits_are_apart_by_nothing() -> None:
    logits = np.random.default_rng(1).normal(size=(3, 5000)).astype(np.float32)
    found = divergences(of(logits), of(logits.copy()), 3, 5000)
    assert found.forward.tolist() == found.backward.tolist() == [0, 0, 0]
    assert found.same_top.all()


def test_logits_that_are_no_numbers_give_none() -> None:
    logits = np.zeros((2, 4), np.float32)
    broken = logits.copy()
    broken[1, 2] = np.nan
    assert np.isnan(divergences(of(logits), of(broken), 2, 4).forward).tolist() == [False, True]


def test_distances_of_patterns_are_scipys() -> None:
    first, second = patterns(0), patterns(1)
    variation, bits = pattern_distances(first, second, rest=False)
    for place in np.ndindex(2, 5):
        rows = [each[place].astype(np.float64) for each in (first, second)]
        assert variation[place] == pytest.approx(abs(rows[0] - rows[1]).sum() / 2, rel=1e-12)
        # scipy gives the root of it, of rows that it makes sum to one, as these do but for float32's rounding
        assert bits[place] == pytest.approx(jensenshannon(*rows, base=2) ** 2, rel=1e-6)
    assert not np.any(pattern_distances(first, first.copy(), rest=False))


def test_rows_without_a_key_in_common_are_one_apart() -> None:
    eye = np.eye(4, dtype=np.float32)[None]
    variation, bits = pattern_distances(eye, eye[:, ::-1].copy(), rest=False)
    assert variation.tolist() == bits.tolist() == [[1, 1, 1, 1]]


def test_what_a_sink_takes_counts_as_a_key() -> None:
    first, second = patterns(0), patterns(0, total=0.5)
    variation, bits = pattern_distances(first, second, rest=True)
    np.testing.assert_allclose(variation, 0.5, rtol=1e-6)  # of float32 weights
    padded = [np.concatenate([each, 1 - each.sum(-1, keepdims=True)], axis=-1) for each in (first, second)]
    assert bits[1, 2] == pytest.approx(jensenshannon(padded[0][1, 2], padded[1][1, 2], base=2) ** 2, rel=1e-5)


@pytest.mark.parametrize("rest", [False, True])
def test_all_pairs_are_pairs_one_by_one(rest: bool) -> None:
    first, second = patterns(0, heads=3, total=0.9), patterns(1, heads=2)
    found = all_total_variations(first, second, rest=rest)
    for i, j in np.ndindex(3, 2):
        pair, _ = pattern_distances(first[i : i + 1], second[j : j + 1], rest=rest)
        assert found[i, j] == pytest.approx(pair.sum(), rel=1e-6)  # which adds in float32


def test_attention_to_pieces_is_that_to_their_tokens() -> None:
    weights = patterns(0, keys=6)
    pieces = np.array([3, 0, 0, 1, 2, 3])
    found = in_pieces(weights, pieces, 3)
    for piece in range(4):
        np.testing.assert_allclose(found[..., piece], weights[..., pieces == piece].sum(-1), rtol=1e-6)
    nothing = in_pieces(weights, np.array([0, 0, 0, 2, 2, 2]), 3)
    assert not nothing[..., [1, 3]].any()
