"""Divergences, added up a block of words at a time, against all logits at once in float64; and other heads."""

from pathlib import Path

import numpy as np
import pytest

from traceformer.analysis.lens import Compared, apart_from, read_out
from traceformer.models.readout import Readout
from traceformer.models.weights import StoredTensor

WIDTH, WORDS = 16, 9001  # three blocks of words


@pytest.fixture(scope="module")
def readout(tmp_path_factory: pytest.TempPathFactory) -> Readout:
    random = np.random.default_rng(0)
    path: Path = tmp_path_factory.mktemp("readout") / "unembedding"
    random.standard_normal((WORDS, WIDTH), np.float32).tofile(path)
    bias = random.standard_normal(WORDS, np.float32)
    return Readout(None, None, None, 0, None, 1, StoredTensor(path, "W", "F32", (WORDS, WIDTH), 0), bias, 12.0)


def logits_of(rows: np.ndarray, readout: Readout) -> np.ndarray:
    assert readout.bias is not None
    products = rows.astype(np.float64) @ readout.unembedding.rows(0, WORDS).T.astype(np.float64) + readout.bias
    return 12 * np.tanh(products / 12)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def test_divergences_are_those_of_all_logits(readout: Readout) -> None:
    random = np.random.default_rng(1)
    others = random.normal(size=(5, WIDTH)).astype(np.float32)
    number = random.integers(0, 5, 40)
    # Of each some near, and some far, so that they are small and large.
    rows = (others[number] + np.logspace(-4, 1, 40)[:, None] * random.normal(size=(40, WIDTH))).astype(np.float32)
    found = read_out(rows, readout, compared=Compared(others, number))
    p, q = log_softmax(logits_of(others, readout))[number], log_softmax(logits_of(rows, readout))
    expected = (np.exp(p) * (p - q)).sum(axis=1)
    assert expected.min() < 1e-6 < 1 < expected.max()
    np.testing.assert_allclose(found.kl, expected, rtol=1e-4, atol=2e-6)
    # All else is as without.
    alone = read_out(rows, readout)
    assert np.array_equal(alone.entropy, found.entropy)
    assert np.isnan(alone.kl).all()


def test_a_row_diverges_from_itself_by_nothing_and_never_by_less(readout: Readout) -> None:
    rows = np.random.default_rng(2).normal(size=(300, WIDTH)).astype(np.float32)
    kl = read_out(rows, readout, compared=Compared(rows, np.arange(300))).kl
    assert (kl >= 0).all()
    assert kl.max() < 2e-6


def test_blocks_of_rows_make_no_difference(readout: Readout, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    rows, others = (random.normal(size=(n, WIDTH)).astype(np.float32) for n in (60, 20))
    number = np.tile(np.arange(20), 3)
    whole = read_out(rows, readout, compared=Compared(others, number))
    monkeypatch.setattr("traceformer.analysis.lens_tally._BLOCK_BYTES", 4 * 4096 * 7)
    parts = read_out(rows, readout, compared=Compared(others, number))
    np.testing.assert_allclose(parts.kl, whole.kl, rtol=1e-5)


def test_logits_of_the_same_head_are_not_apart_and_those_of_another_are(readout: Readout) -> None:
    rows = np.random.default_rng(4).normal(size=(3, WIDTH)).astype(np.float32)
    own = logits_of(rows, readout)
    assert apart_from(rows, readout, own).max() < 1e-5
    assert apart_from(rows, readout, own.astype(np.float16)).max() < 1e-3
    other = np.random.default_rng(5).permutation(own, axis=1)
    assert apart_from(rows, readout, other) == pytest.approx(2**0.5, abs=0.05)
    # Their spread is what counts, not where they are, or how large.
    assert apart_from(rows, readout, own + 3 * own.std(axis=1, keepdims=True)) == pytest.approx(3, rel=1e-4)


def test_logits_that_are_not_known_are_not_compared(readout: Readout) -> None:
    rows = np.random.default_rng(4).normal(size=(3, WIDTH)).astype(np.float32)
    own = logits_of(rows, readout).astype(np.float32)
    own[0] = np.nan
    own[1, ::2] = -np.inf
    found = apart_from(rows, readout, own)
    assert np.isnan(found[0])
    assert found[1:].max() < 1e-5
